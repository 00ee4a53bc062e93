"""What the machine could do, measured in the same process, mode and L2 state as the op beside it.

The copy reads and writes as many bytes as the op must, into the curve's own cache memory; so
`copy_us / latency_us` says how near the op is to the memory's speed, whatever the machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvexp import jit
from kvexp.op import Call
from kvexp.verify import POISON
from kvexp.workload import GUARD_BYTES, Memory

SOURCE = Path(__file__).with_name("ceiling.cu")
THREADS = 256
VECTOR = 16
SLOT_BYTES = 8


def copy_calls(
    memory: Memory,
    num_tokens: int,
    read: int,
    written: int,
    count: int,
    unroll: int,
    windows: int = 1,
) -> Sequence[Call]:
    """Copies that read and write these bytes, each to the next place of the cache's memory.

    Args:
        memory: The curve's memory; the copies read its inputs and slots and write its cache.
        num_tokens: Tokens of the op's call; each copy reads as many slots, and its own.
        read: Bytes that one copy reads: the slots', and a multiple of `written`.
        written: Bytes that one copy writes.
        count: Different places to write that are wanted; fewer come where the cache holds fewer.
        unroll: Vectors that a thread moves on a GPU.
        windows: Different places of the inputs to read from, on a GPU.

    Returns:
        The calls; none when one copy is less than a vector or more than the cache, or on a CPU when it would
        have to read more than it writes.
    """
    storage = memory.cache.storage[GUARD_BYTES:-GUARD_BYTES]
    step = -(-written // VECTOR) * VECTOR
    count = min(count, storage.numel() // step)
    places = [storage[i * step : i * step + written] for i in range(count)]
    reads = (read - SLOT_BYTES * num_tokens) // written
    if storage.device.type == "cpu":
        # torch has no copy that reads more than it writes; the slots' bytes are not worth one.
        return [_cpu_copy(memory, place) for place in places] if reads == 1 else []
    if written < VECTOR:
        return []
    # Whole vectors of slots, each copy its own.
    stride = num_tokens + num_tokens % 2
    slots = [memory.slots[i * stride :][:num_tokens] for i in range(len(places))]
    source = memory.inputs.view(torch.uint8)
    apart = -(-reads * written // VECTOR) * VECTOR
    windows = max(1, min(windows, source.numel() // apart))
    return [
        _gpu_copy(source[i % windows * apart :], reads, slots[i % count], places[i % count], unroll)
        for i in range(max(count, windows) if count else 0)
    ]


def unrolls(device: str, written: int) -> tuple[int, ...]:
    """Shapes of the copy to try; the fastest is the ceiling. One vector a thread is best for few bytes."""
    if device == "cpu":
        return (1,)
    threads = torch.cuda.get_device_properties(torch.device(device)).multi_processor_count * 2048
    return (1,) if written < threads * VECTOR else (1, 2, 4)


def restore(memory: Memory, written: int, count: int) -> None:
    """The bytes that `copy_calls` wrote are poison again."""
    step = -(-written // VECTOR) * VECTOR
    memory.cache.storage[GUARD_BYTES:-GUARD_BYTES][: step * count].fill_(POISON)


def empty_call(device: str) -> Call:
    """A kernel that does nothing: what a launch costs."""
    return _bound("empty", 1, 1, 1, torch.device(device), ())


def _gpu_copy(source: Tensor, reads: int, slots: Tensor, place: Tensor, unroll: int) -> Call:
    writes = place.numel() // VECTOR
    extras = slots.numel() * SLOT_BYTES // VECTOR
    grid = -(-writes // (THREADS * unroll))
    tensors = (source, slots, place)
    return _bound("copy", grid, unroll, reads, place.device, tensors, writes, extras)


def _bound(
    name: str,
    grid: int,
    unroll: int,
    reads: int,
    device: torch.device,
    tensors: tuple[Tensor, ...],
    *sizes: int,
) -> Call:
    from cuda.core import LaunchConfig, Stream, launch

    major, minor = torch.cuda.get_device_capability(device)
    macros = (("THREADS", THREADS), ("UNROLL", unroll), ("READS", reads))
    kernel: Any = jit.kernel(SOURCE, name, macros, f"sm_{major}{minor}")
    config = LaunchConfig(grid=grid, block=THREADS)
    arguments = (*(tensor.data_ptr() for tensor in tensors), *sizes)

    def call() -> None:
        stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
        launch(stream, config, kernel, *arguments)

    return call


def _cpu_copy(memory: Memory, place: Tensor) -> Call:
    source = memory.inputs.view(torch.uint8).view(-1)[: place.numel()]

    def call() -> None:
        place.copy_(source)

    return call
