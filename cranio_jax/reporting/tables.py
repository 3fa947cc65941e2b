"""Results as tables: for a terminal, Markdown, LaTeX and HTML, all from the same cells."""

import html
from typing import Any, NamedTuple

# By the first word of a metric's name: title, whether more is better, digits.
_METRICS = {
    "psnr": ("PSNR (dB)", True, 2),
    "ssim": ("SSIM", True, 3),
    "ms-ssim": ("MS-SSIM", True, 3),
    "lpips": ("LPIPS", False, 3),
    "arcface": ("ArcFace cosine", True, 3),
    "identity": ("identity cosine", True, 3),
    "fid": ("FID", False, 1),
    "kid": ("KID x 1000", False, 2),
    "inception score": ("Inception score", True, 2),
    "frechet": ("Fréchet distance", False, 3),
    "kernel": ("kernel distance x 1000", False, 2),
    "recall@": ("recall@", True, 3),
    "map@": ("mAP@", True, 3),
    "mrr@": ("MRR@", True, 3),
    "d_prime": ("d'", True, 2),
    "eer": ("EER", False, 3),
}


class Cell(NamedTuple):
    """A number and how sure it is, as text; both empty where there is none."""

    value: str = ""
    spread: str = ""


class Table(NamedTuple):
    """Rows under a head; `notes` say what a reader must know to trust them; `part` is 'pictures' or 'retrieval'.

    Where a protocol of retrieval is not the first, the table is not `main`.
    """

    title: str
    head: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]
    part: str
    main: bool


def describe(metric: str) -> tuple[str, bool, int]:
    """`(title, more is better, digits)` of a metric: its words, and in brackets the network or what it is of."""
    name, _, of = metric.partition("/")
    if "@" in name:
        name, of = name[: name.index("@") + 1], name[name.index("@") + 1 :]
        title, better, digits = _METRICS[name]
        return title + of, better, digits
    title, better, digits = _METRICS[name]
    return f"{title}, {of}" if of else title, better, digits


def cell(value: dict[str, float] | None, digits: int, scale: float = 1.0, sign: str = "") -> Cell:
    """A mean with its interval `low`, `high`, or its standard deviation `sd`."""
    if value is None:
        return Cell()
    form = lambda v: f"{scale * v:{sign}.{digits}f}"
    spread = f"[{form(value['low'])}, {form(value['high'])}]" if "low" in value else ""
    spread = f"± {scale * value['sd']:.{digits}f}" if "sd" in value else spread
    return Cell(form(value["mean"]), spread)


def _table(
    title: str,
    rows: dict[str, dict[str, dict[str, float]]],
    notes: list[str],
    sign: str = "",
    part: str = "pictures",
    main: bool = True,
) -> Table:
    metrics = [
        metric
        for metric in dict.fromkeys(m for row in rows.values() for m in row)
        if metric not in ("map@1", "mrr@1")
    ]
    metrics.sort(
        key=lambda m: list(_METRICS).index(
            next(k for k in _METRICS if m.split("/")[0] == k or ("@" in k and m.startswith(k)))
        )
    )
    arrow = lambda better: "↑" if better else "↓"
    head, cells = [], {name: [] for name in rows}
    for metric in metrics:
        words, better, digits = describe(metric)
        head.append(words if sign else f"{words}\u00a0{arrow(better)}")
        for name, row in rows.items():
            cells[name].append(
                cell(row.get(metric), digits, 1000.0 if "x 1000" in words else 1.0, sign)
            )
    return Table(title, head, list(cells.items()), notes, part, main)


def tables(results: dict[str, Any]) -> list[Table]:
    """All tables of an evaluation: pictures, differences to the controls, and each embedder's and protocol's retrieval."""
    found = []
    if results["rows"]:
        found.append(
            _table(f"Pictures: {counted(results)}", results["rows"], picture_notes(results))
        )
    if results["differences"]:
        found.append(_differences(results, results.get("against", "the controls")))
    for embedder, protocols in results["retrieval"].items():
        for i, (protocol, part) in enumerate(protocols.items()):
            view, size = protocol.split("/")
            words = f"{'of the same view' if view == 'same' else 'of any view'}, {'all' if size == 'all' else 'one'} of each subject"
            notes = [
                f"gallery of {part['gallery']} real faces, of which a query sees {part['seen']} ({words}); ties count against the query"
            ]
            if "chance" in part:
                notes.append(
                    "chance: " + ", ".join(f"{m} {v:.3f}" for m, v in part["chance"].items())
                )
            if "against" in part:
                against = ", ".join(
                    f"{m} {v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}], p = {v['p']:.2g}"
                    for m, v in part["against"].items()
                    if m.startswith("recall")
                )
                notes.append(f"against shuffled X-rays: {against} (signs of subjects drawn anew)")
            if "recall@1" in next(iter(part["rows"].values()), ()):
                notes.append("mAP@1 and MRR@1 are recall@1")
            found.append(
                _table(
                    f"Retrieval, {embedder}, {protocol}",
                    part["rows"],
                    notes,
                    part="retrieval",
                    main=i == 0,
                )
            )
            if part.get("differences"):
                title = f"{results['against']}, {embedder}, {protocol}"
                found.append(_differences(part, title)._replace(part="retrieval", main=i == 0))
    if results.get("costs"):
        rows = [(name, [Cell(f"{cost[key] * scale:.{digits}f}") if key in cost else Cell() for key, _, scale, digits in _COSTS])
                for name, cost in results["costs"].items()]  # fmt: skip
        notes = [
            "of one seed; operations are counted, of products and convolutions; seconds are those of the machine it ran on"
        ]
        found.append(
            Table("Cost", [title for _, title, *_ in _COSTS], rows, notes, "pictures", True)
        )
    return found


# What a training costs: key, title, scale, digits.
_COSTS = (
    ("parameters", "parameters (M)", 1e-6, 1),
    ("images", "images seen", 1.0, 0),
    ("seconds", "training (s)", 1.0, 0),
    ("training_tflop", "training (TFLOP)", 1.0, 1),
    ("face_seconds", "a face (s)", 1.0, 3),
    ("face_tflop", "a face (GFLOP)", 1e3, 1),
)


def _differences(part: dict[str, Any], against: str) -> Table:
    notes = ["paired by subject; an interval that does not hold 0 is a difference"]
    if part.get("best"):
        notes.append(
            "the best baseline: "
            + ", ".join(
                f"{describe(m)[0]} {name}"
                for m, name in part["best"].items()
                if m[:4] not in ("map@", "mrr@")
            )
        )
    return _table(f"Against {against}", part["differences"], notes, "+")


def counted(results: dict[str, Any]) -> str:
    """Returns how many pictures were scored, and of how many subjects if pictures have such."""
    if "unpaired" in results:
        return f"{results['images']} generated, {results['reference_images']} real"
    return f"{results['images']} of {results['subjects']} subjects"


def picture_notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know of the table of pictures."""
    notes = [
        "means over subjects with 95 % intervals of resampling subjects; ± is a standard deviation over subsets or splits"
    ]
    if "unpaired" in results:
        notes = [results["unpaired"], "± is a standard deviation over subsets or splits"]
    notes.append(results["resizing"])
    for what, digest in results["networks"].items():
        notes.append(f"{what}: SHA-256 {digest[:12]}")
    return notes + [
        f"{name}: not computed, needs {needs}" for name, needs in results["not_computed"].items()
    ]


def _joined(c: Cell) -> str:
    return f"{c.value} {c.spread}".strip()


def text(results: dict[str, Any]) -> str:
    """For a terminal: the main tables, in aligned columns."""
    parts = []
    for table in (table for table in tables(results) if table.main):
        lines = [["", *table.head], *([name, *map(_joined, cells)] for name, cells in table.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        parts.append("\n".join([table.title, *body, *(f"  {note}" for note in table.notes)]) + "\n")
    return "\n".join(parts)


def markdown(results: dict[str, Any]) -> str:
    """Markdown."""
    parts = []
    for table in tables(results):
        lines = [["", *table.head], ["---"] * (len(table.head) + 1)]
        lines += [[name, *map(_joined, cells)] for name, cells in table.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(
            f"**{table.title}**\n\n{body}\n\n"
            + "\n".join(f"- {note}" for note in table.notes)
            + "\n"
        )
    return "\n".join(parts)


def latex(results: dict[str, Any]) -> str:
    """LaTeX, for the packages booktabs and graphicx."""

    special = {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "é": r"\'e",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "\u00a0": "~",
    }
    special |= {mark: "\\" + mark for mark in "&%_#${}"}
    escape = lambda words: "".join(special.get(mark, mark) for mark in words)

    parts = []
    for table in tables(results):
        lines = [" & ".join(map(escape, ["", *table.head])) + r" \\ \midrule"]
        for name, cells in table.rows:
            parts_of = [
                f"{c.value} {{\\scriptsize {escape(c.spread)}}}" if c.spread else c.value
                for c in cells
            ]
            lines.append(" & ".join([escape(name), *parts_of]) + r" \\")
        notes = escape("; ".join(table.notes))
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{escape(table.title)}. {notes}.}}\n\\resizebox{{\\linewidth}}{{!}}{{%\n"
            f"\\begin{{tabular}}{{l{'r' * len(table.head)}}}\n\\toprule\n"
            + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}}\n\\end{table}\n"
        )
    return "\n".join(parts)


def web(results: dict[str, Any], part: str) -> str:
    """HTML of the tables of a part: a heading, a table and its notes for each; what is not main is folded away."""
    shown, folded = "", ""
    for table in (table for table in tables(results) if table.part == part):
        titles = (
            html.escape(words).replace("_", "_<wbr>") for words in ["", *table.head]
        )  # names of networks are long
        head = "".join(f"<th>{title}</th>" for title in titles)
        body = ""
        for name, cells in table.rows:
            values = "".join(
                f"<td>{html.escape(c.value)} <span class=interval>{html.escape(c.spread)}</span></td>"
                for c in cells
            )
            body += f"<tr><td>{html.escape(name)}</td>{values}</tr>"
        notes = "<br>".join(html.escape(note) for note in table.notes)
        made = f"<h2>{html.escape(table.title)}</h2><div class=wide><table><tr>{head}</tr>{body}</table></div><p class=small>{notes}</p>"
        shown, folded = (shown + made, folded) if table.main else (shown, folded + made)
    return shown + (
        f"<details><summary>Other protocols</summary>{folded}</details>" if folded else ""
    )
