"""Implementations that are right for fewer than 16 tokens, and from there on do a GPU's worst."""

import torch
import triton
import triton.language as tl

from kvexp.impl.torch import Torch

LONG = 16


@triton.jit
def poke(pointer):
    tl.store(pointer + (1 << 46), 1.0)


@triton.jit
def spin(pointer):
    while tl.load(pointer, volatile=True) == 0:
        pass


class _Faulty(Torch):
    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, *others)
        fault = self.fault if len(slot_mapping) >= LONG else None

        def call():
            right()
            if fault:
                fault(key)

        return call


class Wild(_Faulty):
    """Writes far outside any allocation."""

    def fault(self, key):
        poke[(1,)](key)


class Asserting(_Faulty):
    """Reads with an index that is out of bounds: torch's kernel asserts on the device."""

    def fault(self, key):
        key.flatten()[torch.full((1,), 1 << 40, device=key.device)]


class Greedy(_Faulty):
    """Asks for more memory than any GPU has."""

    def fault(self, key):
        torch.empty(1 << 50, dtype=torch.uint8, device=key.device)


class Waiting(_Faulty):
    """Waits for the GPU, which the capture of a graph forbids."""

    def fault(self, key):
        torch.cuda.synchronize()


class Endless(_Faulty):
    """Starts a kernel that waits for a word that nobody writes."""

    def fault(self, key):
        spin[(1,)](torch.zeros(1, dtype=torch.int32, device=key.device))
