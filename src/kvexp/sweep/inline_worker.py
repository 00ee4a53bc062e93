"""Measure in the parent process, for a debugger: isolation=inline.

Only then does the parent import `kvexp.bench.child`, and with it torch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from kvexp.bench.contract import Contract
from kvexp.bench.contract.ask import Asker
from kvexp.errors import Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu.lock import OnWait
from kvexp.host.terminal import say
from kvexp.sweep.subprocess_worker import Point


class InlineWorker:
    """A worker without a process: breakpoints work, but a crash or a hang ends the whole sweep.

    The attributes and methods are those of `Worker`; there is no time limit.
    """

    alive = True
    left_behind = None

    def __init__(self, requested: str, waits: OnWait = lambda _: None) -> None:
        self.requested = requested
        self._waits = waits
        self.device = ""
        self.environment: dict[str, Any] = {}
        self.refusal = ""
        self._asker = Asker()
        self._shapes: dict[tuple[object, ...], int] = {}
        self.impl_hash: str | None = None
        self.traceback = ""
        self.is_host_sensitive = True
        self._experiment: Experiment | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a row besides its case and its outcome."""
        return {**self.environment, "impl_hash": self.impl_hash}

    def wait(self) -> None:
        """Find `device` and `environment`; raises Unsupported as `Worker.wait` does."""
        from kvexp.bench import child

        if not self.device:
            self.device, self.environment, self.refusal = child.read_device(self.requested)
        if self.refusal:
            raise Unsupported(self.refusal)

    def open(self, experiment: Experiment) -> None:
        """Take the curve to measure next, and find `impl_hash` and `is_host_sensitive`."""
        from kvexp.bench import child

        self._experiment, self.impl_hash = experiment, child.hash_impl(experiment)
        self.is_host_sensitive = child.is_host_sensitive(experiment)

    def measure(self, num_tokens: Sequence[int]) -> Iterator[Point]:
        """Yield those points of the opened curve; raises ConfigError as `Worker.measure` does."""
        from kvexp.bench import child

        assert self._experiment
        experiment = self._experiment

        def asks() -> Contract:
            return child.ask_contract(experiment, self.environment, self._asker)

        found = child.measure_points(
            experiment, list(num_tokens), self.columns, self._waits, self._shapes, asks
        )
        for measurement in found:
            if measurement.traceback not in ("", self.traceback):  # who debugs sees each at once
                say(measurement.traceback)
            self.traceback = measurement.traceback
            yield measurement.row(), measurement.samples_us
        self.traceback = ""

    def kill(self) -> None:
        """Do nothing: there is no process."""

    def close(self) -> None:
        """Do nothing: there is no process."""
