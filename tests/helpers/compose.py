"""Experiments composed from conf/, and the options of its groups: a new YAML is under test at once."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kvexp.case import Sizes
from kvexp.cli.groups import conf_dir
from kvexp.cli.options import resolve_layout
from kvexp.cli.schema import build_experiment
from kvexp.column import Word, columns_of
from kvexp.errors import Unsupported
from kvexp.experiment import Choice, Experiment
from kvexp.impl import make
from kvexp.op import Op

PEERS = ("flashinfer", "sglang", "torch_compile", "vllm", "vllm_triton")
"""Implementations of other projects, measured where they are installed."""

COPY_ENGINES = ("batch", "memcpy2d", "staged")
"""Implementations of a transfer alone, by a GPU's copy engines."""

EQUAL_COPY = "copy"
"""The option of `impl` that copies as many bytes and writes no cache."""


def options(group: str) -> list[str]:
    """The names of a group's options, without `layout=auto`, which stands for one of the others."""
    names = sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))
    return [name for name in names if (group, name) != ("layout", "auto")]


def implementations() -> list[str]:
    """Our own implementations of caches' writes, which hold the whole contract; a peer may not."""
    return [name for name in options("impl") if name not in (*PEERS, *COPY_ENGINES, EQUAL_COPY)]


def formats() -> list[str]:
    """The formats of caches of heads, each once."""
    return sorted(Op.formats)


@cache
def op_formats(op: str) -> tuple[str, ...]:
    """The formats of an op, the first of which it is tried with."""
    made: Op = make(choice("op", op))
    return made.formats


def all_formats() -> list[str]:
    """The formats that `kv_cache_dtype` resolves to, each once."""
    chosen = (choice("kv_cache_dtype", name) for name in options("kv_cache_dtype"))
    return sorted({str(one.options["format"]) for one in chosen})


@cache
def cache_writes() -> list[str]:
    """The ops that write heads as they are or over a scale that they read; others have own helpers."""
    return [op for op in all_cache_writes() if op_formats(op) == Op.formats]


@cache
def all_cache_writes() -> list[str]:
    """The ops that write rows of tokens to a cache."""
    return [op for op in options("op") if make(choice("op", op)).poses_clauses]


@cache
def layouts() -> list[str]:
    """The layouts of caches of heads."""
    return [name for name in options("layout") if make(choice("layout", name)).has_heads]


def sizes(op: str) -> dict[str, int]:
    """The sizes of a call that the op takes, where they are not those of workload=tiny."""
    return (
        {}
        if op not in all_cache_writes() or op in cache_writes()
        else dict(make(choice("op", op)).sample_sizes)
    )


def words(key: str) -> tuple[str, ...]:
    """The words that a key of a workload may be."""
    declared = columns_of(Sizes)[key]
    assert isinstance(declared, Word)
    return declared.words


@cache
def pairs() -> list[tuple[str, str]]:
    """List each of these ops with each of its layouts."""
    return [(op, layout) for op in cache_writes() for layout in options("layout") if takes(op, layout)]


@cache
def layout_of(op: str) -> str:
    """The layout that an op's YAML chooses."""
    return experiment(f"op={op}").layout.name


@cache  # Hydra takes a third of a second
def experiment(*overrides: str) -> Experiment:
    """Compose the experiment of these overrides, with an empty environment."""
    return build(*compose_config(*overrides), overrides)


def compose_config(*overrides: str) -> tuple[DictConfig, dict[str, Any]]:
    """Compose the values of these overrides without Hydra's own, and the option of each group."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    without_hydra = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    return OmegaConf.create(OmegaConf.to_container(without_hydra)), choices


def build(config: DictConfig, choices: dict[str, Any], words: Sequence[str]) -> Experiment:
    """Build the experiment of what was composed of these words."""
    values = OmegaConf.to_container(config, resolve=True)
    resolved, chosen, reason = resolve_layout(values, choices, [conf_dir()], {})
    return build_experiment(resolved, chosen, words, reason)


@cache
def choice(group: str, name: str) -> Choice:
    """One option of a group."""
    made: Choice = getattr(experiment(f"{group}={name}"), group)
    return made


@cache
def _tiny() -> Experiment:
    return experiment("workload=tiny", "impl=torch").resolve("cpu")


def takes(op: str, layout: str) -> bool:
    """Return whether the op is defined for the layout."""
    made = _tiny()
    workload = replace(made.workload, **sizes(op))
    kind = choice("kv_cache_dtype", op_formats(op)[0])
    made = replace(
        made, op=choice("op", op), layout=choice("layout", layout), kv_cache_dtype=kind, workload=workload
    )
    try:
        make(made.op).check(next(made.cases()), make(made.layout), 2)
    except Unsupported:
        return False
    return True


def by_turns(first: Iterable[Any], second: Iterable[Any], every: int) -> list[tuple[Any, Any]]:
    """Return pairs in which each of either list is there with one in `every` of the other, by turns."""
    pairs = product(enumerate(first), enumerate(second))
    return [(one, other) for (i, one), (j, other) in pairs if (i + j) % every == 0]
