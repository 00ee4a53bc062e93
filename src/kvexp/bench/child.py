"""Measure experiments in a process of its own: `python -m kvexp.bench.child` runs until its input closes.

It speaks JSON lines. It imports its libraries, is sent a device and perhaps the GPUs that it is to see, says
`ready`, with its device and environment, and ends if the machine lacks the device. Then, for each curve:

1. It is sent the experiment, the first time with those that will follow.
2. It says `curve`, with the hash of the implementation's sources and whether host load can affect the times,
   and is sent the `num_tokens` to measure.
3. While another process measures on the GPU it says `waiting`, with that holder, again each minute, and at
   the end with none.
4. While another process asks the implementation about the contract it says `asking` at each question, and
   `asked` at the end.
5. It says `point` for each `num_tokens` and waits for a line, so that the parent does nothing beside it.
6. It says `end`, and whether the process ends with that.
"""

import contextlib
import ctypes
import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from kvexp.bench.contract import UNASKED, Contract
from kvexp.bench.contract.ask import Asker
from kvexp.errors import ConfigError, KvexpError, Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu import lock
from kvexp.gpu.lock import OnWait
from kvexp.host.process import frozen_imports, send_answer, start_serving
from kvexp.measurement import Measurement

if TYPE_CHECKING:
    from kvexp.bench.curve_setup import Unrolls
    from kvexp.bench.run_curve import AskContract

CUDA_SUCCESS = 0
"""From cuda.h."""


def read_device(requested: str) -> tuple[str, dict[str, Any], str]:
    """Return the device that was meant, the machine's columns, and why it cannot be used, if so."""
    from kvexp.bench import environment

    try:
        device = environment.resolve_device(requested)
    except Unsupported as refusal:
        return requested, environment.read(None), str(refusal)
    if device == "cpu":
        # Before any kernel's module is imported: Triton reads it when it decorates.
        os.environ["TRITON_INTERPRET"] = "1"
    return device, environment.read(device), ""


def hash_impl(experiment: Experiment) -> str | None:
    """Return the hash of the implementation's sources; None where they cannot be read."""
    from kvexp.bench import impl_hash, run_curve

    # A package that cannot be imported fails the curve's points, not this.
    digest = run_curve.attempt(lambda: impl_hash.hash_impl(experiment.impl.target))
    return digest if isinstance(digest, str) else None


def is_host_sensitive(experiment: Experiment) -> bool:
    """Return whether host load can affect the curve's times; see `Timer`."""
    from kvexp.bench import run_curve
    from kvexp.impl import make

    own = {"device": experiment.device, "mode": experiment.mode.name}
    with contextlib.suppress(ConfigError):  # measuring raises it again
        return run_curve.attempt(lambda: make(experiment.timer, **own).is_host_sensitive) is not False
    return True


def ask_contract(experiment: Experiment, columns: dict[str, Any], asker: Asker) -> Contract:
    """Return what is known of the curve's implementation: nothing where it cannot be asked."""
    try:
        return asker.get_contract(experiment, columns)
    except KvexpError as error:
        # Such an implementation cannot be measured either, or measuring says more.
        print(f"the contract could not be asked: {error}", file=sys.stderr)  # noqa: T201
        return UNASKED


def measure_points(
    experiment: Experiment,
    num_tokens: list[int],
    columns: dict[str, Any],
    on_wait: OnWait,
    unrolls: "Unrolls | None" = None,
    ask_contract: "AskContract" = lambda: UNASKED,
) -> Iterator[Measurement]:
    """Yield those points of the curve, as each is measured; see `run_curve.run`."""
    from kvexp.bench import run_curve

    if num_tokens:
        workload = replace(experiment.workload, num_tokens=tuple(num_tokens))
        curve = replace(experiment, workload=workload)
        yield from run_curve.run(curve, columns, on_wait, unrolls, ask_contract)


def serve() -> None:
    """Answer every experiment on the standard input."""
    out = start_serving()
    reader = _DeviceReader()
    reader.start()
    with frozen_imports():
        # Imports torch, which takes seconds; the device may not be known before its end.
        from kvexp.bench import run_curve  # noqa: F401  # later imports of it are free
    reader.join()  # nothing may run beside what is timed
    if not reader.device:
        return
    device, columns, refusal = read_device(reader.device)
    send_answer(out, event="ready", device=device, environment=columns, refusal=refusal)
    if refusal:
        return
    unrolls: Unrolls = {}
    asker = Asker(on_answer=lambda: send_answer(out, event="asking"))
    for line in sys.stdin:
        experiment, *coming = map(Experiment.from_json, json.loads(line))
        # The first line has all curves to come; another process measures those of another device.
        asker.coming += [other.resolve(device) for other in coming if other.device == reader.device]
        _answer(out, experiment, columns, unrolls, asker)


class _DeviceReader(threading.Thread):
    """Reads the wanted device and makes a GPU's context, without Python's lock, while torch is imported."""

    device = ""  # the one that was asked for; empty when the parent is gone

    def run(self) -> None:
        """Read the device and make a GPU's primary context, unless a process of this host measures."""
        self.device, _, visible = sys.stdin.readline().strip().partition(" ")
        if visible:  # before CUDA is initialised, which reads it once
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        if self.device in ("", "cpu"):
            return
        with contextlib.suppress(OSError):  # no driver; torch reports other errors later
            cuda = ctypes.CDLL("libcuda.so.1")
            number, context = ctypes.c_int(), ctypes.c_void_p()
            index = int(self.device.partition(":")[2] or 0)
            known = cuda.cuInit(0) == cuda.cuDeviceGet(ctypes.byref(number), index) == CUDA_SUCCESS
            # A process that measures now would see this context as another user of its GPU.
            if known and not any(lock.list_holders()):
                cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), number)


def _answer(
    out: IO[str], experiment: Experiment, columns: dict[str, Any], unrolls: "Unrolls", asker: Asker
) -> None:
    digest = hash_impl(experiment)
    send_answer(out, event="curve", impl_hash=digest, is_host_sensitive=is_host_sensitive(experiment))
    request = json.loads(_read_line())
    num_tokens: list[int] = request["num_tokens"]
    asker.limit(request["timeout_s"])

    def on_wait(holder: str | None) -> None:
        send_answer(out, event="waiting", holder=holder)

    def ask() -> Contract:
        send_answer(out, event="asking")
        try:
            return ask_contract(experiment, columns, asker)
        finally:
            send_answer(out, event="asked")

    try:
        columns_of_rows, is_spent = {**columns, "impl_hash": digest}, False
        points = measure_points(experiment, num_tokens, columns_of_rows, on_wait, unrolls, ask)
        for count, measurement in enumerate(points, 1):
            point = {"row": measurement.row(), "samples_us": measurement.samples_us}
            send_answer(out, event="point", **point, traceback=measurement.traceback)
            _read_line()
            if measurement.status == "failed" and experiment.device != "cpu":
                _exit_if_cuda_is_unusable()
            is_spent |= (measurement.status, measurement.case.mode) == ("failed", "cudagraph")
            if is_spent and count == len(num_tokens):
                # After a failed capture torch may free no memory until the process ends (pytorch#180395,
                # #190348): the turn at the GPU ends with the process.
                send_answer(out, event="end", ends=True)
                os._exit(0)
    except ConfigError as error:
        send_answer(out, event="config_error", message=str(error))
    else:
        send_answer(out, event="end", ends=False)


def _read_line() -> str:
    """Return the parent's next line; end the process when the parent is gone."""
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    return line


def _exit_if_cuda_is_unusable() -> None:
    """End the process after a sticky CUDA error, with which each later call would fail."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"CUDA is unusable after: {error}", file=sys.stderr)  # noqa: T201  # the last words
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve()
