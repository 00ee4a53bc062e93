"""Measures experiment=gate and compares it with baselines/<gpu>/; exit code 1 when it got worse.

kvexp gate [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each curve is
measured by 5 processes (repeat=5). kvexp baseline, with the same overrides, writes what is compared with.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvexp import baselines, compare, results
from kvexp.cli import comparison, gating
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError
from kvexp.sweep import Job


def main(argv: Sequence[str]) -> int:
    """0, or 1 where a point has one of the verdicts of --fail-on.

    Raises:
        ConfigError: What was typed is wrong, or this machine has no baseline that can be compared with.
    """
    from kvexp.cli.run import swept  # here, since --help does without Hydra

    typed, words = _parsed(argv)
    baseline: list[results.Row] = []

    def check(jobs: Sequence[Job]) -> None:
        gating.check(jobs)
        baseline.extend(_baseline(gating.machine(jobs[0].experiment.device), typed.across))

    code, home = swept(gating.completed(words), check)
    if home is None:
        return code
    candidate = results.read([home], Path())
    points = compare.compare(baseline, candidate, across=typed.across, tolerance=typed.tolerance)
    comparison.show(points)
    return comparison.code(points, typed.fail_on)


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
    if not across:
        compare.check_machines(rows, [{**machine, "status": "ok"}])
    return rows
