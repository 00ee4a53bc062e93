"""Measure experiment=gate and compare it with baselines/<gpu>/; exit code 1 when it got worse.

kvexp gate [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each curve is
measured by 5 processes (repeat=5). kvexp baseline, with the same overrides, writes the baseline.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvexp.cli import comparison_table, gate_rules
from kvexp.cli.commands._parser import make_sweep_parser
from kvexp.errors import ConfigError
from kvexp.host import terminal
from kvexp.measurement import Row, is_wrong
from kvexp.results import baselines, compare, load
from kvexp.sweep.job import Job

_AMBIGUOUS = (
    "{} of {} points are ambiguous: processes, or the two sweeps, may differ by as much; "
    "let nothing else run, measure both with repeat=10, or compare several sweeps with several"
)


def main(argv: Sequence[str]) -> int:
    """Return 1 where a point has one of the verdicts of --fail-on or the sweep ended early, else 0.

    Raises:
        ConfigError: What was typed is wrong, this machine has no baseline that can be compared with, or the
            kernel was changed meanwhile.
    """
    from kvexp.cli.compose import run_sweep  # here, since --help does without Hydra

    typed, words = _parse(argv)
    baseline: list[Row] = []

    def check(jobs: Sequence[Job]) -> None:
        gate_rules.check_jobs(jobs)
        machine = gate_rules.describe_machine(jobs[0].experiment.device)
        baseline.extend(_read_baseline(machine, typed.across))
        experiments = [job.experiment.resolve(machine["device"]) for job in jobs]
        compare.check_cases(baseline, [case for experiment in experiments for case in experiment.cases()])

    code, home = run_sweep(gate_rules.add_defaults(words), check)
    if home is None:
        return code
    candidate = load.read([home], Path())
    gate_rules.check_kernels(candidate)
    points = compare.compare(baseline, candidate, across=typed.across, tolerance=typed.tolerance)
    comparison_table.print_points(points)
    ambiguous = sum(point.word == "ambiguous" for point in points)
    if 2 * ambiguous > len(points):
        terminal.say(f"kvexp: {_AMBIGUOUS.format(ambiguous, len(points))}")
    # A sweep that failed although its rows are right has not written all of them.
    ended_early = code == comparison_table.FAILED and not any(is_wrong(row["status"]) for row in candidate)
    return comparison_table.FAILED if ended_early else comparison_table.exit_code(points, typed.fail_on)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = make_sweep_parser("gate", __doc__)
    comparison_table.add_flags(parser)
    return parser.parse_known_args(argv)


def _read_baseline(machine: dict[str, Any], across: bool) -> Sequence[Row]:
    """Read and check this machine's baseline, before minutes are spent on measuring the candidate."""
    folder = baselines.get_folder(machine["device_name"])
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
