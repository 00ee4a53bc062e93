"""Questions about whole memories, answered at the speed of reading them.

Verification asks them of tens of gigabytes at every point. On a GPU torch's own reductions read whole words
at a third of the memory's speed, and a product to be summed is written first; so there each question is a
kernel of its own.
"""

from pathlib import Path

import torch
from torch import Tensor

from kvexp import jit

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
CTAS_PER_SM = 8
VECTOR = 16
WORD = 8

CHUNK_WORDS = 8 << 20
"""Words that a CPU looks at in one go."""


def is_all(byte: int, memory: Tensor) -> bool:
    """Whether every byte of the memory is this one.

    Args:
        byte: 0 to 255.
        memory: uint8, contiguous.
    """
    word = int.from_bytes(bytes([byte]) * WORD, "little", signed=True)
    words, rest = _parts(memory)
    if words.is_cuda:
        differs = bool(_asked("differs", words, word))
    else:
        # Least and largest: one pass, and nothing is written.
        chunks = words.split(CHUNK_WORDS) if words.numel() else ()
        ends = (int(end) for chunk in chunks for end in torch.aminmax(chunk))
        differs = any(end != word for end in ends)
    return not differs and bool((rest == byte).all())


def checksum(tensor: Tensor) -> int:
    """A number that changes when a byte of a contiguous tensor does, or when words trade places."""
    words, rest = _parts(tensor.view(-1).view(torch.uint8))
    total = _asked("checksum", words) if words.is_cuda else _weighted(words)
    return total + int(rest.sum(dtype=torch.int64))


def _parts(memory: Tensor) -> tuple[Tensor, Tensor]:
    """The words, int64, of whole vectors, and the bytes that remain: all, where no vector could begin."""
    if memory.data_ptr() % VECTOR or memory.storage_offset() % WORD:
        return memory.new_empty(0, dtype=torch.int64), memory
    whole = memory.numel() // VECTOR * VECTOR
    return memory[:whole].view(torch.int64), memory[whole:]


def _asked(question: str, words: Tensor, *sizes: int) -> int:
    found = torch.zeros((), dtype=torch.int64, device=words.device)
    vectors = words.numel() * WORD // VECTOR
    if vectors:
        sm_count = torch.cuda.get_device_properties(words.device).multi_processor_count
        grid = min(-(-vectors // THREADS), sm_count * CTAS_PER_SM)
        macros = (("THREADS", THREADS),)
        jit.bound(SOURCE, question, macros, grid, THREADS, (words, found), vectors, *sizes)()
    return int(found)


def _weighted(words: Tensor) -> int:
    total = torch.zeros((), dtype=torch.int64)
    for first in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[first : first + CHUNK_WORDS]
        total += (chunk * (2 * torch.arange(first, first + chunk.numel()) + 1)).sum()
    return int(total)
