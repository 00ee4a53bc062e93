"""How a specialisation is launched for a number of tokens: a pure function of sizes and the GPU."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from kvexp.errors import ConfigError, Unsupported
from kvexp.impl.cuda.spec import THREADS, Flash, HeadMajor, Options, Spec

SM_THREADS = 2048
"""The most that a multiprocessor holds, on most GPUs; fewer there only fill it sooner."""

FILLED = 3
"""How many times the threads must fill the GPU before they wait for their slots."""

MOST_THREADS = 2**32 - 1
"""Threads that a flat index of 32 bits counts."""

ALLOWED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "group_tokens": ((None, 1, 2, 4, 8, 16, 32), "a power of two from 1 to 32"),
    "cta_threads": ((None, *range(32, 1025, 32)), "a multiple of 32 up to 1024"),
}
"""What the options that are no truth values can be."""


def tuned(spec: Spec, options: Options, num_tokens: int, sm_count: int) -> Spec:
    """The specialisation with what suits so many tokens, or what the options say.

    Args:
        spec: What the tensors lead to.
        options: What the user fixed.
        num_tokens: At least one.
        sm_count: Multiprocessors of the GPU.

    Raises:
        Unsupported: The options pair heads of different sizes.
    """
    if isinstance(spec, HeadMajor):
        spec = replace(spec, group_tokens=options.group_tokens)
    elif options.paired and spec.head_size != spec.head_size_v:
        raise Unsupported(
            f"impl.paired=true needs heads of one size, not {spec.head_size} and {spec.head_size_v}"
        )
    spec = replace(spec, paired=options.paired)
    cta_threads = options.cta_threads or THREADS
    threads = spec.threads(num_tokens)
    slot_first = options.slot_first
    return replace(
        spec,
        cta_threads=cta_threads,
        slot_first=waits_for_slots(spec, threads, sm_count) if slot_first is None else slot_first,
        # Those of the last CTA that have nothing to do are counted, too.
        wide_index=threads + cta_threads > MOST_THREADS,
    )


def waits_for_slots(spec: Spec, threads: int, sm_count: int) -> bool:
    """Whether rows are read only when their slots are known, so that those of padding are not read at all.

    Every other row then waits for two memory accesses one after the other. Where the GPU is filled many times
    over, and each thread has two rows in flight, other threads hide that: it costs some 2 % and spares all of
    padding's time. With fewer threads it would cost up to 13 %, with one row a thread 10 %.
    """
    return isinstance(spec, Flash) and spec.both and threads >= FILLED * sm_count * SM_THREADS


def checked(options: Mapping[str, Any]) -> Options:
    """The options of these names and values.

    Raises:
        ConfigError: A name is not one of `Options`, or a value will not do.
    """
    names = [field.name for field in fields(Options)]
    for name, value in options.items():
        if name not in names:
            raise ConfigError(f"impl=cuda takes no option {name!r}; its options are {', '.join(names)}")
        allowed, words = ALLOWED.get(name, ((None, True, False), "true, false or null"))
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ConfigError(f"impl.{name} must be {words}, not {value!r}")
    return Options(**options)
