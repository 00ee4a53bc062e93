"""A composed configuration becomes an Experiment here, once; whatever it must not hold is refused."""

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from kvexp.cli.help import GROUPS
from kvexp.errors import ConfigError
from kvexp.experiment import Choice, Experiment, Scalar, WorkloadSpec

Config = Mapping[str, Any]

SWEEP = ("resume", "repeat", "timeout_s", "fail_fast", "isolation")
"""The keys that say how a sweep is run; they are one for all of its curves and change no point."""

CODE = ("op", "impl", "layout")
"""Groups whose YAML names a class."""

FIXED = {"dtype": ("torch_dtype",), "kv_cache_dtype": ("format",), "scale": (), "mode": ()}
"""Groups that are data, with their keys: the option's name is a column, so the keys are not typed."""

TIMER_WHOLE = {"warmup": 1, "min_samples": 2, "max_samples": 2}
"""The timer's whole numbers and the least of each; a standard deviation wants two samples."""
TIMER_REAL = ("relative_error", "max_seconds")
TIMER_WORDS = {"cache": ("auto", "cold", "hot"), "inputs": ("hot", "cold")}

WORDS = {
    "slots": ("random", "contiguous", "reversed", "decode", "prefill"),
    "padding_at": ("end", "scattered"),
    "rows": ("contiguous", "qkv", "misaligned"),
}
"""The workload's words and what each may be."""
MOST_TOKENS = 2**31 - 1
MOST_SLOTS = 2**63 - 1
"""A slot number is an int64."""


def experiment(
    config: Config,
    choices: Mapping[str, str | None],
    overrides: Iterable[str],
    layout_reason: str = "",
) -> Experiment:
    """The typed experiment.

    Args:
        config: The composed configuration without `hydra`, resolved; `layout` is one, not `auto`.
        choices: The option of each group, by name.
        overrides: What was typed or swept, as text.
        layout_reason: Why that layout.

    Raises:
        ConfigError: A key is unknown, missing, of the wrong type or out of range.
    """
    groups = [group for group in GROUPS if group != "experiment"]
    check_keys("", config, [*groups, "device", *SWEEP])
    names = {group: choices.get(group) or "" for group in groups}
    for group in groups:
        if not names[group] or not isinstance(config[group], Mapping):
            raise ConfigError(f"{group} must name one option of its group")
    check_keys("connector", config["connector"], ("layout",))
    _check_fixed(overrides)
    return Experiment(
        **{group: _code(group, names[group], config[group]) for group in CODE},
        **{group: _data(group, names[group], config[group]) for group in FIXED},
        timer=_timer(names["timer"], config["timer"]),
        workload=_workload(names["workload"], config["workload"]),
        device=_device(config["device"]),
        layout_reason=layout_reason,
    )


def check_keys(prefix: str, found: Collection[str], known: Collection[str]) -> None:
    """Returns when exactly the known keys are there.

    Raises:
        ConfigError: A key is unknown or missing.
    """
    for key in found:
        if key not in known:
            raise ConfigError(unknown_key(prefix, key, known))
    for key in known:
        if key not in found:
            raise ConfigError(f"{dotted(prefix, key)} is missing")


def unknown_key(prefix: str, key: str, known: Collection[str]) -> str:
    """The sentence for a key that is not there, with the ones that are."""
    if not prefix:
        known = {*known, "experiment"}
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {dotted(prefix, close[0])}?)" if close else ""
    owner = prefix or "the configuration"
    there = f"has {', '.join(sorted(known))}" if known else "has no keys"
    return f"unknown key {dotted(prefix, key)}{hint}; {owner} {there}"


def dotted(prefix: str, key: str) -> str:
    """The key as it is typed."""
    return f"{prefix}.{key}" if prefix else key


def _check_fixed(overrides: Iterable[str]) -> None:
    """A row says `dtype=half`; an inner key that was typed would make it lie."""
    for text in overrides:
        group, dot, _ = text.lstrip("+~").partition("=")[0].partition(".")
        if dot and group in (*FIXED, "connector"):
            raise ConfigError(f"{text!r} is refused: choose an option of {group}, not a key of it")


def _code(group: str, name: str, config: Config) -> Choice:
    options = dict(config)
    target = options.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{group}={name} names no class; its YAML needs `_target_: package.Class`")
    return Choice(name, target, {k: _scalar(f"{group}.{k}", v) for k, v in options.items()})


def _data(group: str, name: str, config: Config) -> Choice:
    check_keys(group, config, FIXED[group])
    return Choice(name, options={key: text(f"{group}.{key}", v) for key, v in config.items()})


def _timer(name: str, config: Config) -> Choice:
    check_keys("timer", config, [*TIMER_WHOLE, *TIMER_REAL, *TIMER_WORDS])
    counts = {key: whole(f"timer.{key}", config[key], n) for key, n in TIMER_WHOLE.items()}
    real = {key: positive(f"timer.{key}", config[key]) for key in TIMER_REAL}
    words = {key: word(f"timer.{key}", config[key], words) for key, words in TIMER_WORDS.items()}
    if counts["max_samples"] < counts["min_samples"]:
        raise ConfigError(
            f"timer.max_samples {counts['max_samples']} is below timer.min_samples {counts['min_samples']}"
        )
    return Choice(name, options={**counts, **real, **words})


def _workload(name: str, config: Config) -> WorkloadSpec:
    known = [field.name for field in fields(WorkloadSpec) if field.name != "name"]
    check_keys("workload", config, known)
    sizes = ("num_heads", "head_size", "head_size_v", "block_size", "num_layers", "num_query_heads")
    named: dict[str, Any] = {key: whole(f"workload.{key}", config[key]) for key in sizes}
    named |= {key: word(f"workload.{key}", config[key], words) for key, words in WORDS.items()}
    spec = WorkloadSpec(
        **named,
        name=name,
        num_tokens=_num_tokens(config["num_tokens"]),
        num_blocks=whole("workload.num_blocks", config["num_blocks"], most=MOST_SLOTS),
        padding=_fraction("workload.padding", config["padding"]),
        extra_tokens=whole("workload.extra_tokens", config["extra_tokens"], least=0),
        seed=whole("workload.seed", config["seed"], least=0, most=MOST_SLOTS),
    )
    if spec.num_blocks * spec.block_size > MOST_SLOTS:
        raise ConfigError(
            f"{spec.num_blocks} blocks of {spec.block_size} slots are more than the {MOST_SLOTS} "
            "slots that an int64 numbers"
        )
    return spec


def _num_tokens(value: Any) -> tuple[int, ...]:
    key = "workload.num_tokens"
    points = value if isinstance(value, list) else [value]
    if not points:
        raise ConfigError(f"{key} must name at least one number of tokens, not []")
    numbers = tuple(whole(key, point) for point in points)
    for number in numbers:
        if numbers.count(number) > 1:
            raise ConfigError(f"{key} names {number} twice")
    return numbers


def _device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d{0,3}))?", value):
        return value
    raise ConfigError(f"device must be auto, cuda, cuda:N or cpu, not {shown(value)}")


def whole(key: str, value: Any, least: int = 1, most: int = MOST_TOKENS) -> int:
    """The value as a whole number between the two.

    Raises:
        ConfigError: It is none, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key} must be a whole number, not {shown(value)}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ConfigError(f"{key} must be {bound}, not {value}")
    return value


def positive(key: str, value: Any) -> float:
    """The value as a number above zero.

    Raises:
        ConfigError: It is none.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{key} must be a positive number, not {shown(value)}")
    return float(value)


def _fraction(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1:
        raise ConfigError(f"{key} must be a number from 0 to less than 1, not {shown(value)}")
    return float(value)


def word(key: str, value: Any, words: Sequence[str]) -> str:
    """The value, which is one of the words.

    Raises:
        ConfigError: It is not.
    """
    if value not in words:
        *others, last = words
        raise ConfigError(f"{key} must be {', '.join(others)} or {last}, not {shown(value)}")
    return str(value)


def text(key: str, value: Any) -> str:
    """The value, which is a text that is not empty.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} must be a text, not {shown(value)}")
    return value


def _scalar(key: str, value: Any) -> Scalar:
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(f"{key} must be one value, not {shown(value)}")


def shown(value: Any) -> str:
    """The value as it is typed, a text in quotes."""
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)
