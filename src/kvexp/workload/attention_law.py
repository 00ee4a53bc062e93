"""State the law of a paged decode: attention in float64, and how far a right kernel may be from it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

ORDERS = 16
"""Orders of the tokens and of the elements in which torch's attention sums them, so that its error is no
matter of luck where there are few outputs."""

UNITS = {2: 1, 4: 4}
"""By bytes of a query's item. Of 16 bits an output's own rounding is the largest; of float32 that of the sums
and powers behind it, in which right kernels differ by more than a factor of two."""


@dataclass(frozen=True)
class Law:
    """The outputs of a window in float64, and how far an implementation's may be away.

    Attributes:
        outputs: float64 `[num_seqs, num_query_heads, head_size_v]`.
        bound: Twice the largest error of torch's attention in the queries' type on the same bytes, its sums
            in ORDERS orders, and UNITS in the last place of the largest output.
    """

    outputs: Tensor
    bound: float


def compute(queries: Sequence[Tensor], pasts: Iterable[tuple[Tensor, Tensor]], seed: int) -> Law:
    """Compute the outputs of some sequences after the other, and the error of torch's attention.

    Args:
        queries: Of each n sequences, `[n, num_query_heads, head_size]`.
        pasts: Their keys and values, float64 `[n, context, num_heads, head_size]` and `head_size_v`.
        seed: Of the orders.
    """
    kind, device = queries[0].dtype, queries[0].device
    outputs, error = [], torch.zeros((), dtype=torch.float64, device=device)
    for query, (key, value) in zip(queries, pasts, strict=True):
        exact = _attend(query.double(), key, value)
        tokens, elements = (_draw_orders(size, seed).to(device) for size in (key.shape[1], key.shape[3]))
        key, value = key.to(kind), value.to(kind)
        for token_order, element_order in zip(tokens, elements, strict=True):
            mixed = key[:, token_order][..., element_order], value[:, token_order]
            rough = _attend(query[..., element_order], *mixed)
            error = error.maximum((rough.double() - exact).abs().max())
        outputs.append(exact)
    found = torch.cat(outputs)
    largest = float(found.abs().max())
    # What is representable around the largest output is so far apart.
    unit = torch.finfo(kind).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
    return Law(found, 2 * float(error) + UNITS[kind.itemsize] * unit)


def _draw_orders(size: int, seed: int) -> Tensor:
    """Return ORDERS random orders of so many, int64 `[ORDERS, size]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator) for _ in range(ORDERS)])


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention of the query heads of n sequences, `[n, num_query_heads, head_size_v]`.

    Args:
        query: `[n, num_query_heads, head_size]`.
        key: `[n, context, num_heads, head_size]`.
        value: The same with heads of `head_size_v`.
    """
    heads = key.transpose(1, 2), value.transpose(1, 2)
    return scaled_dot_product_attention(query.unsqueeze(2), *heads, enable_gqa=True).squeeze(2)
