"""Show what became faster, slower, broken or missing between two sweeps, or between two values of one.

kvexp compare BASELINE CANDIDATE compares two sweeps, or two folders of sweeps. The processes of a side (a
sweep with repeat=5) are judged by their scatter; what shifts a whole sweep only several sweeps a side show.
kvexp compare [SWEEP ...] --axis impl --baseline triton --candidate cuda compares two values of a column, such
as impl, layout or device_name, within one sweep or several.
kvexp compare --history [REVISION[:PATH]] follows each point of baselines/ through the commits that wrote
them; --figure FILE draws that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kvexp.cli import comparison_table, history_table, print_formats, row_source
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError
from kvexp.measurement import Row
from kvexp.results import compare, history, load
from kvexp.results.labels import DEVICE, TOGETHER

Rows = Sequence[Row]


def main(argv: Sequence[str]) -> int:
    """Return 1 where a point has one of the verdicts of --fail-on, else 0.

    Raises:
        ConfigError: What was typed is wrong, or the two cannot be compared.
    """
    typed = _parse(argv)
    if typed.history:
        return _show_history(typed)
    if typed.figure:
        raise ConfigError("compare: --figure draws what --history finds; type that beside it")
    baseline, candidate, ignored = _read_sides(typed)
    points = compare.compare(
        baseline,
        candidate,
        ignored=ignored,
        across=typed.across or typed.axis == DEVICE,
        tolerance=typed.tolerance,
        in_one_sweep=typed.axis not in (None, DEVICE),
    )
    comparison_table.print_points(points, typed.format)
    return comparison_table.exit_code(points, typed.fail_on)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "kvexp compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=row_source.POSSIBLE)
    parser.add_argument("--axis", help="the column to compare two values of; SWEEP is the last by default")
    parser.add_argument("--baseline", metavar="VALUE", help="with --axis: the value to compare with")
    parser.add_argument("--candidate", metavar="VALUE", help="with --axis: the value to judge")
    parser.add_argument("--history", action="store_true", help="follow baselines/ through its commits")
    parser.add_argument(
        "--figure", type=history_table.parse_file, metavar="FILE", help="with --history: a .svg, .png or .pdf"
    )
    print_formats.add_flag(parser)
    comparison_table.add_flags(parser)
    return parser.parse_args(argv)


def _show_history(typed: argparse.Namespace) -> int:
    if typed.axis or typed.baseline or typed.candidate or len(typed.sweeps) > 1:
        raise ConfigError(
            "compare: --history takes one git revision, alone or as REVISION:PATH, and no --axis"
        )
    revisions = row_source.read_history(*typed.sweeps or ["HEAD"])
    lines = history.trace(revisions, typed.tolerance)
    history_table.print_history(revisions, lines, typed.format)
    if typed.figure:
        history_table.draw(revisions, lines, typed.figure)
    return 0


def _read_sides(typed: argparse.Namespace) -> tuple[Rows, Rows, Sequence[str]]:
    """Return the baseline's rows, the candidate's, and the columns in which they may differ."""
    if typed.axis is None:
        if len(typed.sweeps) != 2 or typed.baseline or typed.candidate:
            raise ConfigError("compare: name two sweeps, or one and --axis with --baseline and --candidate")
        first, second = map(row_source.read, typed.sweeps)
        return first, second, ()
    if not (typed.baseline and typed.candidate):
        raise ConfigError(f"compare: --axis {typed.axis} needs two values, --baseline and --candidate")
    named = [row for sweep in typed.sweeps for row in row_source.read(sweep)]
    rows = named if typed.sweeps else load.read([], Path("multirun"))
    first, second = (
        compare.select_value(rows, typed.axis, value) for value in (typed.baseline, typed.candidate)
    )
    return first, second, (typed.axis, *TOGETHER.get(typed.axis, ()))
