"""What a wheel holds, what a clone holds, and what must be in neither."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A folder of one machine: at the start, or behind anything that can't be the rest of a longer path.
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:root|home|tmp|work)/[A-Za-z0-9_]")
# The address of a package index. Projects name packages; where those come from is for each machine to say.
PACKAGE_HOST = re.compile(r"[a-z]+://[a-z0-9.-]*(?:registry|pypi|pythonhosted|download\.pytorch)|/simp[l]e/")


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Paths below the root of everything that is, or is about to be, in the repository."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in set(done.stdout.split("\0")) if name and os.path.lexists(ROOT / name))


@pytest.fixture(scope="module")
def wheel(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a copy of the repository's files alone."""
    pytest.importorskip("build")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in files:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        else:
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: list[str], files: list[str]) -> None:
    info = re.compile(r"handloop-[\w.]+\.dist-info/")
    shipped = {name for name in wheel if not info.match(name)}
    package = {name for name in files if name.startswith("handloop/")}
    # Among others a bare find: would ship the links fitting, priors and regressors as top-level packages.
    assert shipped == package
    assert any(info.match(name) and name.endswith("LICENSE") for name in wheel)


def test_the_wheel_holds_the_data(wheel: list[str]) -> None:
    for name in ("py.typed", "hand/data/embedded_right.npz", "hand/data/postures.json", "view/page/page.js"):
        assert f"handloop/{name}" in wheel
    assert "handloop/view/page/page.css" in wheel and "handloop/regressors/__init__.py" in wheel


@pytest.mark.parametrize("name", ["fitting", "priors", "regressors"])
def test_the_links_at_the_top(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink() and os.readlink(link) == f"handloop/{name}"
    assert (link / "__init__.py").is_file()


def test_every_named_package_is_pinned() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = [config["options.extras_require"][key] for key in config["options.extras_require"]]
    lines = "\n".join([config["options"]["install_requires"], *extras]).splitlines()
    named = {_normal(re.split(r"[\s<>=!~;\[]", line.strip())[0]) for line in lines if line.strip()}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(pin.split("==")[0]) for pin in pins if "==" in pin}
    assert named - pinned == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_no_file_names_a_machine_or_a_package_host(files: list[str]) -> None:
    found = []
    for name in files:
        path = ROOT / name
        if path.is_symlink() or b"\0" in (raw := path.read_bytes())[:8000]:
            continue
        for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
            if MACHINE_PATH.search(line) or PACKAGE_HOST.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


def test_the_patterns_find_what_they_are_for() -> None:
    for part in ("root", "home", "tmp", "work"):
        assert MACHINE_PATH.search(f"open('/{part}/x')") and MACHINE_PATH.search(f"/{part}/x")
        assert not MACHINE_PATH.search(f"docs/{part}/x") and not MACHINE_PATH.search(f"example.org/{part}/x")
    assert PACKAGE_HOST.search("https://" + "pypi.org/x") and PACKAGE_HOST.search("http://host/simpl" + "e/torch")
