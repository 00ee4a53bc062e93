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


class ExtraToken(Torch):
    """Writes the row behind the last token's as well, in the slot that comes next."""

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, slot_mapping, *others):
        bind = super().reshape_and_cache_flash

        def call():
            bind(key, value, key_cache, value_cache, self._longer(key, slot_mapping), *others)()

        return call

    def reshape_and_cache(self, key, value, key_cache, value_cache, slot_mapping, *others):
        bind = super().reshape_and_cache

        def call():
            bind(key, value, key_cache, value_cache, self._longer(key, slot_mapping), *others)()

        return call

    def _longer(self, key, slot_mapping):
        num_rows = len(slot_mapping) + (len(key) > len(slot_mapping))
        return torch.cat([slot_mapping, slot_mapping[-1:] + 1])[:num_rows]


class PerTensor(Torch):
    """Divides every head by the first one's scale."""

    def reshape_and_cache_flash(self, *arguments):
        *others, k_scale, v_scale = arguments
        return super().reshape_and_cache_flash(*others, k_scale.flatten()[0], v_scale.flatten()[0])

    def reshape_and_cache(self, *arguments):
        *others, k_scale, v_scale = arguments
        return super().reshape_and_cache(*others, k_scale.flatten()[0], v_scale.flatten()[0])


class Rescaled(Torch):
    """Decodes an 8-bit source, divides it by its scale and converts it again."""

    def reshape_and_cache_flash(self, *arguments):
        return self._rescaled(super().reshape_and_cache_flash, *arguments)

    def reshape_and_cache(self, *arguments):
        return self._rescaled(super().reshape_and_cache, *arguments)

    def _rescaled(self, bind, key, value, *others):
        *before, k_scale, v_scale = others

        def call():
            bind(key.float(), value.float(), *before, k_scale * 2, v_scale * 2)()

        return call


class Mislaid(Torch):
    """Takes the rows as if they were contiguous, wherever they lie."""

    def reshape_and_cache_flash(self, key, value, *others):
        return super().reshape_and_cache_flash(self._dense(key), self._dense(value), *others)

    def reshape_and_cache(self, key, value, *others):
        return super().reshape_and_cache(self._dense(key), self._dense(value), *others)

    def _dense(self, rows):
        _, num_heads, head_size = rows.shape
        return rows.as_strided(rows.shape, (num_heads * head_size, head_size, 1))


class Overrunning(Torch):
    """Writes the right rows, and one byte `before` the cache's first byte or, negative, behind its last."""

    def __init__(self, device, before):
        super().__init__(device)
        self.before = before

    def reshape_and_cache_flash(self, key, value, key_cache, value_cache, *others):
        right = super().reshape_and_cache_flash(key, value, key_cache, value_cache, *others)
        first = key_cache.storage_offset() * key_cache.element_size()
        everything = torch.empty(0, dtype=torch.uint8).set_(key_cache.untyped_storage())
        behind = first + 2 * key_cache.numel() * key_cache.element_size()
        at = first - self.before if self.before > 0 else behind - self.before - 1

        def call():
            right()
            everything[at] = 0

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


class Exchanging(_Stray):
    """Swaps two blocks that nobody wrote or, if not `swapped`, copies one to the other."""

    def __init__(self, device, swapped):
        super().__init__(device)
        self.swapped = swapped

    def besides(self, key, key_cache, value_cache, slot_mapping):
        block_size = value_cache.shape[3] if key_cache.dim() == 5 else key_cache.shape[1]
        taken = (slot_mapping // block_size).tolist()
        one, other = [block for block in range(len(key_cache)) if block not in taken][:2]
        for plane in (key_cache, value_cache):
            kept = plane[one].clone()
            plane[one] = plane[other]
            if self.swapped:
                plane[other] = kept


class Beyond(_Stray):
    """Changes the last byte of the curve's keys and values, whoever's it is."""

    def besides(self, key, key_cache, value_cache, slot_mapping):
        torch.empty(0, dtype=torch.uint8).set_(key.untyped_storage())[-1] = 0
