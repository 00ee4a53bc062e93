"""Questions about whole memories, answered at the speed of reading them.

Verification asks them of tens of gigabytes at every point. On a GPU torch's own reductions read whole words
at a third of the memory's speed, and a product to be summed is written first; so there each question is a
kernel of its own.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kvexp import jit

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
CTAS_PER_SM = 8
VECTOR = 16
WORD = 8

NOWHERE = 2**63 - 1
"""An index that no byte has."""

CHUNK_WORDS = 8 << 20
"""Words that a CPU looks at in one go."""


def first_other(byte: int, memory: Tensor) -> Callable[[], int | None]:
    """Asks which byte of a memory is the first that is another than this one.

    A GPU is asked behind all that is queued on the current stream, and not waited for: what comes next can be
    prepared meanwhile, and even change the memory.

    Args:
        byte: 0 to 255.
        memory: uint8, contiguous.

    Returns:
        Waits for the answer: the byte's index, None where there is no such byte.
    """
    words, rest = _parts(memory)
    if not words.is_cuda:
        found = _first_other(byte, memory)
        return lambda: found
    index = _asked("other", words, NOWHERE, _word(byte))
    rest = rest.clone()

    def answer() -> int | None:
        if int(index) != NOWHERE:
            return int(index)
        others = (rest != byte).nonzero()
        return memory.numel() - rest.numel() + int(others[0]) if len(others) else None

    return answer


def _first_other(byte: int, memory: Tensor) -> int | None:
    """The same for the host's memory. Least and largest come first: one pass, and nothing is written."""
    for start in range(0, memory.numel(), CHUNK_WORDS * WORD):
        chunk = memory[start : start + CHUNK_WORDS * WORD]
        words, rest = _parts(chunk)
        ends = torch.stack(torch.aminmax(words)) if words.numel() else words
        if bool((ends != _word(byte)).any()) or bool((rest != byte).any()):
            return start + int((chunk != byte).view(torch.uint8).argmax())
    return None


def checksum(tensor: Tensor) -> int:
    """A number that changes when a byte of a contiguous tensor does, or when words trade places."""
    words, rest = _parts(tensor.view(-1).view(torch.uint8))
    total = int(_asked("checksum", words, 0)) if words.is_cuda else _weighted(words)
    return total + int(rest.sum(dtype=torch.int64))


def _parts(memory: Tensor) -> tuple[Tensor, Tensor]:
    """The words, int64, of whole vectors, and the bytes that remain: all, where no vector could begin."""
    if memory.data_ptr() % VECTOR or memory.storage_offset() % WORD:
        return memory.new_empty(0, dtype=torch.int64), memory
    whole = memory.numel() // VECTOR * VECTOR
    return memory[:whole].view(torch.int64), memory[whole:]


def _word(byte: int) -> int:
    """Eight of these bytes, as an int64."""
    return int.from_bytes(bytes([byte]) * WORD, "little", signed=True)


def _asked(question: str, words: Tensor, before: int, *sizes: int) -> Tensor:
    """Where the answer will be, int64, which is `before` until then."""
    found = torch.full((), before, dtype=torch.int64, device=words.device)
    vectors = words.numel() * WORD // VECTOR
    if vectors:
        sm_count = torch.cuda.get_device_properties(words.device).multi_processor_count
        grid = min(-(-vectors // THREADS), sm_count * CTAS_PER_SM)
        macros = (("THREADS", THREADS),)
        jit.bound(SOURCE, question, macros, grid, THREADS, (words, found), vectors, *sizes)()
    return found


def _weighted(words: Tensor) -> int:
    total = torch.zeros((), dtype=torch.int64)
    for first in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[first : first + CHUNK_WORDS]
        total += (chunk * (2 * torch.arange(first, first + chunk.numel()) + 1)).sum()
    return int(total)
