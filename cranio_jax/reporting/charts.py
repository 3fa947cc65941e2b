"""Charts as SVG, drawn by matplotlib, which is imported late: most programs draw nothing."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cranio_jax.evaluation.results import Reliability, Retrieval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Letters stay text, and the same values give the same bytes.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cranio_jax",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "legend.frameon": False,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_FIRST_RANKS = 20  # of a match curve that are drawn

Points = Sequence[tuple[float, float]]


def lines(
    series: Mapping[str, Points],
    title: str,
    axes: tuple[str, str] = ("step", ""),
    log: bool = False,
) -> str:
    """Returns a line chart as a figure of HTML; empty without a line of two points.

    Args:
      series: `(x, y)` of each line, by its name. One line alone has no legend.
      title: of the chart, as text.
      axes: what the axes show.
      log: makes the vertical axis logarithmic. Values that are not positive are left out then.
    """
    if log:
        series = {name: [p for p in points if p[1] > 0] for name, points in series.items()}
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.0, 2.9), layout="constrained")
        plot = figure.add_subplot()
        colours = mpl.colormaps["tab10" if len(series) <= 10 else "tab20"]
        for number, (name, points) in enumerate(series.items()):
            plot.plot(*zip(*points, strict=True), color=colours(number), lw=1.4, label=name)
        plot.set(xlabel=axes[0], ylabel=axes[1], yscale="log" if log else "linear")
        if len(series) > 1:
            figure.legend(loc="outside right upper")
        return _html(figure, title)


def match_curves(protocol: Retrieval, title: str) -> str:
    """Returns the cumulative match curves of a protocol: a line for each kind of query."""
    curves = {
        name: list(enumerate(values[:_FIRST_RANKS], 1)) for name, values in protocol.curves.items()
    }
    return lines(curves, title, ("k", "share of queries"))


def all_match_curves(retrieval: Mapping[str, Mapping[str, Retrieval]]) -> str:
    """Returns the section of match curves of each embedder and protocol; empty without any."""
    charts = [
        match_curves(protocol, f"Right person among the first k ({embedder}, {name})")
        for embedder, protocols in retrieval.items()
        for name, protocol in protocols.items()
    ]
    if not charts:
        return ""
    return f"<h2>Match curves</h2><div class=curves>{''.join(charts)}</div>"


def reliability(methods: Mapping[str, Mapping[str, Reliability]]) -> str:
    """Returns a chart of expected and true errors of pixels, and of each embedder's identity."""
    names = dict.fromkeys(name for of_method in methods.values() for name in of_method)
    charts = ""
    for name in names:
        curves: dict[str, Points] = {
            method: one[name].points for method, one in methods.items() if name in one
        }
        most = max(max(point) for points in curves.values() for point in points)
        curves["honest"] = [(0.0, 0.0), (most, most)]
        axes = ("expected error", "true error")
        charts += lines(curves, f"Expected and true error of each tenth: {name}", axes)
    return f"<div class=curves>{charts}</div>" if charts else ""


def _html(figure: "Figure", title: str) -> str:
    """Returns a figure of HTML that holds the chart, as a picture of its own."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata=_NO_METADATA)
    source = "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()
    label = html.escape(title)
    return f'<figure><img src="{source}" alt="{label}"><figcaption>{label}</figcaption></figure>'
