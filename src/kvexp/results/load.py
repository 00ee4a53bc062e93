"""Read the rows of sweeps, each with its sweep and the command that repeats its curve."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kvexp.errors import ConfigError
from kvexp.host.addresses import mask_secrets
from kvexp.host.plain_file import open_regular
from kvexp.measurement import Row
from kvexp.results import row_file, sweep_dir
from kvexp.results.labels import group_by_curve
from kvexp.results.overrides import is_place, is_plain
from kvexp.results.point_identity import select_newest
from kvexp.results.repeat_command import derive_overrides

SWEEP, COMMAND = "sweep", "command"
"""The two columns that are added to each row."""

_MULTIRUN = ("-m", "--multirun")
_CONFIGS = (".hydra", "config")  # Hydra's own, and what MLflow keeps of it


def read(paths: Sequence[Path], multirun: Path) -> list[dict[str, Any]]:
    """Read the rows of every path, each file once, at least one row; without a path those of the last sweep.

    Args:
        paths: Sweeps' folders, jobs' folders, files of rows, or folders that hold several sweeps.
        multirun: Where the last sweep is looked for.

    Raises:
        ConfigError: A path is missing or holds no rows, a file is not one of rows, or there is no sweep.
    """
    if not paths:
        last = sweep_dir.find_last(multirun, with_rows=True)
        if last is None:
            raise ConfigError(
                f"there is no sweep below {multirun}; give the folder of one, or measure one first"
            )
        paths = [last]
    sweeps: dict[tuple[Path, Any], list[dict[str, Any]]] = {}
    for file in dict.fromkeys(file.resolve() for path in paths for file in _find_files(path)):
        home = _get_sweep(file) if file.parent.name.isdecimal() else file
        for row in _read_file(file):
            sweeps.setdefault((home, row[SWEEP]), []).append(row)
    found: list[dict[str, Any]] = []
    for (home, _), own in sweeps.items():
        # An exported file holds the newest rows already.
        found += own if home.suffix == ".parquet" else select_newest(own)
    if not found:
        raise ConfigError(f"{', '.join(map(str, paths))} holds no whole row")
    return found


def _find_files(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a sweep's folder or a {row_file.ROWS} file")
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob(row_file.ROWS), key=row_file.sort_key)
    if not files:
        raise ConfigError(
            f"{path} holds no {row_file.ROWS}; give a sweep's folder, such as multirun/<date>/<time>"
        )
    return files


def _get_sweep(file: Path) -> Path:
    """Return the folder of the sweep that a file of rows belongs to."""
    job = file.parent
    return job.parent if job.name.isdecimal() else job


def _read_file(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return _read_parquet(file)
    found = row_file.read(file)
    sweep = sweep_dir.name_of(_get_sweep(file))
    commands = {id(row): _get_command(file.parent, curve) for curve in group_by_curve(found) for row in curve}
    # A baseline that was made of several sweeps keeps which one a row is of.
    return [{**row, SWEEP: row.get(SWEEP) or sweep, COMMAND: commands[id(row)]} for row in found]


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a parquet file that `kvexp export` wrote; a missing value becomes None."""
    import pandas  # here, since few commands need it

    try:
        with open(file, "rb", opener=open_regular) as handle:
            frame = pandas.read_parquet(handle)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as rows: {error}") from error
    if not {"status", "num_tokens", SWEEP, COMMAND} <= set(frame.columns):
        raise ConfigError(f"{file} is not a file of rows; kvexp export writes one")
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    found = [{str(column): value for column, value in record.items()} for record in records]
    for number, row in enumerate(found, start=1):
        held = {column: value for column, value in row.items() if value is not None}
        row_file.check_row(f"{file}, row {number}", held)
    return found


def _get_command(job: Path, rows: Sequence[Row]) -> str:
    """Return the command that repeats a curve: from Hydra's record of the overrides, else from its rows.

    A record that does more than choose, such as naming an address, is not repeated. Empty where nothing here
    could repeat the curve.
    """
    record = next(filter(Path.is_file, (job / folder / "overrides.yaml" for folder in _CONFIGS)), None)
    overrides: list[str] | None = None
    if record:
        try:
            typed = yaml.safe_load(record.read_text("utf-8")) or []
            # A text: what a YAML repeats by reference may be endless as one.
            if not isinstance(typed, list) or not all(isinstance(text, str) for text in typed):
                raise ValueError("no list of texts")
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{record} holds no overrides, as Hydra writes them") from error
        if all(map(is_plain, typed)):
            overrides = [text for text in typed if not is_place(text)]
    if overrides is None:
        overrides = derive_overrides(rows) if rows else None
    if overrides is None:
        return ""
    flags: list[str] = []
    with suppress(ConfigError):  # a folder from elsewhere may lack the record of its flags
        _, typed = sweep_dir.read_command(_get_sweep(job / row_file.ROWS))
        flags = [flag for flag in typed if flag not in _MULTIRUN]
    return mask_secrets(shlex.join(["python", "-m", "kvexp", *flags, *overrides]))
