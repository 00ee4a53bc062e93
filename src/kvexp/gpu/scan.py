"""Poison a cache's storage, and answer questions about whole memories at the speed of reading them.

Poison is what a byte holds that nobody wrote. It depends on the byte's place, so that poison which was copied
from elsewhere in the storage is seen as well: the word of 8 bytes at byte `8 * i` is `(i + 1) * FACTOR`,
modulo 2^64.

Verification asks for tens of gigabytes at every point. On a GPU torch's own reductions read whole words at a
third of the memory's speed, and a product to be summed is written first; so there each question is a kernel
of its own.
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
"""An index that no byte has."""

CHUNK_WORDS = 8 << 20
"""Words that a CPU looks at in one go."""


def poison(storage: Tensor, begin: int = 0, end: int | None = None) -> None:
    """Fill the bytes from `begin` to `end`, all by default, with the poison of their places.

    Args:
        storage: uint8, contiguous, from the first byte that poison is counted from.
        begin: A multiple of 8.
        end: The byte after the last.
    """
    region = storage[begin:end]
    words, rest = _parts(region) if begin % VECTOR == 0 else (region[:0].view(torch.int64), region)
    at = begin + words.numel() * WORD
    if rest.numel():
        rest.copy_(
            _pattern(at // WORD, -(-rest.numel() // WORD), storage.device).view(torch.uint8)[: len(rest)]
        )
    if words.is_cuda:
        vectors = words.numel() * WORD // VECTOR
        if vectors:
            _launch("fill", words, _macros(), (words,), vectors, begin // VECTOR)
        return
    for first in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[first : first + CHUNK_WORDS]
        chunk.copy_(_pattern(begin // WORD + first, len(chunk), storage.device))


def poison_rows(storage: Tensor, plane: Tensor, slot_dim: int, slots: Tensor) -> None:
    """Fill the rows of some slots of a plane with the poison of their places.

    Args:
        storage: uint8, contiguous, from the first byte that poison is counted from.
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


def first_unpoisoned(storage: Tensor) -> Callable[[], int | None]:
    """Ask which byte is the first that is no poison.

    A GPU is asked behind all that is queued on the current stream, and not waited for: what comes next can be
    prepared meanwhile, and even change the memory.

    Args:
        storage: uint8, contiguous, from the first byte that poison is counted from.

    Returns:
        Waits for the answer: the byte's index, None where there is no such byte.
    """
    words, rest = _parts(storage)
    asked = _pattern(words.numel(), -(-rest.numel() // WORD), rest.device).view(torch.uint8)[: rest.numel()]
    if not words.is_cuda:
        found = _first_other(words)
        if found is None and bool((rest != asked).any()):
            found = words.numel() * WORD + int((rest != asked).view(torch.uint8).argmax())
        return lambda: found
    index = _asked("unpoisoned", words, NOWHERE)
    others = rest != asked

    def answer() -> int | None:
        if int(index) != NOWHERE:
            return int(index)
        return words.numel() * WORD + int(others.view(torch.uint8).argmax()) if bool(others.any()) else None

    return answer


def _first_other(words: Tensor) -> int | None:
    """Return the first byte of the host's words that is no poison."""
    first_pattern = _pattern(0, min(CHUNK_WORDS, words.numel()), words.device)
    for start in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        # A later chunk's pattern is the first one's and what the first word's is more: no other is made.
        more = _pattern(start, 1, words.device) - FACTOR
        differs = torch.sub(chunk, first_pattern[: len(chunk)]) != more
        if bool(differs.any()):
            at = int(differs.view(torch.uint8).argmax())
            found = chunk[at : at + 1].view(torch.uint8)
            other = found != _pattern(start + at, 1, words.device).view(torch.uint8)
            return (start + at) * WORD + int(other.view(torch.uint8).argmax())
    return None


def checksum(tensor: Tensor) -> int:
    """Return a number that changes when a byte of a contiguous tensor does, or when words trade places."""
    return checksums([tensor])[0]


def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """Return the checksum of each tensor, all on one device; a GPU is waited for once."""
    sums = []
    for tensor in tensors:
        words, rest = _parts(tensor.view(-1).view(torch.uint8))
        total = _asked("checksum", words, 0) if words.is_cuda else _weighted(words)
        sums.append(total + rest.sum(dtype=torch.int64))
    found: list[int] = torch.stack(sums).tolist() if sums else []
    return found


def _pattern(first: int, count: int, device: torch.device) -> Tensor:
    """Return the poison of so many words, int64, from that one on."""
    return torch.arange(first + 1, first + 1 + count, dtype=torch.int64, device=device).mul_(FACTOR)


def _parts(memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole vectors as int64 words, and the bytes that remain: all, where no vector could begin."""
    if memory.data_ptr() % VECTOR or memory.storage_offset() % WORD:
        return memory.new_empty(0, dtype=torch.int64), memory
    whole = memory.numel() // VECTOR * VECTOR
    return memory[:whole].view(torch.int64), memory[whole:]


def _asked(question: str, words: Tensor, before: int) -> Tensor:
    """Return where the answer will be, int64, which is `before` until then."""
    found = torch.full((), before, dtype=torch.int64, device=words.device)
    vectors = words.numel() * WORD // VECTOR
    if vectors:
        _launch(question, words, _macros(), (words, found), vectors)
    return found


def _launch(
    name: str,
    on: Tensor,
    macros: tuple[tuple[str, int], ...],
    tensors: tuple[Tensor, ...],
    *sizes: int,
    count: int | None = None,
) -> None:
    """Launch a kernel for so many elements, as many as its first size says by default."""
    sm_count = torch.cuda.get_device_properties(on.device).multi_processor_count
    grid = min(-(-(sizes[0] if count is None else count) // THREADS), sm_count * CTAS_PER_SM)
    nvrtc.bound(SOURCE, name, macros, grid, THREADS, tensors, *sizes)()


def _macros(word: int = WORD) -> tuple[tuple[str, int], ...]:
    return (("THREADS", THREADS), ("WORD", word))


def _weighted(words: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.int64)
    for first in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[first : first + CHUNK_WORDS]
        total += (chunk * (2 * torch.arange(first, first + chunk.numel()) + 1)).sum()
    return total
