"""Run one curve: make its parts once, and return a measurement of each of its points, whatever happens.

lock the GPU -> ask about the contract -> allocate the curve's cache -> `run_point` for each num_tokens
"""

import datetime
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from kvexp import timer
from kvexp.bench import curve_setup as curves
from kvexp.bench import equal_copy, mode, run_point
from kvexp.bench.contract import UNASKED, Contract
from kvexp.bench.curve_setup import Curve
from kvexp.bench.run_point import Seconds
from kvexp.bench.verify import poison
from kvexp.case import Case
from kvexp.errors import ConfigError, IncorrectResult, KvexpError, Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu.cupti import record
from kvexp.gpu.lock import OnWait, gpu_lock
from kvexp.gpu.nvml import GpuMonitor
from kvexp.impl import Impl, make
from kvexp.layout import Layout
from kvexp.measurement import Measurement, Status
from kvexp.op import Op
from kvexp.timer import Rule
from kvexp.workload import allocate, device_memory, slots

T = TypeVar("T")


Asks = Callable[[], Contract]


@dataclass(frozen=True)
class Parts:
    """What was chosen for a curve, as objects; see `Curve`."""

    source: torch.dtype
    l2_state: curves.L2State
    rule: Rule
    impl: Impl
    op: Op
    layout: Layout


@dataclass(frozen=True)
class Failure:
    """Why there is nothing to measure."""

    status: Status
    reason: str


def run(
    experiment: Experiment,
    environment: dict[str, Any],
    waits: OnWait = lambda _: None,
    shapes: curves.Shapes | None = None,
    asks: Asks = lambda: UNASKED,
) -> Iterator[Measurement]:
    """Yield one Measurement for each point of the curve, in order.

    Args:
        experiment: The curve, resolved for this process's device.
        environment: The machine's columns; they go into every row.
        waits: Told when another process measures on the GPU first.
        shapes: What earlier curves of this process found of copies, and this one adds to.
        asks: Says what is known of the implementation's contract, or has it asked.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    cases = list(experiment.cases())
    with ExitStack() as stack:
        uuid = environment.get("device_uuid")
        machine = GpuMonitor(uuid)
        # The first to be entered is the last to be left: the turn ends when the memory is free.
        refusal = attempt(lambda: stack.enter_context(gpu_lock(uuid, waits)))
        contract = UNASKED
        parts = attempt(functools.partial(_choose, experiment, cases)) if refusal is None else refusal
        if isinstance(parts, Parts) and hasattr(parts.impl, parts.op.name):
            contract = asks()
            parts = attempt(functools.partial(_kept, parts, contract, cases))
        opening = Seconds()
        with opening.of("curve_setup_s"):
            known = {} if shapes is None else shapes
            curve: Curve | Failure = (
                parts
                if isinstance(parts, Failure)
                else attempt(functools.partial(_open, parts, cases, stack, machine, known))
            )
            if isinstance(curve, Curve):
                curve = attempt(functools.partial(_floored, curve, cases))
        for case in cases:
            started_at = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
            outcome = curve if isinstance(curve, Failure) else _tried(curve, case)
            if isinstance(outcome, Failure):
                outcome = Measurement(case, outcome.status, outcome.reason)
            yield replace(
                outcome,
                started_at=started_at,
                environment=environment,
                contract=contract.column(case.num_tokens),
                seconds={**opening, **outcome.seconds},
            )
        # The stack gives the memory back, which nobody may hold any more.
        del curve


def attempt(work: Callable[[], T]) -> T | Failure:
    """The work's result, or why there is none: the one place where errors become rows.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    try:
        return work()
    except ConfigError:
        raise
    except Unsupported as refusal:
        return Failure("skipped", str(refusal))
    except IncorrectResult as difference:
        return Failure("incorrect", str(difference))
    except KvexpError as error:
        return Failure("failed", str(error))
    except Exception as error:  # noqa: BLE001  # whatever a kernel or a driver raises is this point's outcome
        return Failure("failed", f"{type(error).__name__}: {error}")


def _choose(experiment: Experiment, cases: Sequence[Case]) -> Parts:
    """Make what was chosen; what is refused for all points is refused here, before anything is allocated."""
    largest = max(cases, key=lambda case: case.num_tokens)
    options = dict(experiment.timer.options)
    parts = Parts(
        source=getattr(torch, str(experiment.dtype.options["torch_dtype"])),
        l2_state=curves.L2State(str(options.pop("cache")), str(options.pop("inputs"))),
        rule=Rule.from_options(options),
        impl=make(experiment.impl, device=largest.device),
        op=make(experiment.op),
        layout=make(experiment.layout),
    )
    parts.op.check(largest, parts.layout, parts.source.itemsize)
    mode.check_mode(largest.mode, largest.device)
    timer.check_timer(largest.timer, largest.device)
    slots.check(min(cases, key=lambda case: case.num_tokens))
    return parts


def _kept(parts: Parts, contract: Contract, cases: Sequence[Case]) -> Parts:
    """Return the parts where the implementation keeps all of the contract that engines, and the curve, need.

    Raises:
        IncorrectResult: It does not.
    """
    needed = {"misaligned"} if cases[0].rows == "misaligned" else set()
    if breach := contract.breach(needed):
        raise IncorrectResult(breach)
    return parts


def _open(
    parts: Parts, cases: Sequence[Case], stack: ExitStack, machine: GpuMonitor, shapes: curves.Shapes
) -> Curve:
    """Allocate what the points of the curve share."""
    largest = max(cases, key=lambda case: case.num_tokens)
    gpu = largest.device != "cpu"
    if gpu:
        device = torch.device(largest.device)
        stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.cuda.stream(_stream(device)))
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if gpu else None
    item_bytes = parts.source.itemsize
    rows = curves.least_rows(cases, parts.op, item_bytes, l2_bytes, parts.l2_state)
    memory = stack.enter_context(allocate(largest, parts.layout, parts.source, rows))
    poison(memory.cache)
    return Curve(
        op=parts.op,
        impl=parts.impl,
        memory=memory,
        rule=parts.rule,
        l2_state=parts.l2_state,
        item_bytes=item_bytes,
        l2_bytes=l2_bytes,
        evict=curves.sweep(l2_bytes, largest.device) if l2_bytes else None,
        empty_kernel_us=None,
        machine=machine,
        records=stack.enter_context(record()) if largest.timer == "cupti" else None,
        shapes=shapes,
    )


def _floored(curve: Curve, cases: Sequence[Case]) -> Curve:
    """The curve with the time of an empty kernel, where there is one."""
    largest = max(cases, key=lambda case: case.num_tokens)
    if not curves.timed(curve, largest) or largest.timer not in timer.GPU_CLOCKS:
        return curve
    return replace(curve, empty_kernel_us=curves.empty_kernel_us(curve, largest))


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of this process that measures; capture wants another than the default one."""
    return torch.cuda.Stream(device)


def _tried(curve: Curve, case: Case) -> Measurement | Failure:
    """The point's measurement; the cache is all poison again, whatever happened."""
    measure = run_point.copied if isinstance(curve.impl, equal_copy.Copy) else run_point.measured
    outcome = attempt(lambda: measure(curve, case))
    if isinstance(outcome, Failure):
        attempt(lambda: poison(curve.memory.cache))
        attempt(curve.memory.fill)
    if case.device != "cpu":
        attempt(device_memory.trim)
    return outcome
