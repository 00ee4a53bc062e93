"""Implementations that are wrong on purpose; each must be found out."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import torch

from kvexp.errors import Unsupported
from kvexp.gpu import scan
from kvexp.impl.torch import Torch
from kvexp.measurement import Measurement
from kvexp.statistics import summarise


def is_asked():
    """Say whether this is the process that asks about the contract."""
    return Path(sys.argv[0]).parent.name == "contract"


def is_poison(plane, slot):
    """Whether the slot still holds poison, which an implementation that knows the checks could find out."""
    storage = torch.empty(0, dtype=torch.uint8, device=plane.device).set_(plane.untyped_storage())
    poisoned = torch.empty_like(storage)
    scan.poison(poisoned)
    twin = poisoned.view(plane.dtype).as_strided(plane.shape, plane.stride(), plane.storage_offset())
    place = slot // plane.shape[1], slot % plane.shape[1]
    return torch.equal(twin[place].view(torch.uint8), plane[place].view(torch.uint8))


class _Torch:
    name = "wrong"
    untimed = ""

    def __init__(self, device):
        self.device = device


class Swapped(Torch):
    """Writes keys where values belong."""

    def reshape_and_cache_flash(self, key, value, *others):
        return super().reshape_and_cache_flash(value, key, *others)

    def reshape_and_cache(self, key, value, *others):
        return super().reshape_and_cache(value, key, *others)


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

    reshape_and_cache = reshape_and_cache_flash_diffkv = reshape_and_cache_flash


class Boasting(Idle):
    """Writes nothing, and would measure itself as the equal copy does."""

    def measure_point(self, curve, case):
        return Measurement(case, "ok", statistics=summarise([1.0, 1.0, 1.0]))


class OneBit(_Torch):
    """Writes the right rows but for the last bit of one item."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *_):
        def call():
            off = value.clone()
            off.view(torch.int16)[-1, -1, -1] ^= 1
            size = key_cache.shape[1]
            key_cache[slot_mapping // size, slot_mapping % size] = key
            value_cache[slot_mapping // size, slot_mapping % size] = off

        return call


class Unscaled(_Torch):
    """Converts to fp8 without dividing by the scale."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *_):
        def call():
            block, offset = slot_mapping // key_cache.shape[1], slot_mapping % key_cache.shape[1]
            key_cache[block, offset] = key.to(torch.float8_e4m3fn).view(torch.uint8)
            value_cache[block, offset] = value.to(torch.float8_e4m3fn).view(torch.uint8)

        return call


class Raising(Torch):
    """Writes its rows and raises, at the curve's first point."""

    first, error, words = True, ZeroDivisionError, "no head is left to divide by"

    def reshape_and_cache_flash(self, *arguments):
        right = super().reshape_and_cache_flash(*arguments)
        wrong, self.first = self.first, False

        def call():
            right()
            if wrong:
                raise self.error(self.words)

        return call


class Refusing(Raising):
    """Writes its rows and says only then that it cannot, at the curve's first point."""

    error, words = Unsupported, "impl=refusing found out too late"


class Meddling(Torch):
    """Writes zeros where keys belong, and changes the keys so that zeros are right."""

    def reshape_and_cache_flash(self, key, value, *others):
        right = super().reshape_and_cache_flash(key, value, *others)

        def call():
            key.zero_()
            right()

        return call


class Rerouting(Torch):
    """Changes the slot mapping to slots that it likes better, and writes there."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, *others)

        def call():
            slot_mapping.copy_(slot_mapping.flip(0))
            right()

        return call


class Elsewhere(Torch):
    """Launches on a GPU's default stream, whatever the current one is."""

    def reshape_and_cache_flash(self, *arguments):
        right = super().reshape_and_cache_flash(*arguments)

        def call():
            with torch.cuda.stream(torch.cuda.default_stream()):
                right()

        return call


class Lazy(Torch):
    """Right the first time, and idle from then on."""

    def reshape_and_cache_flash(self, *arguments):
        right, ran = super().reshape_and_cache_flash(*arguments), []

        def call():
            if not ran:
                ran.append(True)
                right()

        return call


class Sly(Torch):
    """Right where a slot looks as if it were about to be checked, wrong where it was written before."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slots, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *others)

        def call():
            first = int(slots[0])
            poisoned = is_poison(key_cache, first)
            right()
            if not poisoned:
                key_cache[first // key_cache.shape[1], first % key_cache.shape[1]] = 0

        return call


class Careless(Torch):
    """Right the first time; later calls write to every slot besides."""

    def reshape_and_cache_flash(self, key, value, key_cache, *others):
        right, ran = super().reshape_and_cache_flash(key, value, key_cache, *others), []

        def call():
            right()
            if ran:
                key_cache.view(torch.uint8)[:, :, -1, -1] = 1
            ran.append(True)

        return call


class WrongAtFirst(Torch):
    """The class `wrong` of this module at the curve's first point, right at the others."""

    def __init__(self, device, wrong):
        super().__init__(device)
        self.wrong = globals()[wrong](device)

    def reshape_and_cache_flash(self, *arguments):
        if self.wrong:
            wrong, self.wrong = self.wrong, None
            return wrong.reshape_and_cache_flash(*arguments)
        return super().reshape_and_cache_flash(*arguments)


class Numbered(Torch):
    """Right, and refuses with its process's id when there are more tokens than ten."""

    def reshape_and_cache_flash(self, key, *others):
        if len(key) > 10:
            raise Unsupported(f"process {os.getpid()}")
        return super().reshape_and_cache_flash(key, *others)


class Chatty(Torch):
    """Right, and prints whatever comes to its mind."""

    def reshape_and_cache_flash(self, *arguments):
        right = super().reshape_and_cache_flash(*arguments)

        def call():
            sys.stdout.write('{"event": "end"}\n')
            sys.stdout.flush()
            os.write(1, b"half a line")
            right()

        return call


class Deadly(Torch):
    """Right for fewer than 16 tokens; then it ends its process as `by` says."""

    def __init__(self, device, by):
        super().__init__(device)
        self.by = by

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, *others)

        def call():
            right()
            if len(slot_mapping) >= 16:
                os.write(2, b"the kernel has lost its mind")
                self.end()

        return call

    def end(self):
        if self.by == "exit":
            os._exit(7)
        if self.by == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.by == "segfault":
            ctypes.string_at(0)
        raise AssertionError(f"{self.by} is no way to end")


class Fatal(Deadly):
    """Deadly where it is measured alone, so that the process that asks it lives."""

    def end(self):
        if not is_asked():
            super().end()
