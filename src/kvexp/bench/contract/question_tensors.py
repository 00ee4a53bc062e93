"""Hold the tensors of one question: a small cache between guard blocks, and the bytes expected in it.

The implementation gets the middle of a larger cache. So a slot before the first or past the last lies in
memory of ours, where a write does no harm and is found.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import torch
from torch import Tensor

from kvexp.bench.contract import question_inputs
from kvexp.bench.contract.questions import STATES, Question
from kvexp.case import NO_SLOT, Case
from kvexp.gpu import scan
from kvexp.layout import Layout, Plane
from kvexp.op.cache_write import CacheWrite
from kvexp.workload import GUARD_BYTES, INTEGERS

GUARD_BLOCKS = 2
"""Blocks of the same cache before its first and after its last."""
SPARE_BLOCKS = 2
"""Blocks in its middle, one odd and one even, that no token has a slot in."""
LEAST_BLOCKS = 8
MOST_LAYERS = 2
EXTRA_ROWS = 3
DRAWN_BYTES = 64 << 20
WRAPS = 1 << 32
"""Equal to 0 in 32 bits."""


class QuestionTensors:
    """The tensors that an op binds, for one question; see `workload.Tensors` for their shapes.

    The generator, on the case's device, draws everything.
    """

    def __init__(
        self,
        case: Case,
        op: CacheWrite,
        layout: Layout,
        source: torch.dtype,
        question: Question,
        generator: torch.Generator,
    ) -> None:
        device = torch.device(case.device)
        self.op, self.question, self.layout, self.generator = op, question, layout, generator
        self._begin = self._drawn = self._prepared = -1
        self._right: tuple[Tensor, list[Tensor]] | None = None
        needed = -(-(case.num_tokens + EXTRA_ROWS) // case.block_size)
        self.num_blocks = max(LEAST_BLOCKS, needed + 2 * SPARE_BLOCKS)
        self.case = replace(
            case,
            rows=question.rows,
            extra_tokens=EXTRA_ROWS if question.extra_rows else 0,
            num_layers=min(case.num_layers, MOST_LAYERS),
            num_blocks=self.num_blocks + 2 * GUARD_BLOCKS,
        )
        item_bytes = case.cache_item_bytes(source.itemsize)
        planes = op.list_planes(self.case, layout, item_bytes)
        begin = GUARD_BYTES + item_bytes * question.shifted
        size = begin + planes.items * item_bytes + GUARD_BYTES
        self.storage = torch.empty(size, dtype=torch.uint8, device=device)
        item = source if case.kv_cache_dtype == "auto" else torch.uint8
        items = self.storage[begin : begin + planes.items * item_bytes].view(item)
        self._whole = [_view(items, plane) for plane in planes.parts]
        self.key_cache, self.value_cache = (whole[GUARD_BLOCKS:-GUARD_BLOCKS] for whole in self._whole[:2])
        packed = _view(items, planes.packed)[GUARD_BLOCKS:-GUARD_BLOCKS] if planes.packed else None
        self.kv_cache = packed
        self.kv_cache_dtype = case.kv_cache_dtype
        self.rows = question_inputs.make(self.case, source, question.gaps)
        count = case.num_tokens + self.case.extra_tokens
        self.key, self.value = self.rows[0].key[:count], self.rows[-1].value[:count]
        heads = case.num_heads if case.scale == "per_head" else 1
        scales = torch.empty((len(op.scales), heads), dtype=torch.float32, device=device)
        own = scales if case.scale == "per_head" else scales[:, 0]
        self._scales = list(own)
        self.k_scale: Tensor | None = own[0] if op.scales else None
        self.v_scale: Tensor | None = own[-1] if op.scales else None
        # Behind the mapping lie slots that no token has: who reads too far writes there, which is found.
        self._slots = torch.empty(case.num_tokens + EXTRA_ROWS, dtype=torch.int64, device=device)
        self.slot_mapping = self._slots[: case.num_tokens]
        self.expected = torch.empty_like(self.storage)
        # K and V with the guard blocks, as integers: in the storage, and as expected.
        integers = [whole.view(INTEGERS[whole.itemsize]) for whole in self._whole]
        self._planes, self._expected_planes = (
            [_twin(plane, storage) for plane in integers] for storage in (self.storage, self.expected)
        )
        given_bytes = *(rows.flat for rows in self.rows), self._slots, *self._scales
        self._inputs = [tensor.reshape(-1).view(torch.uint8) for tensor in given_bytes]
        self._inputs_before = [torch.empty_like(tensor) for tensor in self._inputs]
        self.draw_inputs()
        self.draw_slots()

    def draw_inputs(self) -> None:
        """Change keys, values and scales in place."""
        self._right = None
        for scale in self._scales:
            scale.uniform_(0.02, 0.06, generator=self.generator)
        for rows in self.rows:
            rows.fill(self.generator)
            if self.question.special_values:
                question_inputs.fill_special(rows.flat, self._scales, self.generator)
                if tile := self.op.count_tile_items(self.case):
                    question_inputs.limit_tiles(rows.flat, tile, self.generator)

    def draw_slots(self) -> None:
        """Change the slots in place, and which tokens have none."""
        self._right = None
        num_tokens = len(self.slot_mapping)
        slots = self._spread_slots() if self.question.other_blocks else self._draw_adjacent_slots()
        self._slots.copy_(slots[: num_tokens + EXTRA_ROWS])
        if self.question.other_blocks:
            self.slot_mapping.copy_(self.slot_mapping[self._shuffle(num_tokens)])
        none = self._list_invalid_slots()
        count = self._count_invalid_slots(len(none))
        if count:
            which = self._shuffle(num_tokens)
            ends = [num_tokens - 1, 0] if self.question.first_none else [num_tokens - 1]
            if self.question.padding:
                which = torch.cat([which.new_tensor(ends), which])
            which = which[:count]
            words = torch.tensor(none, device=which.device)
            self.slot_mapping[which] = words[torch.arange(count, device=which.device) % len(words)]

    def _list_invalid_slots(self) -> list[int]:
        """Return slot numbers that name no slot of this cache, as the question asks."""
        block_size, end = self.case.block_size, self.num_blocks * self.case.block_size
        wrapped = self.question.wrapped
        return [
            *[NO_SLOT] * (self.question.padding or self.question.all_padding),
            *([end - 1 - WRAPS] if wrapped else [-2, -block_size - 1]) * self.question.negatives,
            *([end - 1 + WRAPS] if wrapped else [end, end + block_size]) * self.question.past_end,
        ]

    def _count_invalid_slots(self, words: int) -> int:
        """Return how many tokens get a number that names no slot."""
        num_tokens = len(self.slot_mapping)
        if self.question.all_padding or not words:
            return num_tokens if words else 0
        if num_tokens == 1:
            # With slots that change in turn, so that the call is bound with a slot.
            self._drawn += 1
            return self._drawn % 2 if self.question.fresh_slots else int(not self.question.padding)
        return min(num_tokens - 1, max(words, 1 + self.question.first_none, num_tokens // 4))

    def _draw_adjacent_slots(self) -> Tensor:
        """Return consecutive slots from the beginning of a block, another block each time."""
        needed = -(-len(self._slots) // self.case.block_size)
        self._begin = (self._begin + 1) % (self.num_blocks - needed + 1)
        first = self._begin * self.case.block_size
        return torch.arange(first, first + len(self._slots), device=self._slots.device)

    def _spread_slots(self) -> Tensor:
        """Return slots of all blocks but the spare ones, one of each block before a second one of any."""
        block_size, device = self.case.block_size, self._slots.device
        first_spare = self.num_blocks // 2
        blocks = torch.arange(self.num_blocks, device=device)
        used = blocks[(blocks < first_spare) | (blocks >= first_spare + SPARE_BLOCKS)]
        used = used[self._shuffle(len(used))]
        ends = (used == 0) | (used == self.num_blocks - 1)
        used = torch.cat([used[ends], used[~ends]])
        begins = torch.randint(block_size, used.shape, generator=self.generator, device=device)
        offsets = (begins + torch.arange(block_size, device=device).unsqueeze(-1)) % block_size
        slots = (used * block_size + offsets).flatten()
        others = slots[len(used) :]
        slots[len(used) :] = others[self._shuffle(len(others))]
        return slots

    def prepare(self) -> None:
        """Fill the cache anew, put some rows there if the question asks so, and note the expected bytes.

        A small cache is filled with random bytes, so that bytes which a call kept are no longer right; a
        large one is poisoned. With `partly_there` a slot holds one of STATES: its row, K alone, V alone, the
        first half or the second half of both. The slots of the first, middle and last token hold the same:
        in turn 0 their row.
        """
        if len(self.storage) <= DRAWN_BYTES:
            whole = self.storage[: len(self.storage) // 8 * 8]
            whole.view(torch.int64).random_(generator=self.generator)
            self.storage[len(whole) :].random_(0, 256, generator=self.generator)
        else:
            scan.poison(self.storage)
        slots, codes = self._expect_rows()
        if self.question.partly_there and len(slots):
            self._prepared += 1
            state = torch.arange(len(slots), device=slots.device)
            state[[-1, len(slots) // 2]] = 0
            state = (state + self.question.turn + max(0, self._prepared - 1)) % STATES
            for plane, rows, alone in zip(self._planes, codes, cycle((1, 2)), strict=False):
                whole = (state == 0) | (state == alone)
                there = self.layout.gather(plane, slots)
                for part, right, half in zip(_halves(there), _halves(rows), (3, 4), strict=True):
                    part.copy_(torch.where((whole | (state == half)).unsqueeze(1), right, part))
                self.layout.scatter(plane, slots, there)
        self.expected.copy_(self.storage)
        if len(slots):
            for plane, rows in zip(self._expected_planes, codes, strict=True):
                self.layout.scatter(plane, slots, rows)

    def describe_difference(self) -> str:
        """Describe what is wrong after the call; empty where nothing is."""
        if not all(map(torch.equal, self._inputs, self._inputs_before)):
            return "it changed its inputs: keys, values, slots or scales"
        differs = self.storage != self.expected
        if not bool(differs.any()):
            return ""
        # Most numbers that name no slot of this cache name one in the guard blocks.
        num_slots = (self.num_blocks + 2 * GUARD_BLOCKS) * self.case.block_size
        everywhere = torch.arange(num_slots, device=self.slot_mapping.device)
        guard_slots = GUARD_BLOCKS * self.case.block_size
        near = self.slot_mapping[self.slot_mapping.abs() < num_slots - guard_slots]
        near = near[near >= -guard_slots]
        for slots in (self.slot_mapping[self._find_written()], near, everywhere - guard_slots):
            for name, *planes in zip(self.op.parts, self._planes, self._expected_planes, strict=True):
                if found := self._describe_first_wrong(name, planes, slots):
                    return found
        at = int(differs.view(torch.uint8).argmax())
        return (
            f"byte {at} of the {len(differs)} of the cache and its guards, which is in no slot, "
            f"is 0x{int(self.storage[at]):02x} instead of 0x{int(self.expected[at]):02x}"
        )

    def _find_written(self) -> Tensor:
        """Return the tokens that have a slot, int64 ascending."""
        end = self.num_blocks * self.case.block_size
        return ((self.slot_mapping >= 0) & (self.slot_mapping < end)).nonzero().flatten()

    def _describe_first_wrong(self, name: str, planes: Sequence[Tensor], slots: Tensor) -> str:
        """Describe the first wrong element in these slots; empty where none is."""
        if not len(slots):
            return ""
        found, asked = (
            self.layout.gather(plane, slots + GUARD_BLOCKS * self.case.block_size) for plane in planes
        )
        differs = found != asked
        if not bool(differs.any()):
            return ""
        first = int(differs.reshape(-1).view(torch.uint8).argmax())
        heads, size = found.shape[1:]
        row, head, element = first // (heads * size), first // size % heads, first % size
        mask, digits = (1 << 8 * found.itemsize) - 1, 2 * found.itemsize
        wrote, right = (int(rows[row, head, element]) & mask for rows in (found, asked))
        slot = int(slots[row])
        tokens = (self.slot_mapping == slot).nonzero().flatten().tolist()
        row_of = f"token {tokens[0]}" if tokens else "a slot that no token has"
        return (
            f"{row_of}, head {head}, element {element} of {name} "
            f"(slot {slot}): 0x{wrote:0{digits}x} instead of 0x{right:0{digits}x}"
        )

    def _expect_rows(self) -> tuple[Tensor, list[Tensor]]:
        """Return the slots that are written, and the expected rows of K and V.

        The slots are int64 and count from the first guard block on. The codes of a plane are
        `[n, num_heads, head size]`, integers of the cache's items. Both hold until something is drawn again.
        """
        if self._right is None:
            tokens = self._find_written()
            codes = []
            sources = {"key": (self.key, self.k_scale), "value": (self.value, self.v_scale)}
            for name, made_of, plane in zip(self.op.parts, self.op.made_of, self._planes, strict=True):
                rows, scale = sources[made_of]
                chosen = rows.view(INTEGERS[rows.itemsize])[tokens].view(rows.dtype)
                codes.append(self.op.expect(name, chosen, self.kv_cache_dtype, scale).view(plane.dtype))
            self._right = self.slot_mapping[tokens] + GUARD_BLOCKS * self.case.block_size, codes
            for now, before in zip(self._inputs, self._inputs_before, strict=True):
                before.copy_(now)
        return self._right

    def _shuffle(self, count: int) -> Tensor:
        return torch.randperm(max(0, count), generator=self.generator, device=self._slots.device)


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of each row, `[n, about half]`, as views."""
    flat = rows.view(len(rows), -1)
    middle = flat.shape[1] // 2
    return flat[:, :middle], flat[:, middle:]


def _view(items: Tensor, plane: Plane) -> Tensor:
    return items.as_strided(plane.shape, plane.strides, items.storage_offset() + plane.offset)


def _twin(items: Tensor, storage: Tensor) -> Tensor:
    """Return the same places in another storage."""
    whole = storage[: storage.numel() // items.itemsize * items.itemsize].view(items.dtype)
    return whole.as_strided(items.shape, items.stride(), items.storage_offset())
