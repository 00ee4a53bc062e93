"""Write the points of finished sweeps as CSV, parquet or JSON, one row each."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kvexp.cli import say, write
from kvexp.cli.commands._parser import SWEEPS, Parser
from kvexp.errors import ConfigError, KvexpError
from kvexp.host import plain_file
from kvexp.results import export, load
from kvexp.results.row_file import make_folder


def main(argv: Sequence[str]) -> int:
    """Write the file and return 0.

    Raises:
        ConfigError: A sweep or the file cannot be used, or the format is not clear.
    """
    parser = Parser("kvexp export", description=__doc__)
    parser.add_argument("sweeps", nargs="*", type=Path, metavar="SWEEP", help=SWEEPS)
    parser.add_argument(
        "--format", choices=export.FORMATS, help="default: what the file's name ends with, or csv"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: stdout, but not for parquet")
    typed = parser.parse_args(argv)
    kind = typed.format or _choose_format(typed.output)
    if kind == "parquet" and typed.output is None:
        raise ConfigError("export: --format parquet is binary; name a file with --output")
    content = export.encode(load.read(typed.sweeps, Path("multirun")), kind)
    if typed.output is None:
        (say if sys.stdout.isatty() else write)(content.decode())
        return 0
    try:
        make_folder(typed.output.parent)
        plain_file.replace(typed.output, content)
    except (KvexpError, OSError) as error:
        raise ConfigError(f"export: cannot write {typed.output}: {error}") from error
    say(f"{typed.output}\n")
    return 0


def _choose_format(output: Path | None) -> str:
    if output is None:
        return "csv"
    kind = output.suffix.removeprefix(".")
    if kind not in export.FORMATS:
        raise ConfigError(
            f"export: {output} names no format; end it with .{', .'.join(export.FORMATS)}, or add --format"
        )
    return kind
