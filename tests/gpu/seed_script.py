"""The flash benchmark as the seeds' script does it: what a whole process takes that checks and keeps nothing.

`python -m tests.gpu.seed_script` has for each layout and num_tokens inputs and a cache of its own, of 69 GB
and filled; a CUDA graph of one call; and the host's time for 100 synchronised replays.
`experiment=seed_flash impl=cuda` measures the same points.
"""

import random
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import kvexp

HEADS, HEAD_SIZE, BLOCK_SIZE, NUM_BLOCKS = 128, 128, 16, 65536
NUM_TOKENS = [2**exponent for exponent in range(1, 17)]
WARM_UP, REPLAYS = 3, 100
SEED = 42


def caches(layout: str) -> tuple[Tensor, Tensor]:
    """K's and V's cache, `[num_blocks, block_size, num_heads, head_size]` whatever lies behind."""
    inner = (BLOCK_SIZE, HEADS) if layout == "NHD" else (HEADS, BLOCK_SIZE)
    both = torch.empty((2, NUM_BLOCKS, *inner, HEAD_SIZE), dtype=torch.bfloat16)
    key, value = both.uniform_(-(HEAD_SIZE**-0.5), HEAD_SIZE**-0.5)
    return (key, value) if layout == "NHD" else (key.transpose(1, 2), value.transpose(1, 2))


def replayed_us(call: Callable[[], None]) -> float:
    """The host's mean time for a replay, synchronised at its end."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    begin = 0.0
    for replay in range(WARM_UP + REPLAYS):
        torch.cuda.synchronize()
        if replay == WARM_UP:
            begin = time.perf_counter()
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e6 / REPLAYS


def measured_us(layout: str, num_tokens: int) -> float:
    """The latency of a point as this method reads it."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    key, value = torch.randn((2, num_tokens, HEADS, HEAD_SIZE), dtype=torch.bfloat16)
    slots = torch.tensor(random.sample(range(NUM_BLOCKS * BLOCK_SIZE), num_tokens))
    cache = caches(layout)
    scales = [(rows.amax() / 64).float() for rows in (key, value)]
    return replayed_us(lambda: kvexp.reshape_and_cache_flash(key, value, *cache, slots, "auto", *scales))


def main() -> None:
    """Every point, printed."""
    torch.set_default_device("cuda")
    for layout in ("NHD", "HND"):
        for num_tokens in NUM_TOKENS:
            sys.stdout.write(f"{num_tokens:6} {layout} {measured_us(layout, num_tokens):10.3f} us\n")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
