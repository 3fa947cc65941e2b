"""Results as tables: for a terminal, Markdown, LaTeX and HTML, all from the same cells."""

import html
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from cranio_jax.evaluation.results import (
    LEAST_PEOPLE,
    OUTLINE,
    Comparison,
    Groups,
    Reliability,
    Retrieval,
    Rows,
    Scored,
)
from cranio_jax.files.atomic import whole_file
from cranio_jax.metrics.estimates import Estimate
from cranio_jax.metrics.registry import metric_of, place_of, title_of

# What parts are called where pages fold them away.
_FOLDED = {
    "pictures": "All metrics of pictures, differences and costs",
    "retrieval": "Retrieval by each protocol",
    "groups": "By view, sex, age, change of BMI and skin tone",
    "reliability": "Spread of the samples against their error",
}
# They equal recall@1.
_LEFT_OUT = ("map@1", "mrr@1")


class Cell(NamedTuple):
    """A number and its uncertainty, as text; both empty where there is none."""

    value: str = ""
    spread: str = ""


class Table(NamedTuple):
    """A table of results.

    Attributes:
      title: above it.
      head: titles of the columns, without the first one, which holds the names of rows.
      rows: name and cells of each.
      notes: what a reader must know to trust the numbers.
      part: 'pictures', 'groups', 'reliability' or 'retrieval'.
      main: False for groups, reliability, and retrieval protocols after the first.
    """

    title: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]
    part: str = "pictures"
    main: bool = True


class Cost(NamedTuple):
    """A column of the table of costs."""

    key: str
    title: str
    scale: float
    digits: int


_COSTS = (
    Cost("parameters", "parameters (M)", 1e-6, 1),
    Cost("images", "images seen", 1.0, 0),
    Cost("seconds", "training (s)", 1.0, 0),
    Cost("training_tflop", "training (TFLOP)", 1.0, 1),
    Cost("face_seconds", "a face (s)", 1.0, 3),
    Cost("face_tflop", "a face (GFLOP)", 1e3, 1),
)


def cell(estimate: Estimate | None, digits: int, scale: float = 1.0, sign: str = "") -> Cell:
    """Returns a mean as text, with its interval or its standard deviation.

    `sign` is "+" if positive numbers shall have their sign.
    """
    if estimate is None:
        return Cell()

    def text_of(value: float) -> str:
        return f"{scale * value:{sign}.{digits}f}"

    spread = ""
    if estimate.low is not None and estimate.high is not None:
        spread = f"[{text_of(estimate.low)}, {text_of(estimate.high)}]"
    if estimate.sd is not None:
        spread = f"± {scale * estimate.sd:.{digits}f}"
    return Cell(text_of(estimate.mean), spread)


def _columns(rows: Rows, *, signed: bool) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Returns the head and the rows of a table: a column for each metric of any row."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    keys = sorted((key for key in keys if key not in _LEFT_OUT), key=place_of)
    head = []
    for key in keys:
        arrow = "\u00a0" + ("↑" if metric_of(key).higher_is_better else "↓")
        head.append(title_of(key) + ("" if signed else arrow))
    sign = "+" if signed else ""
    cells = []
    for name, row in rows.items():
        metrics = [(key, metric_of(key)) for key in keys]
        line = [cell(row.get(key), m.digits, m.scale, sign) for key, m in metrics]
        cells.append((name, line))
    return head, cells


def tables(results: Scored) -> list[Table]:
    """Returns all tables: depths, pictures, differences, retrieval, groups, reliability, costs."""
    parts = _depths(results) if results.depths else []
    if results.rows:
        title = f"Pictures: {counted(results)}"
        parts.append(Table(title, *_columns(results.rows, signed=False), picture_notes(results)))
    if results.differences:
        parts.append(_differences(results.differences, results.best, results.against))
    for embedder, protocols in results.retrieval.items():
        for place, (name, protocol) in enumerate(protocols.items()):
            of_protocol = _retrieval(protocol, embedder, name, results.against, main=place == 0)
            if not results.rows:  # else the table of pictures has these notes
                of_protocol[0].notes.extend(data_notes(results))
            parts += of_protocol
    parts += _groups(results.groups)
    if results.reliability:
        parts.append(_reliability(results.reliability))
    if results.costs:
        parts.append(_costs(results.costs))
    return parts


def _reliability(reliability: Mapping[str, Mapping[str, Reliability]]) -> Table:
    """Returns the table of how well the spread of samples tells their error."""
    rows = [
        (f"{method}: {name}", [cell(one.ratio, 2), Cell(f"{one.correlation:.2f}")])
        for method, of_method in reliability.items()
        for name, one in of_method.items()
    ]
    head = ["error / expected error", "rank correlation"]
    notes = [
        "expected is the spread of the samples; an honest model has 1, one that is too sure more",
        "the correlation of expected and true errors tells whether uncertain parts are known",
    ]
    return Table("Spread against error", head, rows, notes, part="reliability", main=False)


def _groups(groups: Mapping[str, Groups]) -> list[Table]:
    """Returns a table for each attribute by which faces are grouped."""
    rows: dict[str, Rows] = {}
    for method, attributes in groups.items():
        for attribute, of_attribute in attributes.items():
            for name, group in of_attribute.items():
                title = f"{method}: {name} ({len(group.subjects)} people)"
                rows.setdefault(attribute, {})[title] = group.metrics
    notes = [f"groups of fewer than {LEAST_PEOPLE} people are left out"]
    tone = "skin tone is the individual typology angle of the true faces, light included"
    return [
        Table(
            f"By {attribute}",
            *_columns(of_attribute, signed=False),
            notes + ([tone] if attribute == "skin tone" else []),
            part="groups",
            main=False,
        )
        for attribute, of_attribute in rows.items()
    ]


def overview(results: Scored) -> Table:
    """Returns what one reads first: recall@1 and the main metrics, a row for each method.

    Recall is that of the first protocol, by each embedder; matchers compare by themselves.
    """
    # Recall.
    columns: dict[str, dict[str, Cell]] = {}
    of_recall = []
    for embedder, protocols in results.retrieval.items():
        name, protocol = next(iter(protocols.items()))
        rows = {row: m["recall@1"] for row, m in protocol.rows.items() if "recall@1" in m}
        columns[f"recall@1, {embedder}\u00a0↑"] = {row: cell(m, 3) for row, m in rows.items()}
        chance = (protocol.chance or {}).get("recall@1")
        words = "" if chance is None else f"; chance {chance:.3f}"
        of_recall.append(f"recall@1: {name}, methods that make no face by themselves{words}")

    # Pictures.
    mains = {
        row: {key: m for key, m in metrics.items() if metric_of(key).main and "/head" not in key}
        for row, metrics in results.rows.items()
    }
    head, rows_of_pictures = _columns(mains, signed=False)
    for place, title in enumerate(head):
        columns[title] = {row: cells[place] for row, cells in rows_of_pictures}
    # Methods in their order, then the controls.
    shown = (name for column in columns.values() for name in column)
    names = dict.fromkeys([*(results.costs or ()), *shown])
    return Table(
        f"Overview: {counted(results)}",
        list(columns),
        [(name, [column.get(name, Cell()) for column in columns.values()]) for name in names],
        ["95 % intervals over people", *data_notes(results), *dict.fromkeys(of_recall)],
    )


def _depths(results: Scored) -> list[Table]:
    """Returns the tables of errors in millimetres."""
    depths = results.depths
    assert depths
    people = f"{depths.images} X-rays of {depths.subjects} real people"
    parts = []
    for title, rows, sign in (
        (f"Depth of soft tissue, error in mm: {people}", depths.rows, ""),
        ("Against the rivals, in mm", depths.differences, "+"),
    ):
        if not rows:
            continue
        sites = list(next(iter(rows.values())))
        cells = [(name, [cell(row[s], 2, sign=sign) for s in sites]) for name, row in rows.items()]
        parts.append(Table(title, sites, cells, []))
    notes = ["mean absolute errors over people with 95 % intervals of resampling people"]
    notes.append(
        "depths run from a landmark on bone towards the true one on skin, at the A point to the "
        "nearest skin within 30 degrees"
    )
    notes.append("the rivals know the depths of all other people; their landmarks are true ones")
    if OUTLINE in depths.rows:
        notes.append(f"{OUTLINE}: of the head in the X-ray, before a face is made of it")
    if depths.masked:
        notes.append("soft tissue is hidden in these X-rays, as if the skulls were dry")
    if depths.unknown:
        notes.append(f"prompts of {depths.unknown} name an assumed sex or age")
    parts[0].notes.extend(notes)
    if depths.differences:
        parts[1].notes.append("paired by subject; an interval that excludes 0 is a difference")
    return parts


def _retrieval(
    protocol: Retrieval, embedder: str, name: str, against: str, *, main: bool
) -> list[Table]:
    """Returns the table of a protocol, and that of its differences if it has some."""
    head, rows = _columns(protocol.rows, signed=False)
    title = f"Retrieval, {embedder}, {name}"
    found = [Table(title, head, rows, _retrieval_notes(protocol, name), "retrieval", main)]
    if protocol.differences:
        title = f"{against}, {embedder}, {name}"
        table = _differences(protocol.differences, protocol.best, title)
        found.append(table._replace(part="retrieval", main=main))
    return found


def _retrieval_notes(protocol: Retrieval, name: str) -> list[str]:
    view, size = name.split("/")
    view_words = "of the same view" if view == "same" else "of any view"
    size_words = "all" if size == "all" else "one"
    notes = [
        f"gallery of {protocol.gallery} real faces, of which a query sees {protocol.seen} "
        f"({view_words}, {size_words} of each subject); ties count against the query"
    ]
    if protocol.chance is not None:
        values = ", ".join(f"{key} {value:.3f}" for key, value in protocol.chance.items())
        notes.append(f"chance: {values}")
    if protocol.against is not None:
        values = ", ".join(
            f"{key} {v.mean:+.3f} [{v.low:+.3f}, {v.high:+.3f}], p = {v.p:.2g}"
            for key, v in protocol.against.items()
            if key.startswith("recall")
        )
        notes.append(f"against shuffled X-rays: {values} (subjects' signs flipped at random)")
    if "recall@1" in next(iter(protocol.rows.values()), ()):
        notes.append("mAP@1 and MRR@1 are recall@1")
    return notes


def _costs(costs: Mapping[str, Mapping[str, float]]) -> Table:
    rows = []
    for name, cost in costs.items():
        cells = [
            Cell(f"{cost[c.key] * c.scale:.{c.digits}f}") if c.key in cost else Cell()
            for c in _COSTS
        ]
        rows.append((name, cells))
    note = (
        "one seed; operations of matrix products and convolutions; seconds are those of "
        "the machine it ran on"
    )
    return Table("Cost", [c.title for c in _COSTS], rows, [note])


def _differences(rows: Rows, best: Mapping[str, str] | None, against: str) -> Table:
    notes = ["paired by subject; an interval that excludes 0 is a difference"]
    if best:
        names = (
            f"{title_of(key)} {name}"
            for key, name in best.items()
            if not key.startswith(("map@", "mrr@"))
        )
        notes.append(f"the best baseline: {', '.join(names)}")
    return Table(f"Against {against}", *_columns(rows, signed=True), notes)


def counted(results: Scored) -> str:
    """Returns how many pictures were scored, and of how many subjects if they are known."""
    if results.unpaired:
        return f"{results.images} generated, {results.reference_images} real"
    return f"{results.images} of {results.subjects} subjects"


def data_notes(results: Scored) -> list[str]:
    """Returns what a reader must know about the people and X-rays that were scored."""
    notes = []
    if results.split != "test":
        notes.append(f"these are {results.split} people, on whom settings may be chosen")
    if results.synthetic:
        notes.append(
            f"{results.synthetic} of the {results.images} faces compared with are synthetic, "
            "not photographs"
        )
    if results.radiograph:
        notes.append(f"X-rays were varied (evaluate.radiograph={results.radiograph:g})")
    if isinstance(results, Comparison):
        others = results.other_xrays.items()
        notes += [f"{name}: X-rays of {data}, of the same people" for name, data in others]
    return notes


def picture_notes(results: Scored) -> list[str]:
    """Returns what a reader must know about the table of pictures."""
    notes = [
        "means over subjects with 95 % intervals of resampling subjects; ± is a standard deviation "
        "over subsets or splits"
    ]
    if results.unpaired:
        notes = [results.unpaired, "± is a standard deviation over subsets or splits"]
    notes += [*data_notes(results), results.resizing]
    notes += [f"{name}: SHA-256 {digest[:12]}" for name, digest in results.networks.items()]
    needs = results.not_computed.items()
    return notes + [f"{name}: not computed, needs {files}" for name, files in needs]


def write(results: Scored, folder: pathlib.Path) -> None:
    """Writes table.md and table.tex."""
    for name, content in (("table.md", markdown(results)), ("table.tex", latex(results))):
        with whole_file(folder / name) as file:
            file.write(content)


def _joined(c: Cell) -> str:
    return f"{c.value} {c.spread}".strip()


def _lines(table: Table) -> list[list[str]]:
    """Returns the words of the head and of each row."""
    head = ["", *table.head]
    return [head, *([name, *map(_joined, cells)] for name, cells in table.rows)]


def text(results: Scored) -> str:
    """Returns the main tables for a terminal, in aligned columns."""
    parts = []
    for table in (table for table in tables(results) if table.main):
        lines = _lines(table)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        notes = [f"  {note}" for note in table.notes]
        parts.append("\n".join([table.title, *body, *notes]) + "\n")
    return "\n".join(parts)


def markdown(results: Scored) -> str:
    """Returns all tables in Markdown."""
    parts = []
    for table in tables(results):
        head, *rows = _lines(table)
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "\n".join(f"- {note}" for note in table.notes)
        parts.append(f"**{table.title}**\n\n{body}\n\n{notes}\n")
    return "\n".join(parts)


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "é": r"\'e",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\u00a0": "~",
} | {mark: "\\" + mark for mark in "&%_#${}"}


def _escaped(words: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in words)


def latex(results: Scored) -> str:
    """Returns all tables in LaTeX, for the packages booktabs and graphicx."""
    parts = []
    for table in tables(results):
        lines = [" & ".join(map(_escaped, ["", *table.head])) + r" \\ \midrule"]
        for name, cells in table.rows:
            words = [
                f"{c.value} {{\\scriptsize {_escaped(c.spread)}}}" if c.spread else c.value
                for c in cells
            ]
            lines.append(" & ".join([_escaped(name), *words]) + r" \\")
        body = "\n".join(lines)
        caption = f"{_escaped(table.title)}. {_escaped('; '.join(table.notes))}."
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n"
            "\\resizebox{\\linewidth}{!}{%\n"
            f"\\begin{{tabular}}{{l{'r' * len(table.head)}}}\n\\toprule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}}}\n\\end{{table}}\n"
        )
    return "\n".join(parts)


def web(results: Scored, part: str, *, more: str = "", whole: bool = True) -> str:
    """Returns HTML of the tables of a part, each with a heading and its notes.

    Tables that are not main are folded away, with `more` behind them. All are if not `whole`.
    """
    of_part = [table for table in tables(results) if table.part == part]
    shown = [web_table(table) for table in of_part if table.main and whole]
    folded = [web_table(table) for table in of_part if not (table.main and whole)]
    if not folded:
        return "".join(shown)
    summary = "Other protocols" if shown else _FOLDED[part]
    folded_away = f"<details><summary>{summary}</summary>{''.join(folded)}{more}</details>"
    return f"{''.join(shown)}{folded_away}"


def web_table(table: Table) -> str:
    """Returns HTML of a table, with its heading and its notes."""
    # Names of networks are long, and may be broken after an underscore.
    titles = (html.escape(words).replace("_", "_<wbr>") for words in ["", *table.head])
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = ""
    for name, cells in table.rows:
        values = "".join(
            f"<td>{html.escape(c.value)} <span class=interval>{html.escape(c.spread)}</span></td>"
            for c in cells
        )
        body += f"<tr><td>{html.escape(name)}</td>{values}</tr>"
    notes = "<br>".join(html.escape(note) for note in table.notes)
    return (
        f"<h2>{html.escape(table.title)}</h2>"
        f"<div class=wide><table><tr>{head}</tr>{body}</table></div><p class=small>{notes}</p>"
    )
