"""report.md: the report for a person who reads a repository or a ticket."""

from __future__ import annotations

from collections.abc import Mapping

from qconvert.reports.record import Report
from qconvert.reports.tables import Table, all_tables


def to_markdown(report: Report, pictures: Mapping[str, str]) -> str:
    """The whole report in GitHub's Markdown; `pictures` are files beside it by their title."""
    machine = report.environment
    lines = [
        f"# {report.name}: float against int8",
        "",
        f"**{report.verdict}.** {report.created}; {machine.cpu}, {machine.cores} cores"
        f"{'' if machine.vnni else ', no VNNI'}; qconvert {machine.qconvert}, "
        f"torch {machine.torch}.",
        "",
    ]
    for table in all_tables(report):
        lines += [f"## {table.title}", "", *_rows(table), ""]
        if table.note:
            lines += [table.note + ".", ""]
    for title, file in pictures.items():
        lines += [f"## {title}", "", f"![{title}]({file})", ""]
    if report.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in report.notes), ""]
    return "\n".join(lines)


def _rows(table: Table) -> list[str]:
    def row(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    other = " --- " if table.words else " ---: "
    rule = "|" + "|".join([" --- "] + [other] * (len(table.columns) - 1)) + "|"
    return [row(table.columns), rule, *(row(cells) for cells in table.rows)]
