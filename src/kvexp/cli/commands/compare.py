"""What became faster, slower, broken or missing between two sweeps, or between two values of one.

kvexp compare BASELINE CANDIDATE compares two sweeps. A folder of several sweeps is several processes; from
three on either side their own scatter is used.
kvexp compare SWEEP --axis impl --baseline triton --candidate cuda compares two values within one.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kvexp import compare, results
from kvexp.cli.commands._parser import Parser
from kvexp.cli.comparison import show
from kvexp.errors import ConfigError

FAILED = 1
_SWEEPS = "a sweep's folder, a rows.jsonl or .parquet file, or a folder of sweeps"
_FAIL_ON = "slower,broken,missing"


def main(argv: Sequence[str]) -> int:
    """0, or 1 where a point has one of the verdicts of --fail-on.

    Raises:
        ConfigError: What was typed is wrong, or the two cannot be compared.
    """
    typed = _parsed(argv)
    fail_on = set(filter(None, typed.fail_on.split(",")))
    if unknown := fail_on - set(compare.WORST_FIRST):
        there = ", ".join(compare.WORST_FIRST)
        raise ConfigError(f"compare: --fail-on {','.join(sorted(unknown))} is no verdict; one of {there}")
    baseline, candidate, apart = _sides(typed)
    points = compare.compare(baseline, candidate, apart=apart, across=typed.across, tolerance=typed.tolerance)
    show(points)
    return FAILED if fail_on & set(Counter(point.word for point in points)) else 0


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "kvexp compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP", help=_SWEEPS)
    parser.add_argument("--axis", help="the column to compare two values of, within what is named")
    parser.add_argument("--baseline", metavar="VALUE", help="with --axis: the value to compare with")
    parser.add_argument("--candidate", metavar="VALUE", help="with --axis: the value to judge")
    parser.add_argument("--across", action="store_true", help="compare other GPUs and drivers all the same")
    parser.add_argument("--tolerance", type=float, help="by how much two processes differ, for example 0.02")
    parser.add_argument("--fail-on", default=_FAIL_ON, metavar="VERDICTS", help=f"default: {_FAIL_ON}")
    return parser.parse_args(argv)


def _sides(typed: argparse.Namespace) -> tuple[Sequence[results.Row], Sequence[results.Row], Sequence[str]]:
    """The baseline's rows, the candidate's, and the columns in which they may differ."""
    if typed.axis is None:
        if len(typed.sweeps) != 2 or typed.baseline or typed.candidate:
            raise ConfigError("compare: name two sweeps, or one and --axis with --baseline and --candidate")
        first, second = (results.read([sweep], Path("multirun")) for sweep in typed.sweeps)
        return first, second, ()
    if not (typed.baseline and typed.candidate):
        raise ConfigError(f"compare: --axis {typed.axis} wants two values, --baseline and --candidate")
    rows = results.read(typed.sweeps, Path("multirun"))
    held, judged = (compare.one_of(rows, typed.axis, value) for value in (typed.baseline, typed.candidate))
    return held, judged, (typed.axis, *results.TOGETHER.get(typed.axis, ()))
