"""Charts as SVG."""

import html
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from cranio_jax.evaluation.results import Retrieval

# One for each row of a study, which has up to twelve; a single experiment has the first few.
_COLOURS = (
    *("#1f6fb2", "#7aa6cf", "#a32020", "#8a8f98", "#11743a", "#d98a00"),
    *("#7b3fa0", "#e377c2", "#17a2a2", "#6b4423", "#b5bd22", "#1b1f24"),
)
_AXIS = 'fill="none" stroke="#b9c2cc"'


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'


def _figure(width: int, height: int, title: str, content: str, legend: str = "") -> str:
    label = html.escape(title)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{label}">{content}</svg><figcaption>{label}{legend}</figcaption></figure>'
    )


def curve(points: Sequence[tuple[float, float]], title: str) -> str:
    """Returns a line chart of `(step, value)` with a logarithmic value axis.

    It is empty if there are fewer than two points, or a value is not positive.
    """
    if len(points) < 2 or min(value for _, value in points) <= 0:
        return ""
    # The frame, in pixels.
    width, height, left, right, top, bottom = 560, 230, 62, 12, 10, 34
    inner_width, inner_height = width - left - right, height - bottom - 14

    # Where each point lies.
    steps, values = np.array(points).T
    logs = np.log10(values)
    low = np.floor(logs.min() * 10) / 10
    high = np.ceil(logs.max() * 10) / 10
    span = max(high - low, 1e-9)
    x = left + (steps - steps[0]) / (steps[-1] - steps[0]) * inner_width
    y = (high - logs) / span * inner_height + top
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    # The axes and their words.
    frame = f"{left},{top} {left},{height - bottom} {width - right},{height - bottom}"
    ticks = "".join(
        _text(left - 8, (high - v) / span * inner_height + 14, f"{10**v:.2g}", "end")
        for v in np.linspace(low, high, 4)
    )
    ends = _text(x[0], height - 12, f"{steps[0]:.0f}")
    ends += _text(x[-1], height - 12, f"{steps[-1]:.0f}", "end")
    return _figure(
        width,
        height,
        title,
        f'<polyline points="{frame}" {_AXIS}/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6fb2" stroke-width="1.6"/>'
        f"{ticks}{ends}{_text(width / 2, height - 2, 'step')}",
    )


def match_curves(protocol: Retrieval, title: str) -> str:
    """Returns the cumulative match curves of a protocol: a line for each kind of query."""
    length = min(20, *map(len, protocol.curves.values()))
    lines = ""
    legend = "<br>"
    colours = itertools.cycle(_COLOURS)
    for colour, (name, values) in zip(colours, protocol.curves.items(), strict=False):
        points = " ".join(
            f"{34 + 250 * i / max(length - 1, 1):.1f},{10 + 150 * (1 - v):.1f}"
            for i, v in enumerate(values[:length])
        )
        lines += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        legend += f'<span style="color:{colour}">■</span> {html.escape(name)}<br>'
    axes = f'<polyline points="34,10 34,160 284,160" {_AXIS}/>'
    axes += "".join(_text(28, 14 + 150 * (1 - v), f"{v:g}", "end") for v in (0, 0.5, 1))
    ends = _text(34, 176, "1") + _text(284, 176, str(length))
    return _figure(296, 180, title, axes + lines + ends, legend)


def all_match_curves(retrieval: Mapping[str, Mapping[str, Retrieval]]) -> str:
    """Returns the section of match curves of each embedder and protocol; empty without any."""
    charts = [
        match_curves(protocol, f"subject among the first k, {embedder}, {name}")
        for embedder, protocols in retrieval.items()
        for name, protocol in protocols.items()
    ]
    if not charts:
        return ""
    return f"<h2>Match curves</h2><div class=curves>{''.join(charts)}</div>"
