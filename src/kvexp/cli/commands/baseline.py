"""Measures experiment=gate and keeps it in baselines/<gpu>/, for kvexp gate to compare with.

kvexp baseline [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each curve
is measured by 5 processes (repeat=5). What was there before is replaced; git keeps it: commit baselines/.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kvexp.cli import gate_rules, say
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError, KvexpError
from kvexp.results import baselines, point_identity, row_file
from kvexp.sweep.runner import Job


def main(argv: Sequence[str]) -> int:
    """0 when the baseline is written; else it is not, and the code is that of the sweep.

    Raises:
        ConfigError: What was typed is wrong, nothing was timed, or the baseline cannot be written.
    """
    from kvexp.cli.compose import swept  # here, since --help does without Hydra

    parser = Parser(
        "kvexp baseline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _, words = parser.parse_known_args(argv)
    code, home = swept(gate_rules.completed(words), _checked)
    if home is None:
        return code
    if code:
        sys.stderr.write("kvexp: no baseline is written of a sweep in which not everything is right\n")
        return code
    try:
        measured = point_identity.select_newest(row_file.read(home))
        gate_rules.check_kernels(measured)
        files = baselines.write(measured)
    except (KvexpError, OSError) as error:
        raise ConfigError(f"baseline: {error}") from error
    for file in files:
        say(f"{file}\n")
    for line in gate_rules.doubts(measured):
        sys.stderr.write(f"kvexp: {line}\n")
    return 0


def _checked(jobs: Sequence[Job]) -> None:
    """Returns when the jobs can become a baseline, and there is room for one.

    Raises:
        ConfigError: They cannot, or baselines/ cannot be written to.
    """
    gate_rules.check(jobs)
    there = next(filter(Path.exists, (baselines.ROOT.absolute(), Path.cwd())))
    folders = filter(Path.is_dir, (there, *there.glob("*")))  # one of a GPU may be all that can be written to
    if not any(os.access(folder, os.W_OK | os.X_OK) for folder in folders):
        raise ConfigError(f"baseline: {there} cannot be written to, so nothing was measured")
