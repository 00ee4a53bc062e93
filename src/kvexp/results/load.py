"""What sweeps have left on disk, found by path: rows with their sweep and the command that repeats them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kvexp.errors import ConfigError, KvexpError
from kvexp.results import rows
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.failures import are_wrong

Row = Mapping[str, Any]

SWEEP, COMMAND = "sweep", "command"
"""The two columns that a row has here besides its own."""

PROCESSES, LATENCIES = "processes", "latencies_us"
"""The columns that say how many processes timed a point, and what each found: in rows of `across`."""

_GROUPS = ("op", "impl", "layout", "dtype", "kv_cache_dtype", "scale", "mode", "timer", "device", "workload")
_SIZES = (
    *("num_heads", "head_size", "head_size_v", "block_size", "num_blocks", "num_layers", "slots", "padding"),
    *("padding_at", "rows", "num_query_heads", "extra_tokens", "seed"),
)
_SWEEPING = ("-m", "--multirun")
_CONFIGS = (".hydra", "config")  # Hydra's own, and what MLflow keeps of it

TOGETHER = {
    "impl": ("impl_options",),
    "workload": _SIZES,
    "num_heads": ("num_query_heads",),
    "head_size": ("head_size_v",),
    "timer": ("timer_options",),
}
"""The columns that come with a choice: another implementation has other options."""


def read(paths: Sequence[Path], multirun: Path) -> list[dict[str, Any]]:
    """The rows of every path, each file once; where no path is given those of the last sweep.

    Args:
        paths: Sweeps' folders, jobs' folders, files of rows, or folders that hold several sweeps.
        multirun: Where the last sweep is looked for.

    Raises:
        ConfigError: A path is missing or holds no rows, a file is not one of rows, or there is no sweep.
    """
    if not paths:
        last = sweep_folder.last(multirun, with_rows=True)
        if last is None:
            raise ConfigError(
                f"there is no sweep below {multirun}; give the folder of one, or measure one first"
            )
        paths = [last]
    sweeps: dict[Path, list[dict[str, Any]]] = {}
    for file in dict.fromkeys(file.resolve() for path in paths for file in _files(path)):
        home = _home(file) if file.parent.name.isdecimal() else file
        sweeps.setdefault(home, []).extend(_rows(file))
    found: list[dict[str, Any]] = []
    for home, own in sweeps.items():
        # Of a point that was tried again the last try; what was exported has been read like that.
        found += own if home.suffix == ".parquet" else rows.newest(own)
    return found


def across(found: Sequence[Row]) -> list[Row]:
    """One row for each point of a sweep: of its repetitions one that went wrong, else the one in the middle.

    The middle is that of the latencies; of an even number the faster one. No row says which it was, but each
    how many PROCESSES timed its point, their LATENCIES, and what disturbed any of them. Of a kernel that was
    changed meanwhile the last state counts.
    """
    points: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        points.setdefault((row.get(SWEEP), *rows.tried(row)), []).append(row)
    return [
        {column: value for column, value in _middle(own).items() if column != rows.REPETITION}
        | {PROCESSES: len(_timed(own)), LATENCIES: tuple(row["latency_us"] for row in _timed(own))}
        | rows.disturbed(own)
        for own in points.values()
    ]


def _middle(tries: Sequence[Row]) -> Row:
    wrong = [row for row in tries if are_wrong([row])]
    timed = _timed(tries)
    return next(iter([*wrong, *timed[(len(timed) - 1) // 2 :], *tries]))


def _timed(tries: Sequence[Row]) -> list[Row]:
    """The `ok` ones of the kernel's last state, the fastest first."""
    timed = [row for row in tries if row["status"] == "ok"]
    last = [row for row in timed if row.get("impl_hash") == timed[-1].get("impl_hash")]
    return sorted(last, key=lambda row: row["latency_us"])


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a sweep's folder or a {rows.ROWS} file")
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob(rows.ROWS), key=_numeric)
    if not files:
        raise ConfigError(
            f"{path} holds no {rows.ROWS}; give a sweep's folder, such as multirun/<date>/<time>"
        )
    return files


def _home(file: Path) -> Path:
    """The sweep's folder of a file of rows."""
    job = file.parent
    return job.parent if job.name.isdecimal() else job


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return _exported(file)
    try:
        found = rows.read(file)
    except KvexpError as error:
        raise ConfigError(str(error)) from error
    sweep = "/".join(_home(file).parts[-2:])
    commands = {id(row): _command(file.parent, curve) for curve in rows.curves(found) for row in curve}
    return [{**row, SWEEP: sweep, COMMAND: commands[id(row)]} for row in found]


def _exported(file: Path) -> list[dict[str, Any]]:
    """The rows of a file that `kvexp export` wrote; what is missing in it is None, as in a row."""
    import pandas  # here, since few read such a file

    try:
        made = pandas.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as rows: {error}") from error
    if not {"status", "num_tokens", SWEEP, COMMAND} <= set(made.columns):
        raise ConfigError(f"{file} is no file of rows; kvexp export writes one")
    records = made.astype(object).where(made.notna(), None).to_dict("records")
    return [{str(column): value for column, value in record.items()} for record in records]


def _command(job: Path, found: Sequence[Row]) -> str:
    """What repeats the curve: the overrides that Hydra kept, else everything that its rows say."""
    kept = next(filter(Path.is_file, (job / folder / "overrides.yaml" for folder in _CONFIGS)), None)
    if kept:
        try:
            overrides = [str(override) for override in yaml.safe_load(kept.read_text("utf-8")) or []]
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise ConfigError(f"{kept} holds no overrides, as Hydra writes them") from error
    elif found:
        overrides = _overrides(found)
    else:
        return ""
    flags: list[str] = []
    with suppress(ConfigError):  # a folder from elsewhere may not say with which flags it was measured
        flags = [
            flag for flag in sweep_folder.read_command(_home(job / rows.ROWS))[1] if flag not in _SWEEPING
        ]
    return sweep_folder.mask_passwords(shlex.join(["python", "-m", "kvexp", *flags, *overrides]))


def _overrides(found: Sequence[Row]) -> list[str]:
    first = found[0]
    chosen = [f"{group}={first[group]}" for group in _GROUPS if first.get(group) not in (None, "")]
    for group in ("impl", "timer"):
        options: dict[str, Any] = json.loads(first.get(f"{group}_options") or "{}")
        chosen += [f"{group}.{name}={option}" for name, option in options.items()]
    if first.get("workload"):
        chosen += [f"workload.{name}={first[name]}" for name in _SIZES if first.get(name) is not None]
        tokens = ",".join(dict.fromkeys(str(row["num_tokens"]) for row in found))
        chosen.append(f"workload.num_tokens=[{tokens}]")
    return chosen


def _numeric(path: Path) -> list[tuple[bool, int, str]]:
    """A sort key under which job 10 comes after job 9."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in path.parts]
