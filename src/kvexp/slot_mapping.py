"""Read slot mappings that people have: recorded ones from a file, and batches in vLLM's grammar."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvexp.errors import ConfigError
from kvexp.host.plain_file import open_regular

NO_SLOT = -1
"""The slot of a padding token."""

SUFFIXES = (".npy", ".json")
"""Of the files that a mapping can be read from."""

_MOST_BYTES = 1 << 30
_REQUESTS = re.compile(r"(\d{0,9})q(\d{1,9})(k?)(?:s(\d{1,9})(k?))?", re.ASCII)


@dataclass(frozen=True)
class Requests:
    """Equal requests of a batch.

    Attributes:
        count: How many.
        new: New tokens of each, which are written.
        total: Tokens of each, the new ones included.
    """

    count: int
    new: int
    total: int

    def __str__(self) -> str:
        total = f"s{_format_number(self.total)}" if self.total != self.new else ""
        return f"{self.count if self.count > 1 else ''}q{_format_number(self.new)}{total}"


def parse_batch(text: str) -> tuple[Requests, ...]:
    """Parse a batch, such as `8q1s1k_2q2k`.

    That is 8 requests of 1 new token and 1024 in all, and 2 of 2048 new ones. The grammar is that of vLLM's
    benchmarks/attention_benchmarks: a count (1 if left out), `q` and the new tokens, `s` and the total (the
    new ones if left out); `k` is times 1024.

    Raises:
        ConfigError: It is no batch.
    """
    return tuple(map(_parse_requests, text.split("_")))


def format_batch(batch: Sequence[Requests]) -> str:
    """Write a batch in its shortest form, the same for all ways to write it."""
    return "_".join(map(str, batch))


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


def _parse_requests(text: str) -> Requests:
    match = _REQUESTS.fullmatch(text)
    if match is None:
        raise ConfigError(
            "workload.batch must be requests such as 8q1s1k_2q2k (8 of 1 new token and 1024 in all, "
            f"2 of 2048 new ones), not {text!r}"
        )
    count, new, new_k, total, total_k = match.groups()
    new_tokens = _read_number(new, new_k)
    requests = Requests(int(count or 1), new_tokens, _read_number(total, total_k) if total else new_tokens)
    if requests.count < 1 or requests.new < 1 or requests.total < requests.new:
        raise ConfigError(
            f"workload.batch has {text!r}: requests and new tokens (q) must be at least 1, "
            "and all tokens (s) at least the new ones"
        )
    return requests


def _read_number(digits: str, suffix: str) -> int:
    return int(digits) * (1024 if suffix else 1)


def _format_number(number: int) -> str:
    return f"{number // 1024}k" if number % 1024 == 0 else str(number)


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
