"""Launch a specialisation: prepare once per number of tokens, then launch each call.

An op is a file of its name in this folder, beside its kernel. Its function `fit` takes the op's arguments and
`options=`, an `Options`, and returns a `Fitted`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from kvexp.errors import Unsupported
from kvexp.gpu import launch, nvrtc
from kvexp.gpu.launch import Launch
from kvexp.impl.cuda.options import Options

SOURCES = Path(__file__).parent
"""The folder of the kernels."""

THREADS = 128
"""Default threads of a CTA."""

SM_THREADS = 2048
"""Most threads of a multiprocessor, on most GPUs."""

MOST_THREADS = 2**32 - 1
"""Most threads for a flat index of 32 bits."""

MOST_CTAS = 2**31 - 1
"""CTAs of one row of a grid."""

PLANS = 4096
"""Numbers of tokens with a cached plan; a miss costs some microseconds, not a compilation."""

Macros = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that a launch depends on; `arch` is `sm_90` and the like."""

    index: int
    arch: str
    sm_count: int


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The compile-time constants of one specialisation of a kernel.

    It depends on the addresses only by their alignment, and on the number of tokens only by the width of the
    flat index and by tuning, so that many calls share it.

    Attributes:
        kernel: The kernel's name, and its source file's.
        num_addresses: Addresses that the kernel takes first.
        has_loop: Whether fewer threads than are needed can do it, so that multiprocessors can be left free.
        unroll: Chunks, or pairs of them, that a thread moves.
        cta_threads: Threads of a CTA.
        wide_index: Whether the flat index needs 64 bits.
    """

    kernel: ClassVar[str]
    num_addresses: ClassVar[int]
    has_loop: ClassVar[bool] = False
    unroll: int = 1
    cta_threads: int = THREADS
    wide_index: bool = False

    @property
    def macros(self) -> Macros:
        """The constants as macros of the source."""
        raise NotImplementedError

    def threads(self, num_tokens: int) -> int:
        """Return the threads that a call for so many tokens needs."""
        raise NotImplementedError

    def sizes(self, num_tokens: int) -> tuple[int, ...]:
        """Return the kernel's arguments between the addresses and those of `Fitted.sizes`."""
        raise NotImplementedError

    def tuned(self, options: Options, num_tokens: int, sm_count: int) -> Self:
        """Return the specialisation tuned for so many tokens; the user's options take precedence.

        Raises:
            Unsupported: The options do not suit the tensors.
        """
        raise NotImplementedError

    def adapt(self, launch_kernel: Launch) -> Launch:
        """Return a launch that takes the addresses of the op's tensors, from one that takes the kernel's."""
        return launch_kernel

    def with_ctas(self, options: Options, num_tokens: int) -> Self:
        """Return the specialisation with the threads of a CTA, and the flat index that a call then needs."""
        cta_threads = options.cta_threads or THREADS
        # This counts the idle threads of the last CTA, too.
        most = (self.threads(num_tokens) + cta_threads) * self.unroll
        return replace(self, cta_threads=cta_threads, wide_index=most > MOST_THREADS)


class Fitted(NamedTuple):
    """What a call's arguments lead to; nothing is launched for no tokens.

    `sizes` are the kernel's last arguments, 64-bit integers, for example the slots of the cache.
    """

    spec: Spec
    sizes: tuple[int, ...]
    num_tokens: int


class Launcher:
    """Launches one specialisation, for every call whose tensors lead to it.

    Their GPU must be the current one. The sizes are the kernel's last arguments.

    Attributes:
        plan: Takes a number of tokens. Compiles and loads the kernel and returns the grid's CTAs in x and y,
            the threads of a CTA, the kernel, and the arguments that follow the addresses.
        prepare: Takes a number of tokens, at least one. Returns a compiled and loaded launch: a function of
            the addresses of the op's tensors in its order, 0 for one that is not read.
    """

    def __init__(self, spec: Spec, options: Options, sizes: tuple[int, ...], gpu: Gpu) -> None:
        self.plan = functools.lru_cache(PLANS)(functools.partial(_make_plan, spec, options, sizes, gpu))
        self.prepare = functools.lru_cache(PLANS)(functools.partial(_prepare, self.plan, gpu.index, spec))


def compute_grid(threads: int, cta_threads: int) -> tuple[int, int]:
    """Return the CTAs in x and y, whole rows, for so many threads."""
    ctas = -(-threads // cta_threads)
    rows = -(-ctas // MOST_CTAS)
    return -(-ctas // rows), rows


Plan = tuple[tuple[int, int], int, Any, tuple[int, ...]]


def _prepare(plan: Callable[[int], Plan], device: int, spec: Spec, num_tokens: int) -> Launch:
    ctas, cta_threads, kernel, sizes = plan(num_tokens)
    function = launch.get_function(device, int(kernel.handle))
    return spec.adapt(launch.bind(device, function, ctas, cta_threads, sizes, spec.num_addresses))


def _make_plan(spec: Spec, options: Options, last: tuple[int, ...], gpu: Gpu, num_tokens: int) -> Plan:
    if options.sms and not spec.has_loop:
        raise Unsupported(f"impl.sms limits transfers, and {spec.kernel} takes all multiprocessors")
    tuned = spec.tuned(options, num_tokens, gpu.sm_count)
    kernel = nvrtc.load_kernel(SOURCES / f"{spec.kernel}.cu", spec.kernel, tuned.macros, gpu.arch)
    ctas = compute_grid(tuned.threads(num_tokens), tuned.cta_threads)
    return ctas, tuned.cta_threads, kernel, (*tuned.sizes(num_tokens), *last)
