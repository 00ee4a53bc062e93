"""Implementations that break the contract in one way each, also in CUDA graphs; `honest` keeps all of it."""

import os
import signal

import torch

from kvexp.errors import Unsupported
from kvexp.impl.torch import Torch

BROKEN = {
    "honest": (),
    "ignores_padding": ("padding",),
    "ignores_negatives": ("negatives",),
    "wraps_past_end": ("past_end",),
    "tokens_of_key": ("extra_rows",),
    "contiguous_rows": ("strided_rows",),
    "aligned_rows": ("misaligned",),
    "aligned_caches": ("misaligned",),
    "fails_without_tokens": ("no_tokens",),
    "all_but_last_block": ("other_blocks",),
    "skips_if_first_is_there": ("partly_there",),
    "skips_if_keys_are_there": ("partly_there",),
    "stale_inputs": ("fresh_inputs",),
    "stale_values": ("fresh_inputs",),
    "stale_since_first_run": ("fresh_inputs",),
    "stale_slots": ("fresh_slots",),
    "ignores_padding_alone": ("padding",),
    "writes_where_all_is_padding": ("padding",),
    "stops_at_padding": ("padding",),
    "cuts_slots": ("negatives", "past_end"),
    "strides_of_key": ("strided_rows",),
    "strides_of_value": ("strided_rows",),
    "stale_where_strided": ("fresh_inputs",),
    "stale_where_misaligned": ("misaligned",),
    "aligned_strides": ("misaligned",),
    "stale_padding": ("fresh_slots",),
    "skips_if_middle_is_there": ("partly_there",),
    "skips_if_first_half_is_there": ("partly_there",),
    "skips_tokens_by_values": ("partly_there",),
    "skips_inputs_seen": ("again",),
    "tires": ("again",),
    "adds_zero": ("special_values",),
    "drops_nan": ("special_values",),
    "flushes_subnormals": ("special_values",),
}
"""Each kind, and the clauses that it breaks."""

SMALL_ALONE = ("ignores_padding_alone", "tires")
"""Kinds that only small calls show: of one token, or many calls of one."""

ON_THE_HOST = ("skips_inputs_seen", "tires")
"""Kinds that remember earlier calls on the host: no graph does, nor what is bound anew each time."""

ON_ROWS = {
    "adds_zero": lambda row: row + 0.0,
    "drops_nan": lambda row: row.nan_to_num(0.0, torch.inf, -torch.inf),
    "flushes_subnormals": lambda row: row.where(row.abs() >= torch.finfo(row.dtype).tiny, 0 * row),
}
"""What some do with rows before they are written."""


class Breaking(Torch):
    """Wrong as `kind` says, for calls of `least` tokens and more; right below.

    Besides those of BROKEN: `padding_or_extra_rows`, which takes one of the two and not both, and
    `out_of_memory`.
    """

    name = "breaking"

    def __init__(self, device, kind="honest", least=0):
        super().__init__(device)
        self.kind, self.least = kind, least

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash
        if self.kind == "fails_without_tokens" and not len(slots):
            raise ZeroDivisionError("no token is left to divide by")
        if len(slots) < max(1, self.least):
            return right(key, value, key_cache, value_cache, slots, *others)
        num_slots, block_size = key_cache.shape[0] * key_cache.shape[1], key_cache.shape[1]
        own, bound_slots = slots.clone(), slots.clone()
        rows = key, value

        def change():
            """Make `own` of the slots as they are now."""
            found = slots
            if self.kind == "ignores_padding":
                found = torch.where(slots == -1, num_slots - 1, slots)
            if self.kind == "ignores_negatives":
                found = torch.where(slots < -1, num_slots - 1, slots)
            if self.kind == "wraps_past_end":
                found = torch.where(slots >= num_slots, slots % num_slots, slots)
            if self.kind == "all_but_last_block":
                last = slots // block_size == len(key_cache) - 1
                found = torch.where(last, slots - block_size, slots)
            if self.kind == "padding_or_extra_rows" and len(key) > len(slots) and (slots == -1).any():
                found = torch.full_like(slots, -1)
            if self.kind == "out_of_memory":
                raise torch.OutOfMemoryError("others have it")
            if self.kind.startswith("skips_"):
                at = slots.clamp(0, num_slots - 1)
                places = zip((key, value), (key_cache, value_cache), strict=True)
                same = [plane[at // block_size, at % block_size] == row[: len(at)] for row, plane in places]
                if "half" in self.kind:
                    same = [each.flatten(1)[:, : each[0].numel() // 2] for each in same]
                by_key, by_value = (each.flatten(1).all(1) & (slots >= 0) for each in same)
                there = by_key if "keys" in self.kind else by_key & by_value
                token = len(slots) // 2 if "middle" in self.kind else 0
                there = by_value if "tokens" in self.kind else there[token]
                found = torch.where(there, -1, slots) if "inputs" not in self.kind else slots
            if self.kind == "ignores_padding_alone" and len(slots) == 1:
                found = torch.where(slots == -1, num_slots - 1, slots)
            if self.kind == "writes_where_all_is_padding":
                found = torch.where((slots == -1).all(), slots * 0, slots)
            if self.kind == "stops_at_padding":
                found = torch.where((slots == -1).cumsum(0) > 0, -1, slots)
            if self.kind == "cuts_slots":
                found = slots.int().long()
            if self.kind == "stale_padding":
                found = torch.where(bound_slots >= 0, slots, bound_slots)
            if self.kind != "stale_slots":
                own.copy_(found)

        if self.kind == "tokens_of_key":
            longer = slots.as_strided((len(key),), (1,), slots.storage_offset())
            return right(key, value, key_cache, value_cache, longer, *others)
        if self.kind == "contiguous_rows":
            dense = (key.shape[1] * key.shape[2], key.shape[2], 1)
            rows = [row.as_strided(row.shape, dense) for row in rows]
        if self.kind == "aligned_rows":
            rows = [_aligned(row) for row in rows]
        if self.kind == "aligned_caches":
            key_cache, value_cache = _aligned(key_cache), _aligned(value_cache)
        if self.kind in ("stale_inputs", "stale_since_first_run"):
            rows = key.clone(), value.clone()
        if self.kind == "stale_values":
            rows = key, value.clone()
        if self.kind.startswith("strides_of"):
            by = (key if self.kind.endswith("key") else value).stride()
            rows = [row.as_strided(row.shape, by, row.storage_offset()) for row in rows]
        if self.kind == "aligned_strides":
            rows = [row.as_strided(row.shape, (row.stride(0) // 8 * 8, *row.stride()[1:])) for row in rows]
        if self.kind == "stale_where_strided":
            rows = key.contiguous(), value.contiguous()
        if self.kind == "stale_where_misaligned" and key.data_ptr() % 16:
            rows = key.clone(), value.clone()
        if self.kind in ON_ROWS:
            rows = key.clone(), value.clone()
        write = right(*rows, key_cache, value_cache, own, *others)
        ran, seen = [], []

        def call():
            change()
            if self.kind in ON_ROWS:
                for row, made in zip((key, value), rows, strict=True):
                    made.copy_(ON_ROWS[self.kind](row))
            if self.kind == "skips_inputs_seen":
                before, seen[:] = list(seen), [key.clone(), value.clone(), slots.clone()]
                if before and all(map(torch.equal, before, seen)):
                    return
            if self.kind == "tires":
                ran.append(True)
                if len(ran) > 10:
                    return
            if self.kind == "stale_since_first_run" and not ran:
                for row, kept in zip((key, value), rows, strict=True):
                    kept.copy_(row)
                ran.append(True)
            write()

        return call


def _aligned(tensor):
    """The same from the last multiple of 16 bytes on."""
    over = tensor.data_ptr() % 16 // tensor.itemsize
    return tensor.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - over)


class Sized(Torch):
    """Writes no values in calls of the sizes from `first` to `last`."""

    def __init__(self, device, first, last):
        super().__init__(device)
        self.first, self.last = first, last

    def reshape_and_cache_flash(self, key, value, *others):
        wrong = self.first <= len(others[2]) <= self.last
        return super().reshape_and_cache_flash(key, key if wrong else value, *others)


class Restoring(Torch):
    """Writes whole blocks, with the neighbours of its slots as they were when it was bound."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)
        caches = key_cache, value_cache
        kept = [cache.clone() for cache in caches]

        def call():
            blocks = slots[slots >= 0] // key_cache.shape[1]
            blocks = blocks[blocks < len(key_cache)]
            for cache, before in zip(caches, kept, strict=True):
                cache[blocks] = before[blocks]
            right()

        return call


class Coding(Torch):
    """Converts to fp8 as `how` says: `overflows` to NaN, or rounds ties `up`."""

    def __init__(self, device, how):
        super().__init__(device)
        self.how = how

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, kv_cache_dtype, *scales):
        rows = [torch.empty_like(row, dtype=torch.float8_e4m3fn) for row in (key, value)]
        right = super().reshape_and_cache_flash(*rows, key_cache, value_cache, slots, kv_cache_dtype, *scales)

        def call():
            for row, made, scale in zip((key, value), rows, scales, strict=True):
                quotient = row.float() / scale
                if self.how == "up":
                    quotient = quotient.clamp(-448, 448) * (1 + 2**-20)
                made.copy_(quotient)
            right()

        return call


class Refusing(Torch):
    """Right, and refuses what `what` names when it is bound, in calls of `least` tokens and more."""

    def __init__(self, device, what, least=0):
        super().__init__(device)
        self.what, self.least = what, least

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        refused = {
            "padding": bool((slots == -1).any()),
            "misaligned": key.data_ptr() % 16 or key_cache.data_ptr() % 16,
            "strided_rows": not key.is_contiguous(),
            "everything": True,
        }
        if refused[self.what] and len(slots) >= self.least:
            raise Unsupported(f"impl=refusing takes no call of {self.what}")
        return super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)


class Mortal(Torch):
    """Right, and ends its process where a slot is past the end, or never returns, as `by` says."""

    def __init__(self, device, by):
        super().__init__(device)
        self.by = by

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)

        def call():
            if len(slots) and int(slots.max()) >= key_cache.shape[0] * key_cache.shape[1]:
                if self.by == "exit":
                    os.write(2, b"trap: slot past the end\n")
                    os._exit(7)
                while self.by == "hang":
                    signal.pause()
            right()

        return call


class Unmakeable(Torch):
    """Cannot be made at all."""

    def __init__(self, device):
        raise ZeroDivisionError("no reason at all")


class Following(Torch):
    """Derives its slots on the host when it is bound, and follows a change where it is told of it."""

    def __init__(self, device):
        super().__init__(device)
        self._pairs = []

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        own = slots.clone()
        self._pairs.append((slots, own))
        return super().reshape_and_cache_flash(key, value, key_cache, value_cache, own, *others)

    def refresh(self):
        for slots, own in self._pairs:
            own.copy_(slots)


class Trapping(Torch):
    """Right, and asserts on the device that no slot is past the end: on a GPU that ends all CUDA work."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)
        num_slots = key_cache.shape[0] * key_cache.shape[1]

        def call():
            torch._assert_async((slots < num_slots).all())
            right()

        return call


class FailingLaunch(Torch):
    """Right, but for no tokens CUDA refuses what it asks for, and it does not look at the answer."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)

        def call():
            if not slots.shape[0]:
                torch.cuda.cudart().cudaHostUnregister(1)  # an address that was never registered
            right()

        return call
