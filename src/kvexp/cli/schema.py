"""Turn a composed configuration into an Experiment and SweepSettings; refuse wrong keys and values."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvexp.case import NUM_TOKENS, Sizes
from kvexp.cli.given_slots import take_slots
from kvexp.cli.groups import CODE, GROUPS, suggest
from kvexp.cli.slot_file import check_range
from kvexp.column import ANY, INT64, Column, Flag, Positive, Real, Text, Whole, Word, columns_of
from kvexp.errors import ConfigError
from kvexp.experiment import Choice, Experiment, WorkloadSpec
from kvexp.results.provenance import read_tags
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings

Config = Mapping[str, Any]

SWEEP = ("resume", *columns_of(SweepSettings))
"""The keys that say how a sweep is run: one value for all of its curves."""

FIXED = {"dtype": ("torch_dtype",), "kv_cache_dtype": ("format",), "scale": (), "mode": ()}
"""Groups that are data, with their keys. A row holds the option's name alone, so no key may be typed."""

NO_TEXT = "that is no text: YAML reads on, yes, null and 1 as other values; write the key in quotes"

TIMER = {
    "warmup": Whole(),
    "min_samples": Whole(least=2),  # as a standard deviation needs
    "max_samples": Whole(least=2),
    "relative_error": Positive(),
    "max_seconds": Positive(),
    "cache": Word(words=("auto", "cold", "hot")),
    "inputs": Word(words=("hot", "cold")),
}
"""The timer's keys, each with what it may be."""


TRACKING = {"uri": Text(filled=True, optional=True), "experiment": Text(filled=True)}


def build_experiment(
    config: Config,
    choices: Mapping[str, str | None],
    overrides: Sequence[str],
    layout_reason: str = "",
) -> Experiment:
    """Build the experiment of a composed configuration without `hydra`, whose `layout` is one, not `auto`.

    `choices` has the name of each group's option, `overrides` what was typed or swept.

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
        workload=_build_workload(names["workload"], config["workload"], overrides),
        device=_read_device(config["device"]),
        layout_reason=layout_reason,
    )


def build_settings(config: Config, tracking: TrackingSettings, resumes: bool) -> SweepSettings:
    """Build the settings of the sweep; `resumes` says whether `resume=` was typed.

    That names the folder, so it is read before anything is composed.

    Raises:
        ConfigError: A key is of the wrong type or out of range, or `resume` is set in a file.
    """
    if config["resume"] not in (False, None):
        raise ConfigError("resume must be typed on the command line, not set in a file")
    keys = {key: read(key, column, config[key]) for key, column in columns_of(SweepSettings).items()}
    if keys["repeat"] > 1 and keys["isolation"] == "inline":
        raise ConfigError("repeat needs a new process each time, and isolation=inline has none; choose one")
    return SweepSettings(tracking=tracking, resumes=resumes, **keys)


def check_keys(prefix: str, found: Collection[object], known: Collection[str]) -> None:
    """Check that exactly the known keys are there, each a text.

    Raises:
        ConfigError: A key is unknown, missing or no text.
    """
    for key in found:
        if not isinstance(key, str):
            raise ConfigError(f"{prefix or 'the configuration'} has the key {_format(key)} {NO_TEXT}")
        if key not in known:
            raise ConfigError(describe_unknown_key(prefix, key, known))
    for key in known:
        if key not in found:
            raise ConfigError(f"{_join(prefix, key)} is missing")


def describe_unknown_key(prefix: str, key: str, known: Collection[str]) -> str:
    """Say that there is no such key, and which there are."""
    if not prefix:
        known = {*known, "experiment"}
    return describe_missing_key(prefix, key, {prefix or "the configuration": known})


def describe_missing_key(prefix: str, key: str, owners: Mapping[str, Collection[str]]) -> str:
    """Say that none of the owners has the key, and which keys each has."""
    known = {one for keys in owners.values() for one in keys}
    hint = suggest(key, known, _join(prefix, ""))
    listed = {owner: ", ".join(sorted(keys)) for owner, keys in owners.items()}
    have = [f"{owner} has {keys or 'no keys'}" for owner, keys in listed.items()]
    return f"unknown key {_join(prefix, key)}{hint}; {'; '.join(have)}"


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _check_fixed(overrides: Sequence[str]) -> None:
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
    return Choice(name, target, read_keys(group, dict.fromkeys(options, ANY), options))


def _build_data(group: str, name: str, config: Config) -> Choice:
    return Choice(name, options=read_keys(group, dict.fromkeys(FIXED[group], Text(filled=True)), config))


def _build_timer(name: str, config: Config) -> Choice:
    options = dict(config)
    code = _build_code("timer", name, {"_target_": options.pop("_target_", None)})
    options = read_keys("timer", TIMER, options)
    if options["max_samples"] < options["min_samples"]:
        raise ConfigError(
            f"timer.max_samples {options['max_samples']} is below timer.min_samples {options['min_samples']}"
        )
    return replace(code, options=options)


def _build_workload(name: str, config: Config, overrides: Sequence[str]) -> WorkloadSpec:
    file = config.get("slots")
    config, recorded = take_slots(config, overrides)
    check_keys("workload", config, columns_of(WorkloadSpec))
    sizes = {key: read(f"workload.{key}", column, config[key]) for key, column in columns_of(Sizes).items()}
    tokens = _read_num_tokens(config["num_tokens"])
    spec = WorkloadSpec(name=name, num_tokens=tokens, recorded=recorded, **sizes)
    if spec.num_blocks * spec.block_size > INT64:
        raise ConfigError(
            f"{spec.num_blocks} blocks of {spec.block_size} slots exceed the {INT64} slots "
            "that an int64 can number"
        )
    if recorded:
        check_range(recorded, spec.num_blocks * spec.block_size, str(file))
    return spec


def _read_num_tokens(value: Any) -> tuple[int, ...]:
    key = "workload.num_tokens"
    points = value if isinstance(value, list) else [value]
    if not points:
        raise ConfigError(f"{key} must name at least one number of tokens, not []")
    numbers = tuple(read(key, NUM_TOKENS, point) for point in points)
    for number in numbers:
        if numbers.count(number) > 1:
            raise ConfigError(f"{key} names {number} twice")
    return numbers


def _read_device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d{0,3}))?", value):
        return value
    raise ConfigError(f"device must be auto, cuda, cuda:N or cpu, not {_format(value)}")


def read_keys(prefix: str, declared: Mapping[str, Column], config: Config) -> dict[str, Any]:
    """Return the value of each declared key.

    Raises:
        ConfigError: A key is unknown, missing, of the wrong type or out of range.
    """
    check_keys(prefix, config, declared)
    return {key: read(f"{prefix}.{key}", column, config[key]) for key, column in declared.items()}


def read_tracking(config: Config) -> tuple[str | None, str, tuple[tuple[str, str], ...]]:
    """Return the store's address, the experiment's name and the tags.

    Raises:
        ConfigError: A key is unknown, missing or of the wrong type, or a tag is refused.
    """
    check_keys("tracking", config, (*TRACKING, "tags"))
    uri, experiment = (read(f"tracking.{key}", column, config[key]) for key, column in TRACKING.items())
    return uri, experiment, read_tags(config["tags"])


def read(key: str, declared: Column, value: Any) -> Any:
    """Return the value if it is what was declared, a whole number as a float where that was.

    Raises:
        ConfigError: It is something else.
    """
    if fault := declared.find_fault(value):
        raise ConfigError(f"{key} must be {fault}, not {_format(value)}")
    return float(value) if isinstance(declared, Real) and value is not None else value


def find_type(value: Any) -> Column:
    """Return what an own key of an option may be: of its value's type; anything for null, `???`, `${...}`."""
    match value:
        case bool():
            return Flag()
        case int():
            return Whole(least=-INT64, most=INT64)
        case float():
            return Real(least=-math.inf, most=math.inf)
        case str() if value != "???" and "${" not in value:
            return Text()
    return ANY


def _format(value: Any) -> str:
    """Format a value as it is typed, a text in quotes."""
    return repr(value) if isinstance(value, str) else json.dumps(value, default=str, skipkeys=True)
