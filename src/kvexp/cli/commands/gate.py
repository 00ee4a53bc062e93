"""Measures experiment=gate and compares it with baselines/<gpu>/; exit code 1 when it got worse.

kvexp gate [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each curve is
measured by 5 processes (repeat=5). kvexp baseline, with the same overrides, writes what is compared with.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvexp.cli import comparison_table, gate_rules
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError
from kvexp.results import baselines, compare, load
from kvexp.results.failures import are_wrong
from kvexp.sweep.runner import Job

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
    from kvexp.cli.compose import swept  # here, since --help does without Hydra

    typed, words = _parsed(argv)
    baseline: list[load.Row] = []

    def check(jobs: Sequence[Job]) -> None:
        gate_rules.check(jobs)
        machine = gate_rules.machine(jobs[0].experiment.device)
        baseline.extend(_baseline(machine, typed.across))
        experiments = [job.experiment.resolve(machine["device"]) for job in jobs]
        compare.check_cases(baseline, [case for experiment in experiments for case in experiment.cases()])

    code, home = swept(gate_rules.completed(words), check)
    if home is None:
        return code
    candidate = load.read([home], Path())
    gate_rules.check_kernels(candidate)
    points = compare.compare(baseline, candidate, across=typed.across, tolerance=typed.tolerance)
    comparison_table.show(points)
    unsure = sum(point.word == "ambiguous" for point in points)
    if 2 * unsure > len(points):
        sys.stderr.write(f"kvexp: {_SAW_LITTLE.format(unsure, len(points))}\n")
    # A sweep whose rows are right and that failed all the same has not written all of them.
    ended_early = code == comparison_table.FAILED and not are_wrong(candidate)
    return comparison_table.FAILED if ended_early else comparison_table.code(points, typed.fail_on)


def _parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        "kvexp gate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    comparison_table.add_flags(parser)
    return parser.parse_known_args(argv)


def _baseline(machine: dict[str, Any], across: bool) -> Sequence[load.Row]:
    """The rows of this machine's baseline, before minutes are spent on what they are to be compared with."""
    folder = baselines.place(machine["device_name"])
    if not folder.exists():
        raise ConfigError(f"{machine['device_name']} has no baseline ({folder}); kvexp baseline writes it")
    rows = load.read([folder], Path())
    if not any(row["status"] == "ok" for row in rows):
        raise ConfigError(
            f"the baseline in {folder} holds nothing that was timed; kvexp baseline writes it anew"
        )
    if not across:
        compare.check_machines(rows, [{**machine, "status": "ok"}])
    return rows
