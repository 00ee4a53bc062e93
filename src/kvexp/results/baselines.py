"""Baselines, which a gate compares with: `baselines/<gpu>/rows.jsonl`, small enough to be kept in git.

The file holds the right rows of one sweep as they are, so whatever reads a sweep's folder reads a
baseline's. A folder for each GPU, since latencies of two say nothing of each other.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvexp.errors import ConfigError
from kvexp.measurement import is_right
from kvexp.results.rows import CURVE, ROWS, make_folder, repetition

Row = Mapping[str, Any]

ROOT = Path("baselines")


def place(device_name: str, root: Path = ROOT) -> Path:
    """The folder of a GPU's, or a CPU's, baseline: `NVIDIA H200` has baselines/nvidia-h200."""
    return root / re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def write(rows: Sequence[Row], root: Path = ROOT) -> list[Path]:
    """The right rows are the baseline of each device that timed some; the one before it is gone.

    Returns:
        The files.

    Raises:
        ConfigError: Nothing was timed.
        OSError: A file cannot be written; what was there stays.
        KvexpError: A folder cannot be made.
    """
    names = dict.fromkeys(row["device_name"] for row in rows if row["status"] == "ok")
    if not names:
        raise ConfigError("nothing was timed, so there is no baseline to write")
    of_each = {name: [row for row in rows if row.get("device_name") == name] for name in names}
    return [_replace(place(name, root), own) for name, own in of_each.items()]


def checked_out(name: str, folder: Path) -> bool:
    """The baselines of a git revision are below the folder; False where `name` is no revision.

    Args:
        name: A revision of the repository around the current folder, alone or as `REVISION:PATH`.
        folder: Where to; it holds PATH/<gpu>/rows.jsonl then, by default baselines/<gpu>/rows.jsonl.

    Raises:
        ConfigError: The revision has no baseline there, or one that git cannot read.
    """
    revision, _, path = name.partition(":")
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found is None:
        return False
    commit, path = found.decode().strip(), path or str(ROOT)
    listed = _git("ls-tree", "-r", "-z", "--name-only", commit, "--", path) or b""
    files = [file for file in listed.decode().split("\0") if Path(file).name == ROWS]
    if not files:
        raise ConfigError(f"git revision {revision} has no {path}/<gpu>/{ROWS}; kvexp baseline writes them")
    for file in files:
        # Relative to the current folder, which may lie below the baselines'.
        content = _git("show", f"{commit}:./{file}")
        if content is None:
            raise ConfigError(f"git lists {file} in {revision}, but cannot read it")
        there = folder.joinpath(*(part for part in Path(file).parts if part != ".."))
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)
    return True


def _replace(folder: Path, rows: Sequence[Row]) -> Path:
    """The folder's file holds the right ones of the rows, curve by curve; it is never half of them."""
    curves = {tuple(row.get(column) for column in CURVE): None for row in rows}
    order = {curve: number for number, curve in enumerate(curves)}

    def position(row: Row) -> tuple[int, int, int]:
        return order[tuple(row.get(column) for column in CURVE)], row["num_tokens"], repetition(row)

    right = sorted((row for row in rows if is_right(row["status"])), key=position)
    make_folder(folder)
    new = folder / f"{ROWS}.new"
    new.write_text("".join(json.dumps(row) + "\n" for row in right), "utf-8")
    return new.replace(folder / ROWS)


def _git(*words: str) -> bytes | None:
    """What git prints; None where it fails, or is not there."""
    # In a hook GIT_DIR may name another repository than the one around this folder.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        return subprocess.run(["git", *words], capture_output=True, check=True, env=environ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
