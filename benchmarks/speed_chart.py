"""A bar chart on a logarithmic scale as SVG, in plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

_WIDTH, _LEFT, _ROW, _TOP = 760, 190, 30, 56


def bars(title: str, values: Mapping[str, float]) -> str:
    """One bar per value, from the power of ten below the smallest; readable on light and dark pages.

    Args:
        title: the heading.
        values: positive, by label, top to bottom.
    """
    low = math.floor(math.log10(min(values.values())))
    high = math.ceil(math.log10(max(values.values())))
    unit = (_WIDTH - _LEFT - 80) / max(high - low, 1)
    height = _TOP + _ROW * len(values) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" fill="#777">',
        f'<text x="10" y="24" font-size="16">{escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        x = _LEFT + unit * (power - low)
        parts.append(f'<path d="M{x:.0f} {_TOP - 8}V{height - 26}" stroke="#999" stroke-opacity="0.4"/>')
        parts.append(f'<text x="{x:.0f}" y="{height - 10}" text-anchor="middle">{10.0**power:,g}</text>')
    for i, (label, value) in enumerate(values.items()):
        y, width = _TOP + _ROW * i, unit * (math.log10(value) - low)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="19" rx="2" fill="#3b82c4"/>')
        parts.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + 14}">{value:,.3g}</text>')
    return "\n".join([*parts, "</svg>", ""])
