"""Copy as many bytes as the op reads and writes, in the same process, mode and L2 state as the op beside it.

The copy writes into the curve's own cache memory, so `copy_us / latency_us` compares the op with a plain
memory copy, whatever the machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from kvexp.bench.verify import ROWS_BYTES, check_untouched
from kvexp.errors import IncorrectResult
from kvexp.gpu import copy_engine, nvrtc, scan
from kvexp.op import Call
from kvexp.timer.replay import Replay
from kvexp.timer.replay_plan import Plan
from kvexp.workload import GUARD_BYTES, Memory

SOURCE = Path(__file__).with_suffix(".cu")
THREADS = 256
VECTOR = 16
SLOT_BYTES = 8
MOST_READS = 16
"""Most vectors that the copy reads for each that it writes; more are a loop of another kernel."""


@dataclass(frozen=True)
class Move:
    """One copy, of bytes in the curve's memory.

    Attributes:
        source: uint8: where it begins to read.
        reads: Bytes that it reads from there for each byte that it writes.
        extra: uint8: what it reads besides, at most as much as it writes.
        place: uint8: where it writes, in the cache.
        by_engine: Whether the GPU's copy engines make it, not a kernel.
    """

    source: Tensor
    reads: int
    extra: Tensor
    place: Tensor
    by_engine: bool = False

    def make_call(self, unroll: int) -> Call:
        """Make the copy with so many vectors a thread, on a GPU; torch's on a CPU."""
        if self.place.device.type == "cpu":
            return _make_cpu_copy(self.source, self.place)
        if self.by_engine:
            return copy_engine.bind_copy(self.place, self.source[: self.place.numel()])
        writes = self.place.numel() // VECTOR
        extras = self.extra.numel() // VECTOR
        tensors = (self.source, self.extra, self.place)
        if self.reads > MOST_READS:
            macros, grid = _make_macros(1, 1), -(-writes // THREADS)
            return nvrtc.bind(SOURCE, "fold_many", macros, grid, THREADS, tensors, writes, extras, self.reads)
        grid = -(-writes // (THREADS * unroll))
        macros = _make_macros(unroll, self.reads)
        return nvrtc.bind(SOURCE, "copy", macros, grid, THREADS, tensors, writes, extras)

    def is_written(self) -> bool:
        """Return whether the place holds what the call writes: the exclusive or of the bytes it reads."""
        size = self.place.numel()
        read_besides = self.extra[: min(size, self.extra.numel() // VECTOR * VECTOR)]
        for at in range(0, size, ROWS_BYTES):
            found = self.place[at : at + ROWS_BYTES].clone()
            for read in range(self.reads):
                found ^= self.source[read * size + at :][: found.numel()]
            extra = read_besides[at:][: found.numel()]
            found[: extra.numel()] ^= extra
            if found.any():
                return False
        return True


def plan_moves(memory: Memory, indices: int, read: int, written: int, plan: Plan) -> list[Move]:
    """Plan copies that read and write these bytes, each to the next place of the cache's memory.

    Args:
        memory: The curve's memory; the copies read its inputs and slots and write its cache.
        indices: Indices that the op's call reads; each copy reads as many, and its own.
        read: Bytes that one copy reads, the slots' with them.
        written: Bytes that one copy writes; on a GPU whole vectors of them, and more where it reads so many
            times as many that they would not fill the GPU.
        plan: Of the op's calls. As many places are written as it has slot mappings, or as the cache holds.
            One is read; on a GPU, where inputs are cold, as many as it has windows. Copy
            engines make the copies of far memory.

    Returns:
        The copies in order; after the last the first comes again. None when one is less than a vector or more
        than the cache, or on a CPU when it would have to read more than it writes.
    """
    storage = memory.storage[GUARD_BYTES:-GUARD_BYTES]
    source = memory.inputs.view(torch.uint8).view(-1)
    step = -(-written // VECTOR) * VECTOR
    count = min(plan.mappings, storage.numel() // step)
    reads = max(1, (read - SLOT_BYTES * indices) // written)
    is_cpu = _is_cpu(storage)
    if is_cpu or memory.far:
        # These copy what they read; the few bytes of the slots are left out.
        places = [storage[i * step : i * step + written] for i in range(count)]
        can_copy = read == written + SLOT_BYTES * indices and written <= source.numel()
        return [Move(source, 1, source[:0], place, not is_cpu) for place in places if can_copy]
    if reads > MOST_READS:
        # So few writes would not fill the GPU: threads that do write what each has read.
        threads = min(_count_threads(storage.device), storage.numel() // VECTOR)
        written = max(written // VECTOR, threads) * VECTOR
        reads = max(1, (read - SLOT_BYTES * indices) // written)
        step = written
        count = min(plan.mappings, storage.numel() // step)
    size = written // VECTOR * VECTOR
    # Besides whole multiples of what it writes it reads the slots, or more inputs where the op reads more.
    rest = min(size, read - reads * written)
    has_more = rest > SLOT_BYTES * indices
    if has_more:  # instead of slots as many bytes more of the inputs, as far as they go
        rest = min(rest, source.numel() - reads * written)
    inputs = reads * written + (rest if has_more else 0)
    if not size or not count or reads * written > source.numel():
        return []
    places = [storage[i * step : i * step + size] for i in range(count)]
    # Whole vectors of slots, each copy its own.
    stride = indices + indices % 2
    slots = [memory.slots[i * stride :][:indices].view(torch.uint8) for i in range(count)]
    apart = -(-inputs // VECTOR) * VECTOR
    windows = max(1, min(plan.windows, source.numel() // apart)) if plan.inputs_state == "cold" else 1
    moves = []
    for call in range(min(plan.all_calls, math.lcm(count, windows))):
        window = source[call % windows * apart :]
        extra = window[reads * size :][:rest] if has_more else slots[call % count]
        moves.append(Move(window, reads, extra, places[call % count]))
    return moves


def check_copies(memory: Memory, copies: Sequence[Move], replay: Replay) -> None:
    """Run the replay on the poisoned cache, check the bytes that it wrote, and poison the cache again.

    The replay's calls make `copies`, and after the last the first again.

    Raises:
        IncorrectResult: A place holds wrong bytes, or another byte changed.
    """
    (run,) = replay.runs
    run()
    if not memory.unchanged():
        raise IncorrectResult("the copy changed what it reads")
    last = {move.place.data_ptr(): move for move in islice(cycle(copies), replay.calls)}
    lost = sum(not move.is_written() for move in last.values())
    if lost:
        raise IncorrectResult(f"{lost} of {len(last)} copies hold other bytes than were to be copied")
    restore(memory, list(last.values()))
    check_untouched(memory.storage)()


def list_unrolls(memory: Memory, written: int) -> tuple[int, ...]:
    """List the numbers of vectors a thread to try. One is best for few bytes, and stands for no kernel."""
    if _is_cpu(memory.storage) or memory.far:
        return (1,)
    return (1,) if written < _count_threads(memory.storage.device) * VECTOR else (1, 2, 4)


def _is_cpu(storage: Tensor) -> bool:
    return storage.device.type == "cpu"


def _count_threads(device: torch.device) -> int:
    """Return the threads that a GPU holds at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count * 2048


def restore(memory: Memory, copies: Sequence[Move]) -> None:
    """Poison again what these wrote, and nothing between."""
    storage = memory.storage
    size = copies[0].place.numel()
    begin = end = -1
    for at in sorted({move.place.data_ptr() - storage.data_ptr() for move in copies}):
        if at != end:
            scan.poison(storage, max(begin, 0), max(end, 0))
            begin = at
        end = at + size
    scan.poison(storage, begin, end)


def make_empty_call() -> Call:
    """Make a call of a kernel that does nothing, on the current device: what a launch costs."""
    return nvrtc.bind(SOURCE, "empty", _make_macros(1, 1), 1, THREADS, ())


def _make_macros(unroll: int, reads: int) -> tuple[tuple[str, int], ...]:
    return (("THREADS", THREADS), ("UNROLL", unroll), ("READS", reads))


def _make_cpu_copy(source: Tensor, place: Tensor) -> Call:
    source = source[: place.numel()]

    def call() -> None:
        place.copy_(source)

    return call
