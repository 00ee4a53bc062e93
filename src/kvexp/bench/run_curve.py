"""Measure one curve: make its parts once, then yield a measurement of each point, whatever happens.

lock the GPU -> make the parts -> ask about the contract -> allocate the curve's cache -> `run_point` for each
"""

import datetime
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from kvexp.bench import curve_setup, mode, run_point
from kvexp.bench.contract import UNASKED, Contract
from kvexp.bench.curve_setup import Curve, Unrolls
from kvexp.bench.describe_error import describe_error
from kvexp.bench.environment import read_uuid
from kvexp.bench.run_point import Seconds
from kvexp.case import Case
from kvexp.errors import ConfigError, IncorrectResult, KvexpError, Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu import persisting_l2, scan
from kvexp.gpu.lock import OnWait, gpu_lock
from kvexp.gpu.nvml import GpuMonitor
from kvexp.impl import Impl, make
from kvexp.layout import Layout
from kvexp.measurement import Measurement, Status
from kvexp.op import Op
from kvexp.timer import Timer
from kvexp.workload import device_memory

T = TypeVar("T")

AskContract = Callable[[], Contract]
"""Return what is known of the curve's implementation; ask it where nothing is."""


@dataclass(frozen=True)
class Parts:
    """What was chosen for a curve, as objects; see `Curve`."""

    source: torch.dtype
    timer: Timer
    impl: Impl
    op: Op
    layout: Layout
    persisting_bytes: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a point has no measurement; with the traceback of an error that was not raised on purpose."""

    status: Status
    reason: str
    traceback: str = ""


def run(
    experiment: Experiment,
    environment: dict[str, Any],
    on_wait: OnWait = lambda _: None,
    unrolls: Unrolls | None = None,
    ask_contract: AskContract = lambda: UNASKED,
) -> Iterator[Measurement]:
    """Yield one Measurement for each point of the curve, in order.

    Args:
        experiment: The curve, resolved for this process's device.
        environment: The machine's columns; they go into every row.
        on_wait: Called when another process measures on the GPU first.
        unrolls: The fastest copies that earlier curves of this process found; this one adds its own.
        ask_contract: Called once the implementation is made.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    cases = list(experiment.cases())
    with ExitStack() as stack:
        uuid = environment.get("device_uuid")
        machine = GpuMonitor(uuid)
        # Entered first, so that the turn ends last, when the memory is free.
        refusal = attempt(lambda: _hold_devices(experiment, cases[0], uuid, stack, on_wait))
        contract = UNASKED
        target = experiment.impl.target
        make_parts = functools.partial(_make_parts, experiment, cases)
        parts = attempt(make_parts, target) if refusal is None else refusal
        if isinstance(parts, Parts) and parts.op.poses_clauses and hasattr(parts.impl, parts.op.name):
            contract = ask_contract()
            needed = {"misaligned"} if cases[0].rows == "misaligned" else set()
            if breach := contract.breach(needed):
                parts = Failure("incorrect", breach)
        curve: Curve | Failure
        seconds = Seconds()
        with seconds.measure("curve_setup_s"):
            if isinstance(parts, Failure):
                curve = parts
            else:
                known = {} if unrolls is None else unrolls
                curve = attempt(functools.partial(_set_up_curve, parts, cases, stack, machine, known), target)
        for case in cases:
            started_at = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
            outcome = curve if isinstance(curve, Failure) else _measure_point(curve, case, target)
            if isinstance(outcome, Failure):
                outcome = Measurement(case, outcome.status, outcome.reason, traceback=outcome.traceback)
            yield replace(
                outcome,
                started_at=started_at,
                environment=environment,
                contract=contract.column(case.num_tokens),
                seconds={**seconds, **outcome.seconds},
            )
        # The stack frees the memory: nothing may hold it any more.
        del curve


def _hold_devices(
    experiment: Experiment, case: Case, uuid: str | None, stack: ExitStack, on_wait: OnWait
) -> None:
    """Hold the lock of each GPU that the curve uses until the stack closes.

    All sweeps lock them in one order, so that no two wait in a ring. `case` is any point of the curve, and
    `uuid` its device's identity, None for a CPU.
    """
    others = make(experiment.op).list_devices(case)[1:]
    for each in sorted(filter(None, {uuid, *map(read_uuid, others)})):
        stack.enter_context(gpu_lock(each, on_wait))


def attempt(work: Callable[[], T], target: str = "") -> T | Failure:
    """Return the work's result, or why there is none: the one place where errors become rows.

    The author of the implementation at the dotted path `target` reads where an error was raised.

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
        return Failure("failed", describe_error(error, target), "".join(traceback.format_exception(error)))


def _make_parts(experiment: Experiment, cases: Sequence[Case]) -> Parts:
    """Make what was chosen, and refuse what no point can do before anything is allocated."""
    largest = max(cases, key=lambda case: case.num_tokens)
    device = torch.device(largest.device)
    persisting_l2.end_set_aside(device)  # the driver's own, or that of an earlier curve
    parts = Parts(
        source=getattr(torch, str(experiment.dtype.options["torch_dtype"])),
        timer=make(experiment.timer, device=largest.device, mode=largest.mode),
        impl=make(experiment.impl, device=largest.device),
        op=make(experiment.op),
        layout=make(experiment.layout),
    )
    parts = replace(parts, persisting_bytes=persisting_l2.end_set_aside(device))
    parts.op.check(largest, parts.layout, parts.source.itemsize)
    mode.check_mode(largest.mode, largest.device)
    parts.timer.check()
    parts.op.count_places(min(cases, key=lambda case: case.num_tokens))  # refuses where it has none
    return parts


def _set_up_curve(
    parts: Parts, cases: Sequence[Case], stack: ExitStack, machine: GpuMonitor, unrolls: Unrolls
) -> Curve:
    """Allocate what the points of the curve share; on a GPU that times them, measure an empty kernel."""
    largest = max(cases, key=lambda case: case.num_tokens)
    gpu = largest.device != "cpu"
    if gpu:
        device = torch.device(largest.device)
        stack.enter_context(torch.cuda.device(device))
        stack.enter_context(torch.cuda.stream(_get_stream(device)))
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if gpu else None
    item_bytes = parts.source.itemsize
    cold = curve_setup.list_cold_windows(cases, parts.op, parts.timer, item_bytes, l2_bytes)
    memory = stack.enter_context(parts.op.allocate(largest, parts.layout, parts.source, cold))
    scan.poison(memory.storage)
    curve = Curve(
        op=parts.op,
        impl=parts.impl,
        layout=parts.layout,
        timer=parts.timer,
        memory=memory,
        item_bytes=item_bytes,
        l2_bytes=l2_bytes,
        flush_l2=curve_setup.make_flush(l2_bytes, largest.device) if l2_bytes else None,
        empty_kernel_us=None,
        machine=machine,
        persisting_bytes=parts.persisting_bytes,
        unrolls=unrolls,
    )
    stack.enter_context(curve.timer.open())
    if curve.untimed or not curve.timer.has_gpu_clock:
        return curve
    return replace(curve, empty_kernel_us=curve_setup.measure_empty_kernel(curve, largest))


@functools.cache
def _get_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream on which this process measures; capture needs another than the default stream."""
    return torch.cuda.Stream(device)


def _measure_point(curve: Curve, case: Case, target: str = "") -> Measurement | Failure:
    """Measure the point; the cache is all poison again, whatever happened."""
    measure = run_point.measure_point
    if not hasattr(curve.impl, curve.op.name):
        # The equal copy, which is no implementation, brings a way of its own. What writes the op cannot.
        measure = getattr(curve.impl, "measure_point", measure)
    outcome = attempt(lambda: measure(curve, case), target)
    if isinstance(outcome, Failure):
        attempt(lambda: scan.poison(curve.memory.storage))
        attempt(curve.memory.fill)
    if case.device != "cpu":
        attempt(device_memory.trim)
    return outcome
