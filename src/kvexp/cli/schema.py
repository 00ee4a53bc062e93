"""Turn a composed configuration into an Experiment and SweepSettings; refuse wrong keys and values."""

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from kvexp.cli.help import GROUPS
from kvexp.errors import ConfigError
from kvexp.experiment import Choice, Experiment, Scalar, WorkloadSpec
from kvexp.sweep.settings import ISOLATIONS, SweepSettings
from kvexp.tracking import TrackingSettings

Config = Mapping[str, Any]

SWEEP = ("resume", "repeat", "timeout_s", "fail_fast", "isolation")
"""The keys that say how a sweep is run: one value for all of its curves."""

CODE = ("op", "impl", "layout")
"""Groups whose YAML names a class."""

FIXED = {"dtype": ("torch_dtype",), "kv_cache_dtype": ("format",), "scale": (), "mode": ()}
"""Groups that are data, with their keys. A row holds the option's name alone, so no key may be typed."""

TIMER_WHOLE = {"warmup": 1, "min_samples": 2, "max_samples": 2}
"""The timer's whole numbers and the least of each; a standard deviation needs two samples."""
TIMER_REAL = ("relative_error", "max_seconds")
TIMER_WORDS = {"cache": ("auto", "cold", "hot"), "inputs": ("hot", "cold")}

WORDS = {
    "slots": ("random", "contiguous", "reversed", "decode", "prefill"),
    "padding_at": ("end", "scattered"),
    "rows": ("contiguous", "qkv", "misaligned"),
}
"""The workload's words and what each may be."""
MOST_REPEATS = 1000
MOST_TOKENS = 2**31 - 1
MOST_SLOTS = 2**63 - 1
"""A slot number is an int64."""


def build_experiment(
    config: Config,
    choices: Mapping[str, str | None],
    overrides: Iterable[str],
    layout_reason: str = "",
) -> Experiment:
    """Build the experiment that was typed.

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
        **{group: _build_code(group, names[group], config[group]) for group in CODE},
        **{group: _build_data(group, names[group], config[group]) for group in FIXED},
        timer=_build_timer(names["timer"], config["timer"]),
        workload=_build_workload(names["workload"], config["workload"]),
        device=_read_device(config["device"]),
        layout_reason=layout_reason,
    )


def build_settings(config: Config, tracking: TrackingSettings, resumes: bool) -> SweepSettings:
    """Build the settings of the sweep.

    Args:
        config: The composed configuration.
        tracking: Where its runs go.
        resumes: Whether `resume=` was typed. It names the folder, so it is read before anything is composed.

    Raises:
        ConfigError: A key is of the wrong type or out of range, or `resume` is set in a file.
    """
    timeout_s, fail_fast = config["timeout_s"], config["fail_fast"]
    if config["resume"] not in (False, None):
        raise ConfigError("resume must be typed on the command line, not set in a file")
    if not isinstance(fail_fast, bool):
        raise ConfigError(f"fail_fast must be true or false, not {_format(fail_fast)}")
    repeat = read_whole("repeat", config["repeat"], most=MOST_REPEATS)
    isolation = ISOLATIONS[ISOLATIONS.index(read_word("isolation", config["isolation"], ISOLATIONS))]
    if repeat > 1 and isolation == "inline":
        raise ConfigError("repeat needs a new process each time, and isolation=inline has none; choose one")
    return SweepSettings(
        tracking=tracking,
        timeout_s=None if timeout_s is None else read_positive("timeout_s", timeout_s),
        fail_fast=fail_fast,
        isolation=isolation,
        resumes=resumes,
        repeat=repeat,
    )


def check_keys(prefix: str, found: Collection[str], known: Collection[str]) -> None:
    """Check that exactly the known keys are there.

    Raises:
        ConfigError: A key is unknown or missing.
    """
    for key in found:
        if key not in known:
            raise ConfigError(describe_unknown_key(prefix, key, known))
    for key in known:
        if key not in found:
            raise ConfigError(f"{_join(prefix, key)} is missing")


def describe_unknown_key(prefix: str, key: str, known: Collection[str]) -> str:
    """Say that there is no such key, and which there are."""
    if not prefix:
        known = {*known, "experiment"}
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {_join(prefix, close[0])}?)" if close else ""
    owner = prefix or "the configuration"
    keys = f"has {', '.join(sorted(known))}" if known else "has no keys"
    return f"unknown key {_join(prefix, key)}{hint}; {owner} {keys}"


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _check_fixed(overrides: Iterable[str]) -> None:
    """Refuse a typed key inside a fixed option: the row says `dtype=half` and nothing of the key."""
    for text in overrides:
        group, dot, _ = text.lstrip("+~").partition("=")[0].partition(".")
        if dot and group in (*FIXED, "connector"):
            raise ConfigError(f"{text!r} is refused: choose an option of {group}, not a key of it")


def _build_code(group: str, name: str, config: Config) -> Choice:
    options = dict(config)
    target = options.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{group}={name} names no class; its YAML needs `_target_: package.Class`")
    return Choice(name, target, {k: _read_scalar(f"{group}.{k}", v) for k, v in options.items()})


def _build_data(group: str, name: str, config: Config) -> Choice:
    check_keys(group, config, FIXED[group])
    return Choice(name, options={key: read_text(f"{group}.{key}", v) for key, v in config.items()})


def _build_timer(name: str, config: Config) -> Choice:
    options = dict(config)
    code = _build_code("timer", name, {"_target_": options.pop("_target_", None)})
    check_keys("timer", options, [*TIMER_WHOLE, *TIMER_REAL, *TIMER_WORDS])
    counts = {key: read_whole(f"timer.{key}", options[key], n) for key, n in TIMER_WHOLE.items()}
    real = {key: read_positive(f"timer.{key}", options[key]) for key in TIMER_REAL}
    words = {key: read_word(f"timer.{key}", options[key], words) for key, words in TIMER_WORDS.items()}
    if counts["max_samples"] < counts["min_samples"]:
        raise ConfigError(
            f"timer.max_samples {counts['max_samples']} is below timer.min_samples {counts['min_samples']}"
        )
    return replace(code, options={**counts, **real, **words})


def _build_workload(name: str, config: Config) -> WorkloadSpec:
    known = [field.name for field in fields(WorkloadSpec) if field.name != "name"]
    check_keys("workload", config, known)
    sizes = ("num_heads", "head_size", "head_size_v", "block_size", "num_layers", "num_query_heads")
    named: dict[str, Any] = {key: read_whole(f"workload.{key}", config[key]) for key in sizes}
    named |= {key: read_word(f"workload.{key}", config[key], words) for key, words in WORDS.items()}
    spec = WorkloadSpec(
        **named,
        name=name,
        num_tokens=_read_num_tokens(config["num_tokens"]),
        num_blocks=read_whole("workload.num_blocks", config["num_blocks"], most=MOST_SLOTS),
        padding=_read_fraction("workload.padding", config["padding"]),
        extra_tokens=read_whole("workload.extra_tokens", config["extra_tokens"], least=0),
        seed=read_whole("workload.seed", config["seed"], least=0, most=MOST_SLOTS),
    )
    if spec.num_blocks * spec.block_size > MOST_SLOTS:
        raise ConfigError(
            f"{spec.num_blocks} blocks of {spec.block_size} slots exceed the {MOST_SLOTS} slots "
            "that an int64 can number"
        )
    return spec


def _read_num_tokens(value: Any) -> tuple[int, ...]:
    key = "workload.num_tokens"
    points = value if isinstance(value, list) else [value]
    if not points:
        raise ConfigError(f"{key} must name at least one number of tokens, not []")
    numbers = tuple(read_whole(key, point) for point in points)
    for number in numbers:
        if numbers.count(number) > 1:
            raise ConfigError(f"{key} names {number} twice")
    return numbers


def _read_device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d{0,3}))?", value):
        return value
    raise ConfigError(f"device must be auto, cuda, cuda:N or cpu, not {_format(value)}")


def read_whole(key: str, value: Any, least: int = 1, most: int = MOST_TOKENS) -> int:
    """Return the value if it is a whole number from `least` to `most`, else raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key} must be a whole number, not {_format(value)}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ConfigError(f"{key} must be {bound}, not {value}")
    return value


def read_positive(key: str, value: Any) -> float:
    """Return the value as a float if it is a number above zero, else raise ConfigError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{key} must be a positive number, not {_format(value)}")
    return float(value)


def _read_fraction(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 1:
        raise ConfigError(f"{key} must be a number from 0 to less than 1, not {_format(value)}")
    return float(value)


def read_word(key: str, value: Any, words: Sequence[str]) -> str:
    """Return the value if it is one of the words, else raise ConfigError."""
    if value not in words:
        *others, last = words
        raise ConfigError(f"{key} must be {', '.join(others)} or {last}, not {_format(value)}")
    return str(value)


def read_text(key: str, value: Any) -> str:
    """Return the value if it is a text that is not empty, else raise ConfigError."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} must be a text, not {_format(value)}")
    return value


def _read_scalar(key: str, value: Any) -> Scalar:
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(f"{key} must be one value, not {_format(value)}")


def _format(value: Any) -> str:
    """Format a value as it is typed, a text in quotes."""
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str)
