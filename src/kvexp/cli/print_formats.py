"""Print a table for a terminal, for Markdown or, as JSON, for programs."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from kvexp.cli import say
from kvexp.report import PrintableConsole

FORMATS = ("table", "json", "markdown")
DASH = "–"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses one of FORMATS."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(
    headings: Mapping[str, str],
    rows: Sequence[Sequence[str]],
    form: str,
    styles: Mapping[str, str] | None = None,
) -> None:
    """Print a table for a terminal, or as Markdown.

    Args:
        headings: Each column's heading, and `left`, `right` or, where a cell may have several lines, `fold`.
        rows: Their cells.
        form: One of FORMATS without json.
        styles: The style of a row by its first cell, for a terminal.
    """
    if form == "markdown":
        marks = ["---:" if kind == "right" else "---" for kind in headings.values()]
        for cells in ([*headings], marks, *rows):
            say(f"| {' | '.join(map(_escape, cells))} |\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading, kind in headings.items():
        if kind == "fold":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right" if kind == "right" else "left", no_wrap=True)
    for first, *others in rows:  # Text, not str: rich would take [...] in a label for markup
        table.add_row(Text(first, (styles or {}).get(first, "")), *map(Text, others))
    PrintableConsole().print(table)


def print_line(text: str, form: str) -> None:
    """Print a line below a table."""
    say(f"{chr(10) * (form == 'markdown')}{text}\n")


def _escape(cell: str) -> str:
    """Return a cell on one line, without what Markdown would read."""
    for letter in "\\|<*`[":
        cell = cell.replace(letter, f"\\{letter}")
    return " ".join(cell.split())
