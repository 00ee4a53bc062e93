"""Implementations that are wrong on purpose; each must be found out."""

import torch
import triton
import triton.language as tl


class _Torch:
    name = "wrong"
    untimed = ""

    def __init__(self, device):
        self.device = device


class Swapped(_Torch):
    """Writes keys where values belong."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *_):
        def call():
            block, offset = slot_mapping // key_cache.shape[1], slot_mapping % key_cache.shape[1]
            key_cache[block, offset] = value
            value_cache[block, offset] = key

        return call


class Spilling(_Torch):
    """Writes the right rows, and one item of a slot that it was not asked for."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *_):
        def call():
            size = key_cache.shape[1]
            key_cache[slot_mapping // size, slot_mapping % size] = key
            value_cache[slot_mapping // size, slot_mapping % size] = value
            taken = set(slot_mapping.tolist())
            free = next(slot for slot in range(len(taken) + 1) if slot not in taken)
            value_cache[free // size, free % size, 0, 0] = 1.0

        return call


class Idle(_Torch):
    """Writes nothing at all."""

    def reshape_and_cache_flash(self, *_):
        return lambda: None


class OneBit(_Torch):
    """Writes the right rows but for the last bit of one item."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *_):
        off = value.clone()
        off.view(torch.int16)[-1, -1, -1] ^= 1

        def call():
            size = key_cache.shape[1]
            key_cache[slot_mapping // size, slot_mapping % size] = key
            value_cache[slot_mapping // size, slot_mapping % size] = off

        return call


@triton.jit
def poke(pointer):
    tl.store(pointer + (1 << 46), 1.0)


class Wild(_Torch):
    """Writes far outside any allocation: a CUDA error that poisons its process."""

    def reshape_and_cache_flash(self, key, value, key_cache, *_):
        return lambda: poke[(1,)](key_cache)
