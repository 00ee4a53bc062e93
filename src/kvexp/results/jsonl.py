"""Append whole lines to files of JSON lines, and check every line that is read."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from kvexp.errors import ConfigError
from kvexp.host.plain_file import open_plain, open_regular

MAX_LINE_BYTES = 1 << 24
"""A row takes some 2 KB, a thousand samples some 20 KB, and a compiler's log rarely more."""
TORN = "{file}, line {number}: the last line is not whole and was left out"

OnTorn = Callable[[str], None]


def append(file: Path, line: str) -> None:
    """Append the line and sync it to the disk; if that fails the file is as before.

    Raises:
        OSError: It cannot be written, for example since the disk is full.
    """
    is_new = not file.exists()
    with open(file, "ab", buffering=0, opener=open_plain) as handle:
        before = handle.seek(0, os.SEEK_END)
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[handle.write(left) :]
            os.fsync(handle.fileno())
        except BaseException:
            # Also on Ctrl-C between two writes: a piece of a line would spoil the next one.
            handle.truncate(before)
            raise
    if is_new:
        _sync_folder(file.parent)


def mend(file: Path, on_torn: OnTorn) -> None:
    """Make the file end with a newline; cut off a last line that a killed writer left unfinished.

    Without this the next line would be appended to the torn one, and both would be lost. `on_torn` is called
    with a sentence when a line is cut off.
    """
    if not file.exists():
        return
    with open(file, "r+b", opener=open_plain) as handle:
        content = handle.read()
        tail = content[content.rfind(b"\n") + 1 :]
        if not tail:
            return
        if _is_object(tail):
            handle.write(b"\n")
        else:
            handle.truncate(len(content) - len(tail))
            on_torn(TORN.format(file=file, number=content.count(b"\n") + 1))


def read(file: Path, on_torn: OnTorn) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's number and its object; call `on_torn` with a sentence for an unfinished last line.

    Raises:
        ConfigError: The file cannot be read, or a line that ends is not an object of strict JSON.
    """
    number = 0
    try:
        with open(file, "rb", opener=open_regular) as handle:
            # Split at the newline byte alone: str.splitlines would also break at U+2028 inside a string.
            while line := handle.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ConfigError(
                        f"{file}, line {number}: longer than the {MAX_LINE_BYTES} bytes of any row"
                    )
                try:
                    found = loads(line)
                except ValueError as error:
                    if line.endswith(b"\n"):  # written whole, by someone else
                        raise ConfigError(f"{file}, line {number}: not JSON ({error})") from error
                    on_torn(TORN.format(file=file, number=number))
                    return
                if not isinstance(found, dict):
                    raise ConfigError(f"{file}, line {number}: a row is a JSON object, not {line[:40]!r}")
                yield number, found
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror})") from error


def loads(line: bytes) -> Any:
    """Parse one line of strict JSON.

    Raises:
        ValueError: It is anything else, such as NaN or brackets nested too deeply.
    """
    try:
        return json.loads(line.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(loads(line), dict)
    except ValueError:
        return False


def _sync_folder(folder: Path) -> None:
    """Sync the folder's list of files, or a power loss could lose a file whose lines are synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
