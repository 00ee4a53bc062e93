"""Measures experiment=gate and compares it with baselines/<gpu>/; exit code 1 when it got worse.

kvexp gate [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each curve is
measured by 5 processes (repeat=5). kvexp baseline, with the same overrides, writes what is compared with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvexp import baselines, compare, results
from kvexp.cli import comparison, gating
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError
from kvexp.failures import are_wrong
from kvexp.sweep import Job

_SAW_LITTLE = (
    "{} of {} points are ambiguous, so this gate saw little: processes differ by more than was assumed; "
    "let nothing else run, or measure both with repeat=10"
)


def main(argv: Sequence[str]) -> int:
    """0, or 1 where a point has one of the verdicts of --fail-on, or the sweep could not go to its end.

    Raises:
        ConfigError: What was typed is wrong, this machine has no baseline that can be compared with, or the
            kernel was changed meanwhile.
    """
    from kvexp.cli.run import swept  # here, since --help does without Hydra

    typed, words = _parsed(argv)
    baseline: list[results.Row] = []

    def check(jobs: Sequence[Job]) -> None:
        gating.check(jobs)
        machine = gating.machine(jobs[0].experiment.device)
        baseline.extend(_baseline(machine, typed.across))
        experiments = [job.experiment.resolved(machine["device"]) for job in jobs]
        compare.check_cases(baseline, [case for experiment in experiments for case in experiment.cases()])

    code, home = swept(gating.completed(words), check)
    if home is None:
        return code
    candidate = results.read([home], Path())
    gating.check_kernels(candidate)
    points = compare.compare(baseline, candidate, across=typed.across, tolerance=typed.tolerance)
    comparison.show(points)
    unsure = sum(point.word == "ambiguous" for point in points)
    if 2 * unsure > len(points):
        sys.stderr.write(f"kvexp: {_SAW_LITTLE.format(unsure, len(points))}\n")
    # A sweep whose rows are right and that failed all the same has not written all of them.
    ended_early = code == comparison.FAILED and not are_wrong(candidate)
    return comparison.FAILED if ended_early else comparison.code(points, typed.fail_on)


def _parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        "kvexp gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    comparison.add_flags(parser)
    return parser.parse_known_args(argv)


def _baseline(machine: dict[str, Any], across: bool) -> Sequence[results.Row]:
    """The rows of this machine's baseline, before minutes are spent on what they are to be compared with."""
    folder = baselines.place(machine["device_name"])
    if not folder.exists():
        raise ConfigError(f"{machine['device_name']} has no baseline ({folder}); kvexp baseline writes it")
    rows = results.read([folder], Path())
    if not any(row["status"] == "ok" for row in rows):
        raise ConfigError(
            f"the baseline in {folder} holds nothing that was timed; kvexp baseline writes it anew"
        )
    if not across:
        compare.check_machines(rows, [{**machine, "status": "ok"}])
    return rows
