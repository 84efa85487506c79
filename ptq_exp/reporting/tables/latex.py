"""The result table as LaTeX with the package booktabs, to be included in a table environment of a paper."""

from collections.abc import Iterable, Iterator

from ptq_exp.reporting.tables import TableContent
from ptq_exp.results.comparison import Width, by_width, significantly_best
from ptq_exp.results.series import Row, Rows, number, seed_note

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",
}  # fmt: skip
PREAMBLE = (
    r"Needs \usepackage{booktabs}. Include it with \input{table} between \begin{table} and \end{table}.",
    "Bits per weight are stored bits and include the sign.",
)
BOLD = (
    "Bold: significantly better than every other line with the same bits (paired tests on the same test images; every "
    "95 % interval of a difference excludes zero)."
)
FLOAT_BITS = "32"


def latex(content: TableContent) -> str:
    r"""A `tabular`: one line per method and bit width, with mean \pm sample standard deviation over seeds.

    The lines are grouped by their bits if there are several methods. The best top-1 of a group is bold if it is
    significantly better than every other one.
    """
    rows = content.rows
    best = [] if content.unfold else [id(row) for _, row in significantly_best(rows)]
    names = {label: label.removeprefix("quant=") if _only_methods(rows) else label for label in rows}
    columns = _columns(rows)
    comments = [content.title, *PREAMBLE, seed_note(rows, intervals=False), BOLD if best else ""]
    comments += [f"Failed: quant.bits={failure.bits} {failure.overrides}" for failure in content.failures]
    body = [line(cells.get(key, "") for key in columns) for cells in _floats(rows, names)]
    for group in _groups(rows):
        found = [_cells(names[label], row, id(row) in best) for label, row in group]
        body += [r"\midrule", *(line(cells.get(key, "") for key in columns) for cells in found)]
    return tabular(comments, "".join("l" if key == "method" else "r" for key in columns), _headings(columns), body)


def tabular(comments: list[str], alignment: str, headings: list[str], body: list[str]) -> str:
    """A table with the rules of booktabs, after lines of comments."""
    return "\n".join([
        *("% " + " ".join(comment.split()) for comment in comments if comment),
        rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", *headings, r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}", "",
    ])  # fmt: skip


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """Text with the characters escaped that mean something to LaTeX. Characters that it cannot show become ?."""
    return "".join(SPECIAL.get(letter, letter if letter.isprintable() and letter <= "ÿ" else "?") for letter in text)


def _only_methods(rows: Rows) -> bool:
    return all(label.startswith("quant=") and " " not in label for label in rows)


def _columns(rows: Rows) -> dict[str, tuple[str, str]]:
    """The headings by key, each in two lines: the quantity and its unit."""
    named = list(rows) not in ([], [""])
    columns = {"method": ("method" if _only_methods(rows) else "setting", "")} if named else {}
    columns["bits"] = ("bits per", "weight")
    if any(row.mean.act_bits for group in rows.values() for row in group):
        columns["act_bits"] = ("activation", "bits")
    return columns | {
        "top1": ("top-1", r"(\%)"), "drop": ("drop", "(points)"), "agreement": ("agreement", r"(\%)"),
        "size": ("size", "(kB)"),
    }  # fmt: skip


def _headings(columns: dict[str, tuple[str, str]]) -> list[str]:
    return [line(heading[number] for heading in columns.values()) for number in (0, 1)]


def _groups(rows: Rows) -> Iterator[list[tuple[str, Row]]]:
    """The lines between two rules: those of a bit width, or all lines of a single method."""
    groups: dict[Width, list[tuple[str, Row]]] = by_width(rows)
    if len(rows) > 1:
        yield from groups.values()
    else:
        yield [line for lines in groups.values() for line in lines]


def _floats(rows: Rows, names: dict[str, str]) -> list[dict[str, str]]:
    """Each float network once."""
    found: dict[tuple[str, str], str] = {}
    for label, group in rows.items():
        for row in group[:1]:
            std = row.std("top1_float") or None
            size = f"{row.mean.size_bytes_float / 1000:.1f}"
            found.setdefault((_number(row.mean.top1_float, std), size), names[label])
    several = len(found) > 1
    return [
        {"method": f"float, {escaped(label)}" if several else "float", "bits": FLOAT_BITS, "top1": top1, "size": size}
        for (top1, size), label in found.items()
    ]  # fmt: skip


def _cells(name: str, row: Row, bold: bool) -> dict[str, str]:
    mean = row.mean
    return {
        "method": escaped(name),
        "bits": number(mean.bits_mean),
        "act_bits": str(mean.act_bits or FLOAT_BITS),
        "top1": _number(mean.top1, row.std("top1"), bold=bold),
        "drop": _number(mean.top1_drop, row.std("top1_drop"), "+.2f"),
        "agreement": _number(mean.agreement, row.std("agreement")),
        "size": f"{mean.size_bytes / 1000:.1f}",
    }


def _number(value: float, std: float | None, form: str = ".2f", bold: bool = False) -> str:
    shown = rf"\mathbf{{{value:{form}}}}" if bold else f"{value:{form}}"
    return f"${shown}$" if std is None else rf"${shown} \pm {std:.2f}$"
