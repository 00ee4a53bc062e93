"""Paged decodes that are wrong on purpose, and one that is right item by item."""

import math

import torch

from kvexp.impl.torch import Torch
from kvexp.op.quantize import FORMATS


class Plain(Torch):
    """Right: computes in float32, sequence after sequence; a subclass changes one step."""

    def paged_decode(
        self, output, query, key_cache, value_cache, block_table, seq_lens, kv_cache_dtype, k_scale, v_scale
    ):
        group = query.shape[1] // key_cache.shape[2]
        self.block_size = key_cache.shape[1]

        def read(cache, slots, scale):
            rows = cache[slots // self.block_size, slots % self.block_size]
            if kv_cache_dtype == "auto":
                return rows.float()
            return rows.view(FORMATS[kv_cache_dtype].dtype).float() * scale.view(-1, 1)

        def call():
            for number, length in enumerate(seq_lens.tolist()):
                token = torch.arange(self.count(length))
                blocks = self.choose_blocks(block_table[number].long(), key_cache.shape[0])
                slots = blocks[token // self.block_size] * self.block_size + token % self.block_size
                key = read(key_cache, slots, k_scale)
                value = read(value_cache, slots, v_scale)
                for head in range(query.shape[1]):
                    of = self.choose_head(head, group, key.shape[1])
                    products = key[:, of] @ query[number, head].float() * self.scale(query.shape[2])
                    output[number, head] = self.weigh(products) @ value[:, of]

        return call

    def count(self, length):
        return length

    def choose_blocks(self, blocks, num_blocks):
        return blocks

    def choose_head(self, head, group, num_heads):
        return head // group

    def scale(self, head_size):
        return head_size**-0.5

    def weigh(self, products):
        return products.softmax(0)


class HeadTooFar(Plain):
    """Reads the next KV head."""

    def choose_head(self, head, group, num_heads):
        return (head // group + 1) % num_heads


class HeadsInTurn(Plain):
    """Gives the query heads the KV heads in turns, not in groups."""

    def choose_head(self, head, group, num_heads):
        return head % num_heads


class BlockTooFar(Plain):
    """Reads the block behind each."""

    def choose_blocks(self, blocks, num_blocks):
        return (blocks + 1) % num_blocks


class TokenMore(Plain):
    """Reads a token behind the last, where the block has one."""

    def count(self, length):
        return length + (length % self.block_size > 0)


class TokenLess(Plain):
    """Leaves the last token out."""

    def count(self, length):
        return length - 1


class NoMaximum(Plain):
    """Leaves exponents as large as they are."""

    def weigh(self, products):
        powers = products.exp()
        return powers / powers.sum()


class Unscaled(Plain):
    """Forgets to divide by the root of the head size."""

    def scale(self, head_size):
        return 1.0


class Coarse(Plain):
    """Rounds the weights to three bits."""

    def weigh(self, products):
        return products.softmax(0).to(torch.float8_e4m3fn).float()


class OldTable(Torch):
    """Keeps the block table that it saw when it was bound."""

    def paged_decode(self, output, query, key_cache, value_cache, block_table, *others):
        return super().paged_decode(output, query, key_cache, value_cache, block_table.clone(), *others)


class OldPast(Torch):
    """Keeps the keys and values that it saw when it was bound."""

    def paged_decode(self, output, query, key_cache, value_cache, *others):
        return super().paged_decode(output, query, key_cache.clone(), value_cache.clone(), *others)


class Spilling(Torch):
    """Writes one output more, in front of its own."""

    def paged_decode(self, output, query, *others):
        decode = super().paged_decode(output, query, *others)
        before = output.as_strided((1,), (1,), output.storage_offset() - 1)

        def call():
            decode()
            before.fill_(math.pi)

        return call
