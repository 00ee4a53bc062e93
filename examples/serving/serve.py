"""Serve a round of requests with one layout, and take the time of each token."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    ContinuousBatchingConfig,
    GenerationConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from examples.serving import attention
from examples.serving.options import MODELS, Options
from kvexp.errors import KvexpError

DTYPES = {"bfloat16": torch.bfloat16, "half": torch.float16, "float": torch.float32}


@dataclass(frozen=True)
class Served:
    """One request that was served.

    Attributes:
        prompt: Its prompt.
        tokens: The tokens that were generated.
        logprobs: The logarithm of each one's probability.
        arrival_s: When it arrived, on this process's clock.
        times_s: When each token was there.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    arrival_s: float
    times_s: list[float]


def make_model(options: Options) -> Any:
    """Return the model with random weights.

    Raises:
        KvexpError: It does not fit the device.
    """
    torch.manual_seed(options.seed)
    config = Qwen3Config(**MODELS[options.model], max_position_embeddings=40960, tie_word_embeddings=False)
    config.dtype = DTYPES[options.dtype]
    try:
        with torch.device(options.device):
            model = Qwen3ForCausalLM(config).to(DTYPES[options.dtype]).eval()
    except torch.OutOfMemoryError as error:
        raise KvexpError(f"model={options.model} does not fit the memory of {options.device}") from error
    return model


def make_prompts(options: Options, count: int) -> list[list[int]]:
    """Return prompts of random tokens, whose lengths are about `mean_tokens`; the same for one seed."""
    generator = torch.Generator().manual_seed(options.seed)
    spread = options.mean_tokens // 2
    lengths = torch.randint(-spread, spread + 1, (count,), generator=generator) + options.mean_tokens
    vocabulary = MODELS[options.model]["vocab_size"]
    return [
        torch.randint(vocabulary, (max(1, int(length)),), generator=generator).tolist() for length in lengths
    ]


def draw_arrivals(options: Options, count: int) -> list[float]:
    """Return when each request arrives, in seconds: at once, or at random times of the rate."""
    if not options.rate:
        return [0.0] * count
    generator = torch.Generator().manual_seed(options.seed + 1)
    gaps = torch.empty(count).exponential_(options.rate, generator=generator)
    return gaps.cumsum(0).tolist()


def count_blocks(options: Options) -> int:
    """Return how many blocks `cache_gb` holds."""
    model = MODELS[options.model]
    row = 2 * model["num_key_value_heads"] * model["head_dim"] * model["num_hidden_layers"]
    return int(options.cache_gb * 1e9 // (row * DTYPES[options.dtype].itemsize * options.block_size))


def serve(
    model: Any,
    options: Options,
    layout: str,
    prompts: Sequence[list[int]],
    arrivals: Sequence[float],
    warm_up: bool = True,
) -> list[Served]:
    """Serve the prompts with a new cache in this layout, each handed in at its arrival.

    Args:
        model: See `make_model`.
        options: What is served.
        layout: The cache's.
        prompts: The prompts.
        arrivals: Seconds after the first at which each is handed in, ascending.
        warm_up: Serve two short requests first, so that nothing is compiled or loaded while time is taken.

    Raises:
        KvexpError: The cache holds no request, the server ended, or a request failed.
    """
    blocks = count_blocks(options)
    longest = -(-(max(map(len, prompts)) + options.new_tokens) // options.block_size)
    if blocks <= longest:
        raise KvexpError(
            f"cache_gb={options.cache_gb:g} holds {blocks} blocks, and a request needs up to {longest}; "
            "take more"
        )
    batching = ContinuousBatchingConfig(
        block_size=options.block_size,
        num_blocks=blocks,
        max_batch_tokens=options.max_batch_tokens,
        max_memory_percent=0.95,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        return_logprobs=True,
    )
    # No token ends a request: all generate as many.
    generation = GenerationConfig(do_sample=False, max_new_tokens=options.new_tokens, eos_token_id=-1)
    AttentionInterface.register(attention.NAME, attention.Attention(layout))
    model.set_attn_implementation(attention.NAME)
    serving = model.continuous_batching_context_manager(
        generation_config=generation, continuous_batching_config=batching, timeout=30, warmup=False
    )
    with torch.no_grad(), serving as manager:
        if warm_up:
            _hand_in(manager, [prompt[:32] for prompt in prompts[:2]], [0.0, 0.0], new_tokens=4)
        return _hand_in(manager, prompts, arrivals, options.new_tokens)


def _hand_in(
    manager: Any, prompts: Sequence[list[int]], arrivals: Sequence[float], new_tokens: int
) -> list[Served]:
    """Hand the requests in, wait for all, and return them in their order."""
    begin = time.perf_counter()
    names, came = [], {}
    for prompt, arrival in zip(prompts, arrivals, strict=False):
        # It is handed in when it arrives, not before.
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        arrived = time.perf_counter()
        name = manager.add_request(prompt, max_new_tokens=new_tokens, record_timestamps=True, eos_token_id=-1)
        names.append(name)
        came[name] = arrived
    found: dict[str, Any] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise KvexpError("transformers' server ended before it had served all requests")
        elif result.is_finished():
            if result.error is not None:
                raise KvexpError(f"a request failed: {result.error}")
            found[result.request_id] = result
    return [
        Served(
            prompt=list(result.prompt_ids),
            tokens=list(result.generated_tokens),
            logprobs=list(result.logprobs),
            arrival_s=came[name],
            times_s=list(result.timestamps),
        )
        for name in names
        if (result := found[name])
    ]
