"""Implementations that go astray where there is something to trip over: padding, layers, the cache's ends."""

import torch

from kvexp.impl.torch import Torch


class _Stray(Torch):
    """Right; `besides`, made with the op's tensors, runs after each call."""

    def reshape_and_cache_flash(self, *arguments):
        return self._both(super().reshape_and_cache_flash(*arguments), *arguments)

    def reshape_and_cache(self, *arguments):
        return self._both(super().reshape_and_cache(*arguments), *arguments)

    def _both(self, right, key, value, key_cache, value_cache, slot_mapping, *_):
        def call():
            right()
            self.besides(key, key_cache, value_cache, slot_mapping)

        return call

    def besides(self, key, key_cache, value_cache, slot_mapping):
        raise NotImplementedError


class Further(_Stray):
    """Writes into the slot after the mapping's last one as well, where the cache has one."""

    def besides(self, key, key_cache, value_cache, slot_mapping):
        block, place = divmod(int(slot_mapping[-1]) + 1, key_cache.shape[1])
        if block < len(key_cache):
            key_cache[block, place] = 1


class PaddingLast(_Stray):
    """Writes a byte of padding's row to the slot that Python finds at -1, the cache's last."""

    def besides(self, key, key_cache, value_cache, slot_mapping):
        if (slot_mapping < 0).any():
            value_cache.view(torch.uint8)[-1, ..., -1] = 1


class Filling(_Stray):
    """Gives padding a slot of its own in the mapping, after the call."""

    def besides(self, key, key_cache, value_cache, slot_mapping):
        slot_mapping[slot_mapping < 0] = 0


class Neighbourly(_Stray):
    """Writes an item of another layer: the one `layers` further on in the first block."""

    def __init__(self, device, num_layers, layers):
        super().__init__(device)
        self.share = (layers, num_layers)

    def besides(self, key, key_cache, value_cache, slot_mapping):
        layers, num_layers = self.share
        at = key_cache.storage_offset() + layers * (key_cache.stride(0) // num_layers)
        key_cache.as_strided((1,), (1,), at).view(torch.uint8)[0] = 1


class _Changing(Torch):
    """Bind each call, when it is made, to what `change` makes of the op's arguments."""

    def reshape_and_cache_flash(self, *arguments):
        bind = super().reshape_and_cache_flash
        return lambda: bind(*self.change(*arguments))()

    def reshape_and_cache(self, *arguments):
        bind = super().reshape_and_cache
        return lambda: bind(*self.change(*arguments))()


class ExtraToken(_Changing):
    """Writes the row behind the last token's as well, in the slot that comes next."""

    def change(self, key, value, key_cache, value_cache, slot_mapping, *others):
        num_rows = len(slot_mapping) + (len(key) > len(slot_mapping))
        longer = torch.cat([slot_mapping, slot_mapping[-1:] + 1])[:num_rows]
        return key, value, key_cache, value_cache, longer, *others


class PerTensor(_Changing):
    """Divides every head by the first one's scale."""

    def change(self, *arguments):
        *others, k_scale, v_scale = arguments
        return *others, k_scale.flatten()[0], v_scale.flatten()[0]


class Rescaled(_Changing):
    """Decodes an 8-bit source, divides it by its scale and converts it again."""

    def change(self, key, value, *others):
        *before, k_scale, v_scale = others
        return key.float(), value.float(), *before, k_scale * 2, v_scale * 2


class Mislaid(_Changing):
    """Takes the rows as if they were contiguous, wherever they lie."""

    def change(self, key, value, *others):
        return *map(self._lay, (key, value)), *others

    def _lay(self, rows):
        _, num_heads, head_size = rows.shape
        return rows.as_strided(rows.shape, (num_heads * head_size, head_size, 1))


class Overrunning(Torch):
    """Writes the right rows, and the byte before the cache's first."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, *others)
        first = key_cache.storage_offset() * key_cache.element_size()
        everything = torch.empty(0, dtype=torch.uint8).set_(key_cache.untyped_storage())

        def call():
            right()
            everything[first - 1] = 0

        return call


class Misaddressed(Torch):
    """Wrong in the `nth` slot mapping of a replay alone."""

    def __init__(self, device, nth):
        super().__init__(device)
        self.nth, self.mappings = nth, []

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *others):
        bind = super().reshape_and_cache_flash
        if slot_mapping.data_ptr() not in self.mappings:
            self.mappings.append(slot_mapping.data_ptr())
        wrong = self.mappings.index(slot_mapping.data_ptr()) == self.nth - 1

        def call():
            slots = slot_mapping.flip(0) if wrong else slot_mapping
            bind(key, value, key_cache, value_cache, slots, *others)()

        return call


class Beyond(_Stray):
    """Changes the last byte of the curve's keys and values, whoever's it is."""

    def besides(self, key, key_cache, value_cache, slot_mapping):
        torch.empty(0, dtype=torch.uint8).set_(key.untyped_storage())[-1] = 0
