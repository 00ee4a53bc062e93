"""A kernel under edit: the environment says what it does, so that nothing else of a sweep differs."""

import os
import time

from kvexp.impl.torch import Torch

SLOWER_S = 0.003


class Changing(Torch):
    """Right and fast, unless KERNEL is `slower` or `wrong`."""

    def reshape_and_cache_flash(self, key, value, *others):
        change = os.environ.get("KERNEL")
        right = super().reshape_and_cache_flash(key, key if change == "wrong" else value, *others)

        def slower():
            right()
            time.sleep(SLOWER_S)

        return slower if change == "slower" else right
