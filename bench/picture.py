"""The picture for docs/performance.md: bars on a logarithmic scale, plain SVG."""

import math
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT = 900, 300, 90
_BAR, _GAP, _HEAD, _FOOT = 16, 5, 26, 34
_COLOURS = {"ours": "#1f6feb", "floor": "#8c959f", "peer": "#d4a72c"}
_NAMES = {"ours": "Bridgehead, through its API", "floor": "the kernel alone", "peer": "others"}


def svg(groups):
    """groups: title and bars (label, milliseconds, kind of `_COLOURS`) of each. Less is better."""
    groups = [(title, bars) for title, bars in groups if bars]
    values = [value for _title, bars in groups for _label, value, _kind in bars]
    low, high = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))) if values else (0, 1)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(1, high - low)
    body, y = [], 40
    for title, bars in groups:
        body.append(_text(10, y + 14, title, "bold"))
        y += _HEAD
        for label, value, kind in bars:
            length = max(1.0, (math.log10(value) - low) * scale)
            body.append(_text(_LEFT - 8, y + 12, label, anchor="end"))
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[kind]}"/>')
            body.append(_text(_LEFT + length + 6, y + 12, _shown(value)))
            y += _BAR + _GAP
        y += _GAP
    lines = [_rule(_LEFT + (power - low) * scale, y, _shown(10.0**power)) for power in range(low, high + 1)]
    box = f'viewBox="0 0 {_WIDTH} {y + _FOOT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{_WIDTH}" height="{y + _FOOT}" fill="#ffffff"/>'
    return "\n".join([head, ground, *_legend(), *lines, *body, "</svg>"]) + "\n"


def _legend():
    for number, (kind, colour) in enumerate(_COLOURS.items()):
        x = 10 + 220 * number
        yield f'<rect x="{x}" y="10" width="14" height="14" fill="{colour}"/>'
        yield _text(x + 20, 21, _NAMES[kind])


def _rule(x, bottom, label):
    line = f'<line x1="{x:.1f}" y1="36" x2="{x:.1f}" y2="{bottom}" stroke="#d0d7de"/>'
    return line + _text(x, bottom + 18, label, anchor="middle")


def _text(x, y, words, weight="normal", anchor="start"):
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{escape(words)}</text>'


def _shown(milliseconds):
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.1 else f"{milliseconds * 1000:.3g} us"
