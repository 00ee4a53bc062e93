"""Print the history of a baseline, a line for each point, and draw it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kvexp.cli import print_formats
from kvexp.cli.print_formats import DASH
from kvexp.errors import ConfigError
from kvexp.report import number
from kvexp.results.history import Line, Revision

_HEADINGS = {
    "curve": "fold",
    "device": "fold",
    "num_tokens": "right",
    "first (µs)": "right",
    "last (µs)": "right",
    "last / first": "right",
    "changed at": "fold",
}
_KINDS = (".svg", ".png", ".pdf")


def print_history(revisions: Sequence[Revision], lines: Sequence[Line], form: str) -> None:
    """Print each point with the commits at which it changed, then the commits."""
    commits = [{"commit": one.commit, "date": one.date, "subject": one.subject} for one in revisions]
    if form == "json":
        print_formats.print_json({"revisions": commits, "points": [asdict(line) for line in lines]})
        return
    print_formats.print_table(_HEADINGS, [_format(line) for line in lines], form)
    for one in commits:
        print_formats.print_line(" ".join(one.values()), form)


def draw(revisions: Sequence[Revision], lines: Sequence[Line], file: Path) -> None:
    """Draw the history into a file.

    Raises:
        ConfigError: It cannot be written.
    """
    from kvexp.report.history_figure import draw_history, save  # imports matplotlib

    try:
        save(draw_history([revision.commit for revision in revisions], lines), file)
    except OSError as error:
        raise ConfigError(f"cannot write {file} ({error.strerror or error})") from error


def parse_file(text: str) -> Path:
    """Return the file of a figure.

    Raises:
        ConfigError: Its name does not say which kind of figure.
    """
    if Path(text).suffix not in _KINDS:
        raise ConfigError(f"--figure must end in {', '.join(_KINDS[:-1])} or {_KINDS[-1]}, not {text!r}")
    return Path(text)


def _format(line: Line) -> tuple[str, ...]:
    known = [number(latency) for latency in line.latencies_us if latency is not None] or [DASH]
    changes = (f"{one.commit} {one.word}{f' {one.ratio:.3f}' if one.ratio else ''}" for one in line.changes)
    ratio = f"{line.ratio:.3f}" if line.ratio else DASH
    return (
        *(line.label, line.device_name, f"{line.num_tokens:,}"),
        *(known[0], known[-1], ratio, ", ".join(changes) or "never"),
    )
