"""Measure experiment=gate and write it to baselines/<gpu>/, for kvexp gate to compare with.

kvexp baseline [OVERRIDE ...] takes what `kvexp` takes, for example impl=mine --config-dir my_conf. Each curve
is measured by 5 processes (repeat=5). An earlier baseline is replaced; commit baselines/ to keep it in git.
kvexp baseline --from SWEEP measures nothing and makes a baseline of the rows of a sweep.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from kvexp.cli import gate_rules, row_source, say
from kvexp.cli.commands._parser import make_sweep_parser
from kvexp.errors import ConfigError, KvexpError
from kvexp.host import terminal
from kvexp.measurement import Row, is_wrong
from kvexp.results import baselines, point_identity, row_file
from kvexp.sweep.job import Job


def main(argv: Sequence[str]) -> int:
    """Return 0 when the baseline is written, else the sweep's exit code.

    Raises:
        ConfigError: What was typed is wrong, nothing was timed, or the baseline cannot be written.
    """
    from kvexp.cli.compose import run_sweep  # here, since --help does without Hydra

    parser = make_sweep_parser("baseline", __doc__)
    parser.add_argument("--from", dest="source", metavar="SWEEP", help=row_source.POSSIBLE)
    typed, words = parser.parse_known_args(argv)
    if typed.source:
        return _write_from(typed.source, words)
    code, home = run_sweep(gate_rules.add_defaults(words), _check)
    if home is None:
        return code
    if code:
        terminal.say("kvexp: no baseline is written, since not every point of the sweep is right")
        return code
    try:
        measured = point_identity.select_newest(row_file.read(home))
    except KvexpError as error:
        raise ConfigError(f"baseline: {error}") from error
    return _write(measured)


def _write_from(name: str, words: Sequence[str]) -> int:
    """Make a baseline of the rows of a sweep that is there."""
    if words:
        raise ConfigError(
            f"baseline: --from takes rows as they are, so {words[0]!r} cannot be typed beside it"
        )
    rows = [dict(row) for row in row_source.read(name)]
    wrong = [row for row in rows if is_wrong(row["status"])]
    if wrong:
        raise ConfigError(f"baseline: {len(wrong)} of the {len(rows)} rows of {name} are incorrect or failed")
    return _write(rows)


def _write(measured: Sequence[Row]) -> int:
    try:
        gate_rules.check_kernels(measured)
        files = baselines.write(measured)
    except (KvexpError, OSError) as error:
        raise ConfigError(f"baseline: {error}") from error
    for file in files:
        say(f"{file}\n")
    for line in gate_rules.find_weaknesses(measured):
        terminal.say(f"kvexp: {line}")
    return 0


def _check(jobs: Sequence[Job]) -> None:
    """Check that the jobs can become a baseline, and that it can be written.

    Raises:
        ConfigError: They cannot, or baselines/ cannot be written to.
    """
    gate_rules.check_jobs(jobs)
    root = next(filter(Path.exists, (baselines.ROOT.absolute(), Path.cwd())))
    folders = filter(Path.is_dir, (root, *root.glob("*")))  # perhaps only the folder of one GPU is writable
    if not any(os.access(folder, os.W_OK | os.X_OK) for folder in folders):
        raise ConfigError(f"baseline: {root} cannot be written to, so nothing was measured")
