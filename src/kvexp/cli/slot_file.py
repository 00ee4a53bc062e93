"""Read a recorded slot mapping from a file, and check it."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from kvexp.case import NO_SLOT
from kvexp.errors import ConfigError
from kvexp.host.plain_file import open_regular

SUFFIXES = (".npy", ".json")
"""Of the files that a mapping can be read from."""

_MOST_BYTES = 1 << 30


def read_slots(file: Path) -> tuple[int, ...]:
    """Read a slot mapping: the slot of each token, -1 for padding.

    Raises:
        ConfigError: It cannot be read, or is no slot mapping.
    """
    try:
        with open(file, "rb", opener=open_regular) as opened:
            if opened.seek(0, 2) > _MOST_BYTES:
                raise ConfigError(f"{file} has more than {_MOST_BYTES} bytes, too many for a slot mapping")
            opened.seek(0)
            slots = _load_npy(opened) if file.suffix == ".npy" else json.load(opened)
    except OSError as error:
        raise ConfigError(f"cannot read the slots of {file} ({error.strerror or error})") from error
    except (ValueError, EOFError, MemoryError, RecursionError) as error:
        kind = "numpy array without Python objects" if file.suffix == ".npy" else "JSON list"
        raise ConfigError(f"{file} holds no slots: it must be a {kind} of whole numbers") from error
    return _check_slots(slots, file)


def hash_slots(slots: Sequence[int]) -> str:
    """Return what a case names a recorded mapping by: a hash of its slots, whatever file they are in."""
    return f"sha256:{hashlib.sha256(json.dumps(list(slots)).encode()).hexdigest()[:16]}"


def check_range(slots: Sequence[int], num_slots: int, file: str) -> None:
    """Check that a cache has the slots.

    Raises:
        ConfigError: It has fewer.
    """
    if max(slots) >= num_slots:
        raise ConfigError(
            f"{file} has slot {max(slots)}, and the cache has {num_slots}: "
            "set workload.num_blocks and workload.block_size"
        )


def _load_npy(opened: BinaryIO) -> object:
    import numpy  # here, since few sweeps need it

    loaded = numpy.load(opened, allow_pickle=False)
    if not isinstance(loaded, numpy.ndarray) or loaded.dtype.kind not in "iu":
        raise ValueError("no array of whole numbers")
    return loaded.tolist()


def _check_slots(slots: object, file: Path) -> tuple[int, ...]:
    if not isinstance(slots, list) or not all(type(slot) is int for slot in slots):
        raise ConfigError(f"{file} holds no slots: it must be one list of whole numbers")
    written = [slot for slot in slots if slot != NO_SLOT]
    if not written:
        raise ConfigError(f"{file} has no slot to write")
    if min(written) < 0:
        raise ConfigError(f"{file} has slot {min(written)}; slots are numbered from 0, and padding is -1")
    if len(set(written)) < len(written):
        ((twice, _),) = Counter(written).most_common(1)
        raise ConfigError(f"{file} has slot {twice} twice; each token needs a slot of its own")
    return tuple(slots)
