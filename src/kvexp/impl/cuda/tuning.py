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

PAIRED_UNROLL = 2
"""Pairs of a thread where that spares a second, half empty filling of the GPU."""

MOST_THREADS = 2**32 - 1
"""Threads that a flat index of 32 bits counts."""

ALLOWED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "group_tokens": ((None, 1, 2, 4, 8, 16, 32), "a power of two from 1 to 32"),
    "cta_threads": ((None, *range(32, 1025, 32)), "a multiple of 32 up to 1024"),
    "unroll": ((None, 1, 2, 4, 8), "a power of two up to 8"),
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
    spec = replace(spec, paired=options.paired)
    if isinstance(spec, HeadMajor):
        spec = _head_major(spec, options, num_tokens, sm_count)
    else:
        spec = _flash(spec, options, num_tokens, sm_count)
    cta_threads = options.cta_threads or THREADS
    # Threads of the last CTA that have nothing to do are counted, too.
    most = (spec.threads(num_tokens) + cta_threads) * spec.unroll
    return replace(spec, cta_threads=cta_threads, wide_index=most > MOST_THREADS)


def _flash(spec: Flash, options: Options, num_tokens: int, sm_count: int) -> Flash:
    if options.paired and spec.head_size != spec.head_size_v:
        raise Unsupported(
            f"impl.paired=true needs heads of one size, not {spec.head_size} and {spec.head_size_v}"
        )
    spec = replace(spec, unroll=options.unroll or fitting_unroll(spec, num_tokens, sm_count))
    slot_first = _asked(options.slot_first, waits_for_slots(spec, num_tokens, sm_count))
    return replace(spec, slot_first=slot_first)


def _head_major(spec: HeadMajor, options: Options, num_tokens: int, sm_count: int) -> HeadMajor:
    spec = replace(spec, group_tokens=options.group_tokens)
    exchange = _asked(options.exchange, exchanges(spec, num_tokens, sm_count))
    # A row that turns out to be another's would be read twice.
    return replace(spec, exchange=exchange, slot_first=_asked(options.slot_first, exchange))


def _asked(option: bool | None, otherwise: bool) -> bool:
    return otherwise if option is None else option


def fitting_unroll(spec: Flash, num_tokens: int, sm_count: int) -> int:
    """Pairs of K and V that a thread moves.

    More than fill the GPU once, and no more than fill it twice: then a thread takes two, and all of them are
    there at once, instead of a second filling that begins when the first is done. It takes 15 % less time.
    Where the GPU is filled more often than that, the L2 is what is waited for, and two cost some 2 %.
    """
    filled = sm_count * SM_THREADS
    pairs = spec.chunks(num_tokens)
    return PAIRED_UNROLL if spec.both and filled < pairs <= PAIRED_UNROLL * filled else 1


def waits_for_slots(spec: Flash, num_tokens: int, sm_count: int) -> bool:
    """Whether rows are read only when their slots are known, so that those of padding are not read at all.

    Every other row then waits for two memory accesses one after the other. Where the GPU is filled many times
    over, and each thread has two rows in flight, other threads hide that: it costs some 0.5 % and spares most
    of padding's time. With fewer threads it would cost up to 13 %, with one row a thread 10 %.
    """
    return spec.both and spec.threads(num_tokens) >= FILLED * sm_count * SM_THREADS


def exchanges(spec: HeadMajor, num_tokens: int, sm_count: int) -> bool:
    """Whether groups of tokens are cut where spans of a block end, and rows wait for that.

    Runs of slots that begin anywhere, as those of a batch of prompts do, take a third less time. It costs
    runs that begin with a span a few percent, and more where there are few threads. Converting to fp8 is
    itself what takes the time.
    """
    return spec.items.copied and spec.threads(num_tokens) >= sm_count * SM_THREADS


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
