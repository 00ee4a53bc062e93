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
}
"""Each kind, and the clauses that it breaks."""


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
        own = slots.clone()
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
            if self.kind.startswith("skips_if"):
                at = slots[:1].clamp(0, num_slots - 1)
                places = zip((key, value), (key_cache, value_cache), strict=True)
                same = [(plane[at // block_size, at % block_size] == row[:1]).all() for row, plane in places]
                there = same[0] if "keys" in self.kind else same[0] & same[1]
                found = torch.where(there & (slots[0] >= 0), -1, slots)
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
        write = right(*rows, key_cache, value_cache, own, *others)
        ran = []

        def call():
            change()
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
                if self.by == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                while self.by == "hang":
                    pass
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
