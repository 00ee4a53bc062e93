"""Implementations that hang, or want more memory than there is, from 16 tokens on; right before that."""

import ctypes
import faulthandler
import signal
from pathlib import Path

import torch

from kvexp.impl.torch import Torch
from tests.helpers.wrong_impls import is_asked

LONG = 16


class _Faulty(Torch):
    def __init__(self, device):
        super().__init__(device)

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, *others)

        def call():
            right()
            if len(slot_mapping) >= LONG:
                self.fault()

        return call


class Hanging(_Faulty):
    """Waits for a signal, in C and with Python's lock held, as a driver that never answers does."""

    def fault(self):
        ctypes.PyDLL(None).pause()


class Stuck(Hanging):
    """Hangs where it is measured alone, after a word in the FIFO `fifo`, if there is one."""

    def __init__(self, device, fifo=None):
        super().__init__(device)
        self.fifo = fifo

    def fault(self):
        if is_asked():
            return
        if self.fifo:
            Path(self.fifo).write_text("now")
        super().fault()


class Stubborn(_Faulty):
    """Hangs, and ignores every signal that can be ignored."""

    def fault(self):
        faulthandler.unregister(signal.SIGUSR1)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        ctypes.PyDLL(None).pause()


class Greedy(_Faulty):
    """Asks for more memory than any host has."""

    def fault(self):
        torch.empty(1 << 60, dtype=torch.uint8)
