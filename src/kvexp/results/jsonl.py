"""Files of JSON lines: appended one whole line at a time, and read without trust in who wrote them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from kvexp.errors import KvexpError

LONGEST_BYTES = 1 << 24
"""Of one line: a row takes some 2 KB, a thousand samples some 20 KB, and a compiler's log rarely more."""
TORN = "{file}, line {number}: the last line is not whole and was left out"

Told = Callable[[str], None]


def append(file: Path, line: str) -> None:
    """The line is on the disk, whole, or the file is as it was.

    Raises:
        OSError: It could not be written, for example since the disk is full.
    """
    is_new = not file.exists()
    with file.open("ab", buffering=0) as handle:
        before = handle.seek(0, os.SEEK_END)
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[handle.write(left) :]
            os.fsync(handle.fileno())
        except BaseException:
            # Ctrl-C between two writes, too: a piece of a line would be lost with the one after it.
            handle.truncate(before)
            raise
    if is_new:
        _sync_folder(file.parent)


def mend(file: Path, on_torn: Told) -> None:
    """The file ends with a newline: a line that a killed writer left unfinished is cut off, with a word.

    Without this the next line would be glued to the torn one, and both would be lost.
    """
    if not file.exists():
        return
    with file.open("r+b") as handle:
        content = handle.read()
        tail = content[content.rfind(b"\n") + 1 :]
        if not tail:
            return
        if _is_object(tail):
            handle.write(b"\n")
        else:
            handle.truncate(len(content) - len(tail))
            on_torn(TORN.format(file=file, number=content.count(b"\n") + 1))


def read(file: Path, on_torn: Told) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number and its object; of a last line that is not whole `on_torn` is told.

    Raises:
        KvexpError: The file cannot be read, or a line before the last is no object of strict JSON.
    """
    number = 0
    try:
        with file.open("rb") as handle:
            # By the newline byte alone: str.splitlines would also break at U+2028 inside a string.
            while line := handle.readline(LONGEST_BYTES + 1):
                number += 1
                if len(line) > LONGEST_BYTES:
                    raise KvexpError(
                        f"{file}, line {number}: longer than the {LONGEST_BYTES} bytes of any row"
                    )
                try:
                    found = loads(line)
                except ValueError as error:
                    if handle.read(1):
                        raise KvexpError(f"{file}, line {number}: not JSON ({error})") from error
                    on_torn(TORN.format(file=file, number=number))
                    return
                if not isinstance(found, dict):
                    raise KvexpError(f"{file}, line {number}: a row is a JSON object, not {line[:40]!r}")
                yield number, found
    except OSError as error:
        raise KvexpError(f"{file} cannot be read ({error.strerror})") from error


def loads(line: bytes) -> Any:
    """The value of one line of strict JSON.

    Raises:
        ValueError: It is anything else, NaN and brackets nested without end included.
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
    """The folder's list of files is on the disk, too, or a power loss could take a file of synced lines."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
