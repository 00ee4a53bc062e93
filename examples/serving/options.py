"""Read what is typed: `layout=NHD,HND requests=982`, checked by the types and words below."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kvexp.errors import ConfigError

LAYOUTS = ("NHD", "HND", "NHD_packed", "HND_packed", "BHLNC", "LHBNC")
MODELS = {
    # Sizes of each model's config.json; the weights are random.
    "qwen3_0_6b": {
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "vocab_size": 151936,
    },
    "qwen3_14b": {
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "vocab_size": 151936,
    },
    "tiny": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
}
"""Sizes of the models, by name."""


@dataclass(frozen=True)
class Options:
    """Hold what a session serves.

    Attributes:
        layout: Layouts that are compared, the first with each other one.
        model: A name of `MODELS`.
        requests: Requests of a round.
        new_tokens: Tokens that each generates.
        mean_tokens: About the mean length of their prompts; lengths differ by up to a half of it.
        rate: Requests a second, at random times; 0 means that all are there at once.
        rounds: Rounds, each with every layout in a random order.
        block_size: Slots of a block.
        cache_gb: Gigabytes of a layout's cache.
        max_batch_tokens: Tokens of one step.
        dtype: bfloat16, half or float.
        device: cuda or cpu.
        seed: Of prompts, lengths, times, orders and weights.
        out: Folder of what was measured; a round that is there is not measured again.
        tracking: An MLflow address, or none.
        study: A sweep's folder of `experiment=layout_study`, for the prediction from kernels.
        check: Requests whose logits are compared with the model's own attention before anything is timed.
    """

    layout: tuple[str, ...] = ("NHD", "HND")
    model: str = "qwen3_0_6b"
    requests: int = 982
    new_tokens: int = 128
    mean_tokens: int = 1777
    rate: float = 0.0
    rounds: int = 3
    block_size: int = 16
    cache_gb: float = 40.0
    max_batch_tokens: int = 8192
    dtype: str = "bfloat16"
    device: str = "cuda"
    seed: int = 0
    out: str = "serving"
    tracking: str = "sqlite:///mlruns/mlflow.db"
    study: str = ""
    check: int = field(default=4)


WORDS = {
    "model": tuple(MODELS),
    "dtype": ("bfloat16", "half", "float"),
    "device": ("cuda", "cpu"),
}
LEAST = {"rate": 0.0, "seed": 0, "check": 1, "cache_gb": 0.001, "block_size": 4}
"""Least values of numbers; of others 1."""


def parse(words: Sequence[str]) -> Options:
    """Return the options that were typed as `key=value`.

    Raises:
        ConfigError: A key is unknown, is typed twice, or cannot have that value.
    """
    known = {each.name: each for each in dataclasses.fields(Options)}
    typed: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"{word!r} is none of {', '.join(f'{name}=' for name in known)}")
        if key in typed:
            raise ConfigError(f"{key} is typed twice; keep one of them")
        typed[key] = _parse_value(key, text, known[key].default)
    return Options(**typed)


def _parse_value(key: str, text: str, default: Any) -> Any:
    if key == "layout":
        layouts = tuple(text.split(","))
        for name in layouts:
            if name not in LAYOUTS:
                raise ConfigError(
                    f"layout={name} is no layout of a paged read; choose of {', '.join(LAYOUTS)}"
                )
        if len(set(layouts)) < len(layouts):
            raise ConfigError(f"layout={text} names a layout twice")
        return layouts
    if key in WORDS and text not in WORDS[key]:
        raise ConfigError(f"{key}={text} must be {' or '.join(WORDS[key])}")
    if isinstance(default, str):
        return text
    try:
        value = type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ConfigError(f"{key} must be {kind}, not {text!r}") from None
    least = LEAST.get(key, 1)
    if not least <= value < 1e9:
        raise ConfigError(f"{key} must be from {least} to 10^9, not {text}")
    return value
