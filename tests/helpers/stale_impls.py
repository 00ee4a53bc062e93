"""Implementations that keep what they read, or skip what they wrote before; each must be found out."""

from collections import Counter
from typing import ClassVar

import torch

from kvexp.impl.torch import Torch
from kvexp.op.quantize import quantize
from kvexp.timer.replay_plan import TURNS
from tests.helpers.wrong_impls import is_poison

READS = {"keys": (0,), "values": (1,), "slots": (4,), "scales": (6, 7), "everything": (0, 1, 4, 6, 7)}
"""Places, among the arguments of an op's call, of the tensors that it reads."""


class Stale(Torch):
    """Reads copies of `what`, which it made when it was bound or, `since=ran`, when it ran first."""

    def __init__(self, device, what, since="bound"):
        super().__init__(device)
        self.places, self.since = READS[what], since

    def reshape_and_cache_flash(self, *arguments):
        bind, kept = super().reshape_and_cache_flash, {}

        def keep():
            kept.update((place, arguments[place].clone()) for place in self.places)

        def call():
            if not kept:
                keep()
            bind(*(kept.get(place, argument) for place, argument in enumerate(arguments)))()

        if self.since == "bound":
            keep()
        return call


class Remembering(Torch):
    """Looks at the versions of its tensors: where they are the last ones it skips all, or reads copies."""

    def __init__(self, device, skips):
        super().__init__(device)
        self.skips = skips

    def reshape_and_cache_flash(self, *arguments):
        bind, versions, kept = super().reshape_and_cache_flash, [], {}

        def call():
            now = [arguments[place]._version for place in READS["everything"]]
            if now != versions:
                versions[:] = now
                kept.update((place, arguments[place].clone()) for place in READS["everything"])
            elif self.skips:
                return
            bind(*(kept.get(place, argument) for place, argument in enumerate(arguments)))()

        return call


class Resting(Torch):
    """Does nothing in the runs from `first` on and before `last`, those of one `turn` or, if -1, of both.

    What holds poison it writes all the same: there it is verified and not timed.
    """

    def __init__(self, device, first, last=1 << 30, turn=-1):
        super().__init__(device)
        self.first, self.last, self.turn = first, last, turn
        self.bound = self.calls = 0

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)
        self.bound += 1

        def call():
            run, self.calls = self.calls // (self.bound // TURNS), self.calls + 1
            rests = self.first <= run < self.last and self.turn in (-1, run % TURNS)
            if not rests or is_poison(key_cache, int(slots[0])):
                right()

        return call


class Skipping(Torch):
    """Writes what is not there already, by `row`, by `call` or by the `keys` of a row.

    `rows` counts those that it was asked to write, and those that it wrote.
    """

    rows: ClassVar = Counter()

    def __init__(self, device, by):
        super().__init__(device)
        self.by = by

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, kv_cache_dtype, *scales):
        bind = super().reshape_and_cache_flash

        def call():
            place = slots // key_cache.shape[1], slots % key_cache.shape[1]
            there = torch.ones(len(slots), dtype=torch.bool)
            for rows, plane, scale in ((key, key_cache, scales[0]), (value, value_cache, scales[1])):
                if rows is key or self.by != "keys":
                    codes = quantize(rows[: len(slots)], kv_cache_dtype, scale)
                    there &= (plane[place].view(torch.uint8) == codes).flatten(1).all(1)
            if self.by == "call":
                there = there.all().expand(len(slots))
            self.rows["asked"] += len(slots)
            self.rows["written"] += int((~there).sum())
            kept = (~there).nonzero().flatten()
            bind(key[kept], value[kept], key_cache, value_cache, slots[kept], kv_cache_dtype, *scales)()

        return call
