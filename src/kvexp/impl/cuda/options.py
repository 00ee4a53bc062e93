"""Check the options of impl=cuda, which all ops share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvexp.errors import ConfigError

ALLOWED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "group_tokens": ((None, 1, 2, 4, 8, 16, 32), "a power of two from 1 to 32"),
    "chunk_items": ((None, 1, 2, 4, 8, 16), "a power of two up to 16"),
    "cta_threads": ((None, *range(32, 1025, 32)), "a multiple of 32 up to 1024"),
    "unroll": ((None, 1, 2, 4, 8), "a power of two up to 8"),
    "sms": ((None, *range(1, 1025)), "a whole number from 1 to 1024"),
}
"""Valid values of the options that are not booleans, and their description."""


@dataclass(frozen=True)
class Options:
    """The kernels' options; None leaves the choice to `Spec.tuned`.

    Attributes:
        software_fp8: Convert to fp8 as GPUs before sm_89 must, on any GPU: the codes are the same.
        group_tokens: Tokens that neighbouring lanes take in a head-major cache, a power of two up to 32.
        chunk_items: Items of a chunk in a cache of contiguous heads, a power of two up to 16.
        cta_threads: Threads of a CTA, a multiple of 32 up to 1024.
        slot_first: Whether a row is read only after its slot: this saves the rows of padding, lets
            `exchange` fill sectors, and makes every other row wait.
        paired: Whether a thread moves a chunk of K and the same chunk of V, not one of either; needs equal
            head sizes.
        unroll: Chunks that a thread moves in a cache of contiguous heads, or rows that its lanes convert
            where a row makes scales of its own, a power of two up to 8.
        exchange: Whether groups of tokens are cut where spans of a head-major cache's block end, which fills
            sectors wherever a run of slots begins.
        sms: Multiprocessors that a transfer may use, by so many CTAs of 1024 threads that copy in turns.
    """

    software_fp8: bool = False
    group_tokens: int | None = None
    chunk_items: int | None = None
    cta_threads: int | None = None
    slot_first: bool | None = None
    paired: bool | None = None
    unroll: int | None = None
    exchange: bool | None = None
    sms: int | None = None


def parse_options(options: Mapping[str, Any]) -> Options:
    """Return the options of these names and values.

    Raises:
        ConfigError: A name is not one of `Options`, or a value is invalid.
    """
    names = [field.name for field in fields(Options)]
    for name, value in options.items():
        if name not in names:
            raise ConfigError(f"impl=cuda takes no option {name!r}; its options are {', '.join(names)}")
        allowed, words = ALLOWED.get(name, ((None, True, False), "true, false or null"))
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ConfigError(f"impl.{name} must be {words}, not {value!r}")
    return Options(**options)


def choose(option: bool | None, otherwise: bool) -> bool:
    """Return the option, or without one the tuned value."""
    return otherwise if option is None else option
