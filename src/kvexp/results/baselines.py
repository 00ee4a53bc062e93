"""Write and check out the baselines that a gate compares with: `baselines/<gpu>/rows.jsonl`, kept in git.

The file holds the right rows of one sweep, unchanged, so a baseline is read like a sweep. Each kind of GPU
has its own folder, since latencies of two kinds are not comparable.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from kvexp.errors import ConfigError
from kvexp.host import plain_file
from kvexp.host.process import ask_git
from kvexp.measurement import Row, is_right
from kvexp.results.labels import group_by_curve
from kvexp.results.point_identity import get_repetition
from kvexp.results.row_file import ROWS, make_folder

ROOT = Path("baselines")


def get_folder(device_name: str, root: Path = ROOT) -> Path:
    """Return the folder of a GPU's or a CPU's baseline: baselines/nvidia-h200 for `NVIDIA H200`."""
    return root / re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def write(rows: Sequence[Row], root: Path = ROOT) -> list[Path]:
    """Replace the baseline of each device that timed some of the rows by its right rows; return the files.

    Raises:
        ConfigError: Nothing was timed.
        OSError: A file cannot be written; the old baseline stays.
        KvexpError: A folder cannot be made.
    """
    names = dict.fromkeys(row["device_name"] for row in rows if row["status"] == "ok")
    if not names:
        raise ConfigError("nothing was timed, so there is no baseline to write")
    of_each = {name: [row for row in rows if row.get("device_name") == name] for name in names}
    return [_replace(get_folder(name, root), own) for name, own in of_each.items()]


def check_out(name: str, folder: Path) -> bool:
    """Copy the baselines of a git revision into the folder; return False where `name` is no revision.

    Args:
        name: A revision of the repository around the current folder, alone or as `REVISION:PATH`.
        folder: Where PATH/<gpu>/rows.jsonl is written, by default baselines/<gpu>/rows.jsonl.

    Raises:
        ConfigError: The revision has no baseline there, or one that git cannot read.
    """
    revision, _, path = name.partition(":")
    found = ask_git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found is None:
        return False
    commit, path = found.decode().strip(), path or str(ROOT)
    names = ask_git("ls-tree", "-r", "-z", "--name-only", commit, "--", path) or b""
    files = [file for file in names.decode().split("\0") if Path(file).name == ROWS]
    if not files:
        raise ConfigError(f"git revision {revision} has no {path}/<gpu>/{ROWS}; kvexp baseline writes them")
    for file in files:
        # Relative to the current folder, which may lie below the baselines'.
        content = ask_git("show", f"{commit}:./{file}")
        if content is None:
            raise ConfigError(f"git lists {file} in {revision}, but cannot read it")
        copy = folder.joinpath(*(part for part in Path(file).parts if part != ".."))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    return True


def list_commits(name: str) -> list[tuple[str, str, str]]:
    """List the commits that wrote baselines, the oldest first: each one's hash, day and subject.

    Args:
        name: The last revision, alone or as `REVISION:PATH`; see `check_out`.

    Raises:
        ConfigError: It is no revision, or no commit up to it has written a baseline there.
    """
    revision, _, path = name.partition(":")
    path = path or str(ROOT)
    shown = ("--reverse", "--diff-filter=ACMR", "--format=%h%x00%cs%x00%s")
    found = ask_git("log", *shown, "--end-of-options", revision, "--", path)
    if found is None:
        raise ConfigError(f"{revision} is no git revision around the current folder, so it has no history")
    commits = [line.split("\0") for line in found.decode(errors="replace").split("\n") if line]
    if not commits:
        raise ConfigError(f"no commit up to {revision} has written {path}/<gpu>/{ROWS}; kvexp baseline does")
    return [(commit, date, subject) for commit, date, subject in commits]


def _replace(folder: Path, rows: Sequence[Row]) -> Path:
    """Write the right rows to the folder's file, curve by curve; the old file stays until all are written."""
    right = [
        row
        for curve in group_by_curve(rows)
        for row in sorted(curve, key=lambda row: (row["num_tokens"], get_repetition(row)))
        if is_right(row["status"])
    ]
    make_folder(folder)
    plain_file.replace(folder / ROWS, "".join(json.dumps(row) + "\n" for row in right).encode())
    return folder / ROWS
