"""Poison a cache's storage, find bytes that are no longer poison, and compute checksums.

Poison is the value of a byte that nobody wrote. It depends on the byte's place, so that poison copied from
elsewhere in the storage is found as well: the word of 8 bytes at byte `8 * i` is `(i + 1) * FACTOR`, modulo
2^64.

Verification scans tens of gigabytes at every point. On a GPU torch's own reductions run at a third of the
memory's bandwidth, and a weighted sum writes its products first; so there each scan is a kernel of its own.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kvexp.gpu import nvrtc

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
CTAS_PER_SM = 8
VECTOR = 16
WORD = 8

FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, an odd number, as an int64: multiples of it differ in all of their bytes."""

NOWHERE = 2**63 - 1
"""Stands for no index."""

CHUNK_WORDS = 8 << 20
"""Words that a CPU scans at a time."""


def poison(storage: Tensor, begin: int = 0, end: int | None = None) -> None:
    """Fill the bytes from `begin` to `end`, all by default, with the poison of their places.

    Args:
        storage: uint8, contiguous; poison is counted from its first byte.
        begin: A multiple of 8.
        end: The byte after the last.
    """
    region = storage[begin:end]
    words, rest = _split(region) if begin % VECTOR == 0 else (region[:0].view(torch.int64), region)
    at = begin + words.numel() * WORD
    if rest.numel():
        rest.copy_(
            _make_poison(at // WORD, -(-rest.numel() // WORD), storage.device).view(torch.uint8)[: len(rest)]
        )
    if words.is_cuda:
        vectors = words.numel() * WORD // VECTOR
        if vectors:
            _launch("fill", words, _macros(), (words,), vectors, begin // VECTOR)
        return
    for first in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[first : first + CHUNK_WORDS]
        chunk.copy_(_make_poison(begin // WORD + first, len(chunk), storage.device))


def poison_rows(storage: Tensor, plane: Tensor, slot_dim: int, slots: Tensor) -> None:
    """Fill the rows of some slots of a plane with the poison of their places.

    Args:
        storage: uint8, contiguous; poison is counted from its first byte.
        plane: Integers, a view of the storage; blocks in its first dim.
        slot_dim: The dim of a block's slots.
        slots: int64 `[n]`, all valid.
    """
    inner = torch.zeros(1, dtype=torch.int64, device=plane.device)
    for dim, (size, stride) in enumerate(zip(plane.shape, plane.stride(), strict=True)):
        if dim not in (0, slot_dim):
            steps = torch.arange(size, device=plane.device) * stride
            inner = (inner.unsqueeze(-1) + steps).view(-1)
    block_size, base = plane.shape[slot_dim], int(plane.storage_offset())
    strides = plane.stride(0), plane.stride(slot_dim)
    words = storage.as_strided((storage.numel() // plane.itemsize * plane.itemsize,), (1,)).view(plane.dtype)
    if plane.is_cuda:
        sizes = (slots.numel(), inner.numel(), block_size, base, *strides)
        if slots.numel():
            slots = slots.contiguous()
            count = slots.numel() * inner.numel()
            _launch("fill_rows", slots, _macros(plane.itemsize), (words, slots, inner), *sizes, count=count)
        return
    at = base + slots // block_size * strides[0] + slots % block_size * strides[1]
    places = (at.unsqueeze(-1) + inner).view(-1)
    bytes_at = places * plane.itemsize
    values = (bytes_at // WORD + 1) * FACTOR
    words[places] = (values >> (8 * (bytes_at % WORD))).to(plane.dtype)


def find_unpoisoned(storage: Tensor) -> Callable[[], int | None]:
    """Find the first byte of a storage, see `poison`, that is not poison.

    On a GPU the scan is queued on the current stream and not waited for; work queued later may already change
    the memory. The returned function waits for the result: the byte's index, or None.
    """
    words, rest = _split(storage)
    expected = _make_poison(words.numel(), -(-rest.numel() // WORD), rest.device).view(torch.uint8)[
        : rest.numel()
    ]
    if not words.is_cuda:
        found = _find_unpoisoned_on_host(words)
        if found is None and bool((rest != expected).any()):
            found = words.numel() * WORD + int((rest != expected).view(torch.uint8).argmax())
        return lambda: found
    index = _start_scan("unpoisoned", words, NOWHERE)
    others = rest != expected

    def answer() -> int | None:
        if int(index) != NOWHERE:
            return int(index)
        return words.numel() * WORD + int(others.view(torch.uint8).argmax()) if bool(others.any()) else None

    return answer


def _find_unpoisoned_on_host(words: Tensor) -> int | None:
    """Return the index of the first byte of words in host memory that is not poison; None without one."""
    first_poison = _make_poison(0, min(CHUNK_WORDS, words.numel()), words.device)
    for start in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        # A later chunk's poison is the first chunk's plus a constant, so none is made anew.
        more = _make_poison(start, 1, words.device) - FACTOR
        differs = torch.sub(chunk, first_poison[: len(chunk)]) != more
        if bool(differs.any()):
            at = int(differs.view(torch.uint8).argmax())
            found = chunk[at : at + 1].view(torch.uint8)
            other = found != _make_poison(start + at, 1, words.device).view(torch.uint8)
            return (start + at) * WORD + int(other.view(torch.uint8).argmax())
    return None


def checksum(tensor: Tensor) -> int:
    """Return a number that changes when a byte of a contiguous tensor changes or two words are swapped."""
    return checksums([tensor])[0]


def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """Return the checksum of each tensor, all on one device; wait for a GPU only once."""
    sums = []
    for tensor in tensors:
        words, rest = _split(tensor.view(-1).view(torch.uint8))
        total = _start_scan("checksum", words, 0) if words.is_cuda else _sum_weighted(words)
        sums.append(total + rest.sum(dtype=torch.int64))
    found: list[int] = torch.stack(sums).tolist() if sums else []
    return found


def _make_poison(first: int, count: int, device: torch.device) -> Tensor:
    """Return the poison of `count` words, int64, from word `first` on."""
    return torch.arange(first + 1, first + 1 + count, dtype=torch.int64, device=device).mul_(FACTOR)


def _split(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole vectors as int64 words and the remaining bytes: all of them if not aligned."""
    if memory.data_ptr() % VECTOR or memory.storage_offset() % WORD:
        return memory.new_empty(0, dtype=torch.int64), memory
    whole = memory.numel() // VECTOR * VECTOR
    return memory[:whole].view(torch.int64), memory[whole:]


def _start_scan(kernel: str, words: Tensor, before: int) -> Tensor:
    """Launch a scan and return the int64 tensor of its result, which is `before` until then."""
    found = torch.full((), before, dtype=torch.int64, device=words.device)
    vectors = words.numel() * WORD // VECTOR
    if vectors:
        _launch(kernel, words, _macros(), (words, found), vectors)
    return found


def _launch(
    name: str,
    on: Tensor,
    macros: tuple[tuple[str, int], ...],
    tensors: tuple[Tensor, ...],
    *sizes: int,
    count: int | None = None,
) -> None:
    """Launch a kernel for `count` elements, by default its first size."""
    sm_count = torch.cuda.get_device_properties(on.device).multi_processor_count
    grid = min(-(-(sizes[0] if count is None else count) // THREADS), sm_count * CTAS_PER_SM)
    nvrtc.bind(SOURCE, name, macros, grid, THREADS, tensors, *sizes)()


def _macros(word: int = WORD) -> tuple[tuple[str, int], ...]:
    return (("THREADS", THREADS), ("WORD", word))


def _sum_weighted(words: Tensor) -> Tensor:
    """Return the sum of each word times `2 * index + 1`, modulo 2^64."""
    total = torch.zeros((), dtype=torch.int64)
    for first in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[first : first + CHUNK_WORDS]
        total += (chunk * (2 * torch.arange(first, first + chunk.numel()) + 1)).sum()
    return total
