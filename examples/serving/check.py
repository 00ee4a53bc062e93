"""Check served tokens against the model's own attention over a contiguous past."""

from collections.abc import Sequence
from typing import Any

import torch

from examples.serving.serve import Served
from kvexp.errors import IncorrectResult

OWN = ("sdpa", "eager")
"""The model's own attentions. How far they differ is what the type's rounding makes of a logit."""


def check(model: Any, served: Sequence[Served], layout: str) -> float:
    """Check the logarithm of each served token's probability.

    Args:
        model: The model.
        served: Requests that were served with kvexp's cache.
        layout: The cache's, for the sentence.

    Returns:
        The largest difference.

    Raises:
        IncorrectResult: One differs from the model's own by more than twice what its two attentions differ
            by, and eight units in the last place of the largest.
    """
    found = [torch.tensor(request.logprobs) for request in served]
    own = {name: [compute_logprobs(model, request, name) for request in served] for name in OWN}
    largest = max(float(each.abs().max()) for each in own["sdpa"])
    rounding = _find_largest_difference(own["sdpa"], own["eager"])
    bound = 2 * rounding + 8 * torch.finfo(model.dtype).eps * largest
    difference = _find_largest_difference(found, own["sdpa"])
    # A NaN is not below any bound.
    if not difference <= bound:
        raise IncorrectResult(
            f"with layout={layout} a token's log-probability is {difference:.3g} from that of the model's "
            f"own attention, and rounding explains {bound:.3g}"
        )
    return difference


@torch.no_grad()
def compute_logprobs(model: Any, request: Served, attention: str) -> torch.Tensor:
    """Return the log-probability of each generated token by the model's own attention, float32 `[tokens]`."""
    model.set_attn_implementation(attention)
    ids = torch.tensor([request.prompt + request.tokens], device=model.device)
    logits = model(ids).logits[0, len(request.prompt) - 1 : -1].float()
    chosen = torch.tensor(request.tokens, device=model.device)
    return logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].cpu()


def _find_largest_difference(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))
