"""`python -m handloop`, which is also what torchrun starts: the command line."""

from __future__ import annotations

import sys

from handloop.cli import main

if __name__ == "__main__":
    sys.exit(main())
