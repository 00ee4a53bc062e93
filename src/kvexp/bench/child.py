"""The measuring process: `python -m kvexp.bench.child` answers experiments until its input closes.

It speaks JSON lines. It imports its libraries, is sent a device, says `ready`, with its device and
environment, and ends if the machine lacks the device. It is sent each experiment, the first with those that
will follow it; it says `curve`, with the hash of the implementation's sources, and waits for the `num_tokens`
to measure. When another process measures on the GPU it says `waiting` with the words for that one, and again
with none when the turn has come. While a process of its own asks the implementation about the contract, it
says `asking`, then `asked`. It says `point` for each `num_tokens` and waits for the parent's word to go on:
nothing that the parent does runs beside a measurement. Then it says `end`, and whether it ends with that.
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
from kvexp.measurement import Measurement
from kvexp.process import die_with_parent, frozen_imports

if TYPE_CHECKING:
    from kvexp.bench.curve_setup import Shapes
    from kvexp.bench.run_curve import Asks

CUDA_SUCCESS = 0
"""From cuda.h."""


def ready(requested: str) -> tuple[str, dict[str, Any], str]:
    """The device that was meant, the machine's columns, and why it cannot be used; empty when it can."""
    from kvexp.bench import environment

    try:
        device = environment.resolve_device(requested)
    except Unsupported as refusal:
        return requested, environment.read(None), str(refusal)
    if device == "cpu":
        # Before any kernel's module is imported: Triton reads it when it decorates.
        os.environ["TRITON_INTERPRET"] = "1"
    return device, environment.read(device), ""


def impl_hash(experiment: Experiment) -> str | None:
    """The hash of the implementation's sources; None where there are none to read."""
    from kvexp.bench import impl_hash as sources
    from kvexp.bench import run_curve

    # A package that cannot even be imported is an outcome of its points, not of this.
    found = run_curve.attempt(lambda: sources.impl_hash(experiment.impl.target))
    return found if isinstance(found, str) else None


def contract(experiment: Experiment, columns: dict[str, Any], asker: Asker) -> Contract:
    """Return what is known of the curve's implementation; where it cannot be asked, nothing is."""
    try:
        return asker.contract(experiment, columns)
    except KvexpError as error:
        # What cannot be asked cannot be measured either, or measuring says more.
        print(f"the contract could not be asked: {error}", file=sys.stderr)  # noqa: T201
        return UNASKED


def measured(
    experiment: Experiment,
    num_tokens: list[int],
    columns: dict[str, Any],
    waits: OnWait,
    shapes: "Shapes | None" = None,
    asks: "Asks" = lambda: UNASKED,
) -> Iterator[Measurement]:
    """Yield those points of the curve, as each is measured.

    Curves that share `shapes` try what copies are the fastest once. `asks` says what is known of the
    implementation's contract.

    Raises:
        ConfigError: The experiment is wrong whatever the machine.
    """
    from kvexp.bench import run_curve

    if num_tokens:
        workload = replace(experiment.workload, num_tokens=tuple(num_tokens))
        curve = replace(experiment, workload=workload)
        yield from run_curve.run(curve, columns, waits, shapes, asks)


def serve() -> None:
    """Every experiment on the standard input is answered."""
    die_with_parent()
    # What libraries print must not come between the lines of the protocol.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = _Asked()
    asked.start()
    with frozen_imports():
        # And with it torch, which takes seconds, in which the device may not be known yet.
        from kvexp.bench import run_curve  # noqa: F401  # what measures a curve imports it where it is asked for
    asked.join()  # what it does is not to be done beside what is timed
    if not asked.device:
        return
    device, columns, refusal = ready(asked.device)
    _say(out, event="ready", device=device, environment=columns, refusal=refusal)
    if refusal:
        return
    shapes: Shapes = {}
    asker = Asker()
    for line in sys.stdin:
        experiment, *coming = map(Experiment.from_json, json.loads(line))
        # The first line tells of all curves to come; those of another device are another process's.
        asker.coming += [other.resolve(device) for other in coming if other.device == asked.device]
        _answer(out, experiment, columns, shapes, asker)


class _Asked(threading.Thread):
    """Hears which device is wanted and makes a GPU's context, which takes no Python, while torch is imported.

    Attributes:
        device: What was asked for; empty when the parent is gone.
    """

    device = ""

    def run(self) -> None:
        """The device is known; a GPU has its primary context, unless a process of this host measures."""
        self.device = sys.stdin.readline().strip()
        if self.device in ("", "cpu"):
            return
        with contextlib.suppress(OSError):  # no driver; what else is wrong torch says later
            cuda = ctypes.CDLL("libcuda.so.1")
            number, context = ctypes.c_int(), ctypes.c_void_p()
            index = int(self.device.partition(":")[2] or 0)
            known = cuda.cuInit(0) == cuda.cuDeviceGet(ctypes.byref(number), index) == CUDA_SUCCESS
            # A process that measures would see a context that waits for its turn.
            if known and not any(lock.list_holders()):
                cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), number)


def _answer(
    out: IO[str], experiment: Experiment, columns: dict[str, Any], shapes: "Shapes", asker: Asker
) -> None:
    digest = impl_hash(experiment)
    _say(out, event="curve", impl_hash=digest)
    asked = json.loads(_heard())
    wanted: list[int] = asked["num_tokens"]
    asker.limit(asked["timeout_s"])

    def waits(holder: str | None) -> None:
        _say(out, event="waiting", holder=holder)

    def asks() -> Contract:
        _say(out, event="asking")
        try:
            return contract(experiment, columns, asker)
        finally:
            _say(out, event="asked")

    try:
        found, spent = {**columns, "impl_hash": digest}, False
        for tried, measurement in enumerate(measured(experiment, wanted, found, waits, shapes, asks), 1):
            _say(out, event="point", row=measurement.row(), samples_us=measurement.samples_us)
            _heard()
            if measurement.status == "failed" and experiment.device != "cpu":
                _end_if_poisoned()
            spent |= (measurement.status, measurement.case.mode) == ("failed", "cudagraph")
            if spent and tried == len(wanted):
                # Where a graph could not be captured, torch may give no memory back for as long as it runs
                # (pytorch#180395, #190348): the turn at the GPU ends with the process.
                _say(out, event="end", ends=True)
                os._exit(0)
    except ConfigError as error:
        _say(out, event="config_error", message=str(error))
    else:
        _say(out, event="end", ends=False)


def _heard() -> str:
    """The parent's next line; the process ends when the parent is gone: nobody is left to measure for."""
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    return line


def _end_if_poisoned() -> None:
    """A CUDA error that poisons the process ends it: each later call would fail with the first's error."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"CUDA is unusable after: {error}", file=sys.stderr)  # noqa: T201  # the last words
        sys.stderr.flush()
        os._exit(1)


def _say(out: IO[str], **answer: Any) -> None:
    out.write(json.dumps(answer, allow_nan=False) + "\n")
    out.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve()
