"""Write a report of finished sweeps as HTML and Markdown: figures, tables, and the findings in words."""

from collections.abc import Sequence
from pathlib import Path

from kvexp.cli import say
from kvexp.cli.commands._parser import SWEEPS, Parser
from kvexp.errors import ConfigError, KvexpError
from kvexp.results import load
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.plan import count_planned
from kvexp.results.row_file import make_folder


def main(argv: Sequence[str]) -> int:
    """Write the report and return 0.

    Raises:
        ConfigError: A sweep or a folder cannot be used.
    """
    parser = Parser("kvexp report", description=__doc__)
    parser.add_argument("sweeps", nargs="*", type=Path, metavar="SWEEP", help=SWEEPS)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where report.html and report.md go; default: the sweep's folder",
    )
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="also write every figure as PNG and SVG there"
    )
    typed = parser.parse_args(argv)
    last = sweep_folder.find_last(Path("multirun"), with_rows=True)
    rows = load.read(typed.sweeps, Path("multirun"))
    from kvexp.report.render import write_report  # here, since it takes matplotlib a second to import

    try:
        for folder in filter(None, (typed.output, typed.figures)):
            make_folder(folder)
        sweeps = typed.sweeps or [last]
        folder = typed.output or _choose_folder(sweeps)
        page = write_report(rows, folder, typed.figures, count_planned(sweeps, rows))
    except (KvexpError, OSError) as error:
        raise ConfigError(str(error)) from error
    say(f"{page}\n{page.with_suffix('.md')}\n")
    return 0


def _choose_folder(sweeps: Sequence[Path]) -> Path:
    """Return the folder of a single sweep, else report/ in the current folder."""
    if len(sweeps) > 1:
        return Path("report")
    return sweeps[0] if sweeps[0].is_dir() else sweeps[0].parent
