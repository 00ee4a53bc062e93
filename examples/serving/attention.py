"""Attend with kvexp's paged cache in transformers' continuous batching.

transformers calls the function once a layer and step. It writes the step's keys and values to the cache in
the layout that was chosen; requests that decode read it with kvexp's paged read, and requests that still
read their prompt attend to the rows of their past with torch's attention.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

import kvexp
from kvexp.experiment import Choice
from kvexp.impl import make

NAME = "paged|kvexp"
"""The attention's name in transformers."""


@dataclass(frozen=True)
class Prompt:
    """A request that reads its prompt in this step.

    Attributes:
        rows: Its tokens of the step.
        context: Tokens that it attends to, its own included.
        slots: int64 `[context]`: where they are; None where they are all of this step.
    """

    rows: slice
    context: int
    slots: Tensor | None


@dataclass(frozen=True)
class Step:
    """One step of the model, which all layers share.

    Attributes:
        prompts: The requests that read their prompts.
        decoding: int64 `[n]`: rows of the requests that decode.
        block_table: int32 `[n, most blocks]` of theirs.
        seq_lens: int32 `[n]` of theirs.
    """

    prompts: list[Prompt]
    decoding: Tensor
    block_table: Tensor
    seq_lens: Tensor


@dataclass
class PagedCache:
    """kvexp's caches of all layers, and the step that is under way.

    Attributes:
        layout: The layout.
        writer: The name of the implementation of the write.
        reader: The implementation of the paged read.
        layers: The cache of each layer.
        block_size: Slots of a block.
        step: See `Step`.
    """

    layout: str
    writer: str
    reader: Any
    layers: list[kvexp.KVCache]
    block_size: int
    scale: Tensor
    step: Step | None = None

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """Write rows `[n, num_heads, head_size]` to these slots."""
        cache = self.layers[layer]
        planes = cache.key_cache, cache.value_cache
        scales = self.scale, self.scale
        kvexp.reshape_and_cache_flash(key, value, *planes, slots, "auto", *scales, impl=self.writer)

    def read_rows(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of these slots, `[n, num_heads, head_size]`."""
        block, offset = slots // self.block_size, slots % self.block_size
        cache = self.layers[layer]
        return cache.key_cache[block, offset], cache.value_cache[block, offset]

    def decode(self, layer: int, query: Tensor, step: Step) -> Tensor:
        """Return the attention of the requests that decode, `[n, num_query_heads, head_size]`."""
        cache, output = self.layers[layer], torch.empty_like(query)
        planes = cache.key_cache, cache.value_cache
        tables = step.block_table, step.seq_lens
        self.reader.paged_decode(output, query, *planes, *tables, "auto", self.scale, self.scale)()
        return output


def make_cache(layout: str, cache: Any) -> PagedCache:
    """Allocate kvexp's caches in the place of transformers', whose own are given up.

    Args:
        layout: A flash layout.
        cache: transformers' PagedAttentionCache, which says how many blocks there are.
    """
    device = torch.device(cache.device)
    on_gpu = device.type == "cuda"
    name, target = ("triton", "kvexp.impl.triton.Triton") if on_gpu else ("torch", "kvexp.impl.torch.Torch")
    reader = make(Choice(name, target), device=f"cuda:{device.index or 0}" if on_gpu else "cpu")
    count = len(cache.key_cache)
    for planes in (cache.key_cache, cache.value_cache):
        planes[:] = [plane.new_empty(0) for plane in planes]
    # Two further blocks: transformers lets padding write to and read from them.
    layers = kvexp.allocate_layers(
        count,
        layout,
        num_blocks=cache.num_blocks + 2,
        block_size=cache.block_size,
        num_heads=cache.num_key_value_heads,
        head_size=cache.head_dim,
        dtype=cache.dtype,
        device=device,
    )
    return PagedCache(
        layout=layout,
        writer="cuda" if on_gpu else "torch",
        reader=reader,
        layers=list(layers),
        block_size=cache.block_size,
        scale=torch.ones(1, device=device),
    )


def plan_step(block_size: int, query_begins: Tensor, context_begins: Tensor, read_index: Tensor) -> Step:
    """Split a step's requests into those that read their prompt and those that decode.

    Args:
        block_size: Slots of a block.
        query_begins: int32 `[requests + 1]`: where each request's tokens begin.
        context_begins: The same of the tokens that each attends to.
        read_index: int64: the slots of these, request after request; empty where no request has a past.
    """
    device = read_index.device
    bounds = zip(*(itertools.pairwise(each.tolist()) for each in (query_begins, context_begins)), strict=True)
    prompts, rows, firsts, lengths = [], [], [], []
    for (begin, end), (first, last) in bounds:
        if end - begin == 1 and last - first > 1:
            rows.append(begin)
            firsts.append(first)
            lengths.append(last - first)
        elif end > begin:
            has_past = last - first > end - begin
            slots = read_index[first:last] if has_past else None
            prompts.append(Prompt(slice(begin, end), last - first, slots))
    most = -(-max(lengths, default=0) // block_size)
    starts = torch.tensor(firsts, dtype=torch.int64, device=device)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    at = starts[:, None] + torch.arange(most, device=device) * block_size
    # What lies behind a request's last block is not read.
    at = at.minimum((starts + seq_lens - 1)[:, None])
    table = (read_index[at] // block_size).int() if rows else at.int()
    return Step(prompts, torch.tensor(rows, dtype=torch.int64, device=device), table, seq_lens)


class Attention:
    """transformers' paged attention with kvexp's cache, which is allocated at the first call.

    Args:
        layout: The cache's.
    """

    def __init__(self, layout: str) -> None:
        self._layout = layout
        self._held: PagedCache | None = None

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        cache: Any,
        cu_seq_lens_q: Tensor,
        cu_seq_lens_k: Tensor,
        read_index: list[Tensor],
        write_index: list[Tensor],
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Write the step's keys and values, and attend.

        Args:
            module: The layer's attention.
            query: `[1, num_query_heads, tokens, head_size]`.
            key: `[1, num_heads, tokens, head_size]`.
            value: The same.
            attention_mask: Not used: requests attend to what they have.
            cache: transformers' cache.
            cu_seq_lens_q: int32 `[requests + 1]`: where each request's tokens begin.
            cu_seq_lens_k: The same of the tokens that each attends to.
            read_index: For each group of layers the slots of these.
            write_index: For each group the slots that the step writes.

        Returns:
            `[1, tokens, num_query_heads, head_size]`, and no weights.
        """
        held = self._held = self._held or make_cache(self._layout, cache)
        group, layer = cache.layer_index_to_group_indices[module.layer_idx]
        if layer == 0 or held.step is None:
            held.step = plan_step(held.block_size, cu_seq_lens_q, cu_seq_lens_k, read_index[group])
        step, rows = held.step, query[0].transpose(0, 1)
        keys, values = (each[0].transpose(0, 1).contiguous() for each in (key, value))
        held.write(layer, keys, values, write_index[group])
        output = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
        if len(step.decoding):
            output[step.decoding] = held.decode(layer, rows[step.decoding], step)
        for prompt in step.prompts:
            past = keys[prompt.rows], values[prompt.rows]
            if prompt.slots is not None:
                past = held.read_rows(layer, prompt.slots)
            output[prompt.rows] = _attend_prompt(rows[prompt.rows], *past)
        return output.unsqueeze(0), None


def _attend_prompt(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the causal attention of the last tokens of a context, `[n, num_query_heads, head_size]`."""
    query, key, value = (each.transpose(0, 1).unsqueeze(0) for each in (query, key, value))
    tokens, context = query.shape[2], key.shape[2]
    mask: Tensor | None = None
    if tokens < context:
        mask = causal_lower_right(tokens, context)
        if query.device.type == "cpu":  # which takes tensors alone
            mask = torch.ones(tokens, context, dtype=torch.bool).tril(context - tokens)
    heads = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return heads[0].transpose(0, 1)
