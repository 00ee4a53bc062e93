"""Lock a sweep's folder, record the command line of the sweep, and read what the folder holds already.

`command.json` holds the overrides and flags that repeat the sweep, when it began, what a store is told of
its origin, and the id by which a store knows it, since other folders may have the same name. References to
the environment are kept by their values, and no address is kept: whoever resumes the sweep says where to
track. What is kept is read back as texts, and the command line checks them as if they had been typed again;
none of them is run as code.
"""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from kvexp.errors import ConfigError, KvexpError
from kvexp.host import file_lock
from kvexp.host.addresses import mask_secrets
from kvexp.host.plain_file import open_regular
from kvexp.measurement import Row, is_right
from kvexp.results import jsonl
from kvexp.results.overrides import get_key, is_place, is_tag
from kvexp.results.point_identity import Identity, get_repetition, identify_in_workload, select_newest
from kvexp.results.provenance import Provenance
from kvexp.results.row_file import ROWS, read

COMMAND = "command.json"
LOCK = ".lock"
_LEFT_OUT = "left_out"
_PROVENANCE = "provenance"
_MULTIRUN = "multirun.yaml"  # Hydra writes it
_MAX_COMMAND_BYTES = 1 << 20
_NAME = "%Y-%m-%d/%H-%M-%S-%f"  # the default name of a sweep, in local time

_locked_here: set[Path] = set()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock the folder against other kvexp processes of this host; this process may hold it already.

    Raises:
        TimeoutError: Another process works there; the message names it.
        OSError: The folder cannot be locked.
    """
    file = Path(os.path.realpath(folder)) / LOCK
    if file in _locked_here:
        yield
        return
    with file_lock.locked(file):
        _locked_here.add(file)
        try:
            yield
        finally:
            _locked_here.discard(file)


@contextmanager
def hold_for_sweep(folder: Path) -> Iterator[None]:
    """Hold the folder for a sweep, with errors for the command line.

    Raises:
        ConfigError: Another process works there, or the folder cannot be locked.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder))
        except TimeoutError as error:
            raise ConfigError(f"another sweep is at work there: {error}") from error
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be locked ({error.strerror}); nothing was measured"
            ) from error
        yield


def check_links(folder: Path, *, is_new: bool) -> None:
    """Check that nothing of a sweep would be written through a symbolic link in its folder.

    The curves of a new one take the numbers from 0 on; else their folders are new.

    Raises:
        ConfigError: There is such a link.
    """
    patterns = ("[0-9]*", "[0-9]*/*", "[0-9]*/.hydra/*") if is_new else ()
    own = (folder / name for name in (_MULTIRUN, COMMAND, LOCK))
    for path in chain(own, *(folder.glob(pattern) for pattern in patterns)):
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, through which a sweep does not write; remove it")


def write_command(
    folder: Path, overrides: Sequence[str] | None, flags: Sequence[str], provenance: Provenance | None = None
) -> None:
    """Record what repeats the sweep, its origin, the time and a new id; keep the record of an earlier start.

    A sweep that has rows but no record gets no id, since a store may know it by its name. Overrides have no
    references here; those that name a store are left out, and their keys noted. None stands for overrides
    that cannot be written so: then the sweep must be typed again.

    Raises:
        ConfigError: It cannot be written.
    """
    if (folder / COMMAND).exists():
        return
    now = datetime.now(UTC).isoformat()
    kept = None if overrides is None else [_mask_tag(text) for text in overrides if not is_place(text)]
    typed: dict[str, Any] = {"overrides": kept, "flags": list(flags), "started_at": now}
    if provenance:
        typed[_PROVENANCE] = provenance.to_json()
    if left_out := [get_key(text) for text in overrides or () if is_place(text)]:
        typed[_LEFT_OUT] = left_out
    if not is_sweep(folder):
        typed["id"] = uuid.uuid4().hex
    try:
        jsonl.append(folder / COMMAND, json.dumps(typed))
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder / COMMAND} ({error.strerror}); nothing was measured"
        ) from error


def read_command(folder: Path) -> tuple[list[str], list[str]]:
    """Read the overrides and the flags that repeat the folder's sweep.

    Raises:
        ConfigError: The file is missing or not what `write_command` writes.
    """
    file = folder / COMMAND
    try:
        content = _content(file)
        found = [content["overrides"], content["flags"]]
        if found[0] is None:
            raise ValueError("its overrides cannot be kept")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} does not say what was typed; type the whole command again, with resume={folder}"
        ) from error
    for texts in found:
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{file} is no command line; type the whole command, with resume={folder}")
    return found[0], found[1]


def names_store(folder: Path) -> bool:
    """Return whether the folder's sweep was typed with a store, which its record does not keep."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return bool(_content(folder / COMMAND)[_LEFT_OUT])
    return False


def read_provenance(folder: Path) -> Provenance:
    """Read the origin of the folder's sweep; it is empty where the record has none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Provenance.parse(_content(folder / COMMAND)[_PROVENANCE])
    return Provenance()


def name_of(folder: Path) -> str:
    """Return a sweep's name: the last two parts of its path, by default date and time."""
    return "/".join(folder.parts[-2:])


def id_of(folder: Path) -> str:
    """Return the id that the sweep began with, or its name if it began without one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = _content(folder / COMMAND)["id"]
        if is_id(found):
            return str(found)
    return name_of(folder)


def is_id(text: str) -> bool:
    """Return whether the text is an id as `write_command` makes it, not a name."""
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def is_sweep(folder: Path) -> bool:
    """Return whether a sweep was begun in the folder."""
    return (folder / COMMAND).is_file() or any(folder.glob(f"*/{ROWS}"))


def find_last(root: Path, *, with_rows: bool = False) -> Path | None:
    """Find the folder of the sweep that began last in `root` or its folders, perhaps of those with rows."""
    folders = filter(is_sweep, (*root.glob("*"), *root.glob("*/*")))
    sweeps = sorted(folders, key=lambda folder: (_get_start_s(folder), folder), reverse=True)
    return next((folder for folder in sweeps if not with_rows or any(folder.rglob(ROWS))), None)


def _get_start_s(folder: Path) -> float:
    """Return the sweep's start in seconds since 1970: by its record, else its name, else the file system."""
    record = folder / COMMAND
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        return datetime.fromisoformat(_content(record)["started_at"]).timestamp()
    with suppress(ValueError, OverflowError):
        return datetime.strptime(name_of(folder), _NAME).timestamp()
    return (record if record.is_file() else folder).stat().st_mtime


def _mask_tag(text: str) -> str:
    return mask_secrets(text) if is_tag(text) else text


def _content(file: Path) -> Any:
    with open(file, "rb", opener=open_regular) as handle:
        return jsonl.loads(handle.read(_MAX_COMMAND_BYTES))


def read_right_rows(
    folder: Path, identify: Callable[[Row], Identity] = identify_in_workload
) -> dict[int, dict[Identity, Row]]:
    """Read the row of each point whose last attempt was right, by repetition.

    Points are told apart by `identify`.

    Raises:
        KvexpError: The folder holds a file that is not one of rows.
    """
    found: dict[int, dict[Identity, Row]] = {}
    for row in select_newest(read(folder)):
        if is_right(row["status"]):
            found.setdefault(get_repetition(row), {})[identify(row)] = row
    return found


def next_number(folder: Path) -> int:
    """Return the number of the next curve's folder: above that of every folder, with or without rows."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise KvexpError(f"{folder} cannot be listed ({error.strerror})") from error
    return max((int(name) for name in names if name.isascii() and name.isdecimal()), default=-1) + 1
