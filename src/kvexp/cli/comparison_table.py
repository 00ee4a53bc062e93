"""The flags, the printed table and the exit code of a comparison."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kvexp.cli import print_formats
from kvexp.cli.print_formats import DASH
from kvexp.errors import ConfigError
from kvexp.report import number
from kvexp.results.compare import WORST_FIRST, Point

FAILED = 1
_FAIL_ON = "slower,broken,missing"
_STYLES = {"broken": "bold red", "missing": "red", "slower": "red", "ambiguous": "yellow", "faster": "green"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every comparison has; `fail_on` becomes a set of verdicts."""
    parser.add_argument("--across", action="store_true", help="compare also across GPUs and drivers")
    parser.add_argument(
        "--tolerance",
        type=_parse_tolerance,
        help="what 95 %% of pairs of processes differ by at most, for example 0.02",
    )
    parser.add_argument(
        "--fail-on", type=_parse_verdicts, default=_FAIL_ON, metavar="VERDICTS", help=f"default: {_FAIL_ON}"
    )


def exit_code(points: Sequence[Point], fail_on: set[str]) -> int:
    """Return FAILED where a point has one of these verdicts, else 0."""
    return FAILED if fail_on & {point.word for point in points} else 0


def print_points(points: Sequence[Point], form: str = "table") -> None:
    """Print the points in their order, and how many have each verdict."""
    counts = Counter(point.word for point in points)
    counted = {word: counts[word] for word in WORST_FIRST if counts[word]}
    if form == "json":
        print_formats.print_json({"points": [_describe(point) for point in points], "counts": counted})
        return
    print_formats.print_table(
        _HEADINGS, [(point.word, point.label, *_format(point)) for point in points], form, _STYLES
    )
    print_formats.print_line(", ".join(f"{count} {word}" for word, count in counted.items()), form)


_HEADINGS = {
    "verdict": "left",
    "curve": "fold",
    "num_tokens": "right",
    "baseline (µs)": "right",
    "candidate (µs)": "right",
    "candidate / baseline": "right",
    "between": "right",
    "why": "fold",
}


def _parse_tolerance(text: str) -> float:
    try:
        part = float(text)
    except ValueError:
        part = math.nan
    if not 0 <= part < 1:
        raise ConfigError(f"--tolerance must be a fraction such as 0.02, not {text!r}")
    return part


def _parse_verdicts(text: str) -> set[str]:
    verdicts = set(filter(None, text.split(",")))
    if not verdicts:
        raise ConfigError(
            f"--fail-on names no verdict, so nothing could fail; one of {', '.join(WORST_FIRST)}"
        )
    if unknown := verdicts - set(WORST_FIRST):
        known = ", ".join(WORST_FIRST)
        raise ConfigError(f"--fail-on {','.join(sorted(unknown))} is no verdict; one of {known}")
    return verdicts


def _describe(point: Point) -> dict[str, Any]:
    """Return a point as JSON; its ratio is the candidate's latency over the baseline's, see `Verdict`."""
    verdict = point.verdict
    return {
        "verdict": point.word,
        "curve": point.label,
        "num_tokens": point.num_tokens,
        "baseline_us": point.baseline_us,
        "candidate_us": point.candidate_us,
        "ratio": verdict and verdict.ratio,
        "ratio_low": verdict and verdict.low,
        "ratio_high": verdict and verdict.high,
        "why": point.note,
    }


def _format(point: Point) -> tuple[str, ...]:
    times = (DASH if time is None else number(time) for time in (point.baseline_us, point.candidate_us))
    ratio, between = DASH, DASH
    if point.verdict:
        ratio = f"{point.verdict.ratio:.3f}"
        between = f"{point.verdict.low:.3f}{DASH}{point.verdict.high:.3f}"
    return f"{point.num_tokens:,}", *times, ratio, between, point.note
