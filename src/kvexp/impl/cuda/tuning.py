"""Tune a specialisation for a number of tokens: pure functions of sizes and the GPU."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from kvexp.errors import ConfigError, Unsupported
from kvexp.impl.cuda.spec import THREADS, Flash, HeadMajor, Options, Spec

SM_THREADS = 2048
"""Most threads of a multiprocessor, on most GPUs."""

FILLED = 3
"""How many times the threads must fill the GPU before rows are read after their slots."""

PAIRED_UNROLL = 2
"""Pairs per thread where this saves a second, half empty wave of threads."""

MOST_THREADS = 2**32 - 1
"""Most threads for a flat index of 32 bits."""

ALLOWED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "group_tokens": ((None, 1, 2, 4, 8, 16, 32), "a power of two from 1 to 32"),
    "cta_threads": ((None, *range(32, 1025, 32)), "a multiple of 32 up to 1024"),
    "unroll": ((None, 1, 2, 4, 8), "a power of two up to 8"),
}
"""Valid values of the options that are not booleans, and their description."""


def tune(spec: Spec, options: Options, num_tokens: int, sm_count: int) -> Spec:
    """Return the specialisation tuned for so many tokens; options take precedence.

    Args:
        spec: The specialisation for the tensors.
        options: The user's options.
        num_tokens: At least one.
        sm_count: Multiprocessors of the GPU.

    Raises:
        Unsupported: The options pair heads of different sizes.
    """
    spec = replace(spec, paired=options.paired)
    if isinstance(spec, HeadMajor):
        spec = _head_major(spec, options, num_tokens, sm_count)
    else:
        spec = _flash(spec, options, num_tokens, sm_count)
    cta_threads = options.cta_threads or THREADS
    # This counts the idle threads of the last CTA, too.
    most = (spec.threads(num_tokens) + cta_threads) * spec.unroll
    return replace(spec, cta_threads=cta_threads, wide_index=most > MOST_THREADS)


def _flash(spec: Flash, options: Options, num_tokens: int, sm_count: int) -> Flash:
    if options.paired and spec.head_size != spec.head_size_v:
        raise Unsupported(
            f"impl.paired=true needs heads of one size, not {spec.head_size} and {spec.head_size_v}"
        )
    spec = replace(spec, unroll=options.unroll or choose_unroll(spec, num_tokens, sm_count))
    slot_first = _choose(options.slot_first, waits_for_slots(spec, num_tokens, sm_count))
    return replace(spec, slot_first=slot_first)


def _head_major(spec: HeadMajor, options: Options, num_tokens: int, sm_count: int) -> HeadMajor:
    spec = replace(spec, group_tokens=options.group_tokens)
    exchange = _choose(options.exchange, exchanges(spec, num_tokens, sm_count))
    # Otherwise the rows of exchanged tokens would be read twice.
    return replace(spec, exchange=exchange, slot_first=_choose(options.slot_first, exchange))


def _choose(option: bool | None, otherwise: bool) -> bool:
    """Return the option, or without one the tuned value."""
    return otherwise if option is None else option


def choose_unroll(spec: Flash, num_tokens: int, sm_count: int) -> int:
    """Return the pairs of chunks of K and V that a thread moves.

    If the pairs fill the GPU more than once and at most twice, a thread takes two: all threads then run at
    once, instead of in a second wave, in 15 % less time. With more waves the L2 is the bottleneck, and two
    pairs cost about 2 %.
    """
    filled = sm_count * SM_THREADS
    pairs = spec.chunks(num_tokens)
    return PAIRED_UNROLL if spec.both and filled < pairs <= PAIRED_UNROLL * filled else 1


def waits_for_slots(spec: Flash, num_tokens: int, sm_count: int) -> bool:
    """Return whether rows are read only after their slots, so that rows of padding are not read.

    Every other row then waits for two memory accesses in sequence. Where the GPU is filled many times and
    each thread has two rows in flight, other threads hide the latency: it costs about 0.5 % and saves most of
    the time for padding. With fewer threads it would cost up to 13 %, with one row per thread 10 %.
    """
    return spec.both and spec.threads(num_tokens) >= FILLED * sm_count * SM_THREADS


def exchanges(spec: HeadMajor, num_tokens: int, sm_count: int) -> bool:
    """Return whether groups of tokens are cut where spans of a block end, for which rows wait.

    Runs of slots that begin anywhere, as those of a batch of prompts, take a third less time. Runs that begin
    with a span take a few percent more, and yet more with few threads. Conversion to fp8 is not limited by
    the memory, so it gains nothing.
    """
    return spec.items.copied and spec.threads(num_tokens) >= sm_count * SM_THREADS


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
