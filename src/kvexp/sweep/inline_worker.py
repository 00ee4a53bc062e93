"""Who measures without a process of its own, for a debugger: isolation=inline.

The parent imports `kvexp.bench.child`, and with it torch, where it measures itself and nowhere else.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from kvexp.bench.contract import Contract
from kvexp.bench.contract.ask import Asker
from kvexp.errors import Unsupported
from kvexp.experiment import Experiment
from kvexp.gpu.lock import Waits
from kvexp.sweep.subprocess_worker import Point


class Inline:
    """A worker without a process: a breakpoint stops where it stands, and a crash or a hang ends everything.

    The attributes and methods are those of `Worker`; there is no time limit.
    """

    alive = True
    left_behind = None

    def __init__(self, requested: str, waits: Waits = lambda _: None) -> None:
        self.requested = requested
        self._waits = waits
        self.device = ""
        self.environment: dict[str, Any] = {}
        self.refusal = ""
        self._asker = Asker()
        self._shapes: dict[tuple[object, ...], int] = {}
        self.impl_hash: str | None = None
        self._experiment: Experiment | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What a row says besides its case and its outcome."""
        return {**self.environment, "impl_hash": self.impl_hash}

    def wait(self) -> None:
        """`device` and `environment` are known; raises Unsupported as `Worker.wait` does."""
        from kvexp.bench import child

        if not self.device:
            self.device, self.environment, self.refusal = child.read_device(self.requested)
        if self.refusal:
            raise Unsupported(self.refusal)

    def open(self, experiment: Experiment) -> None:
        """The curve is the one to measure, and `impl_hash` is known."""
        from kvexp.bench import child

        self._experiment, self.impl_hash = experiment, child.hash_impl(experiment)

    def points(self, num_tokens: Sequence[int]) -> Iterator[Point]:
        """Those points of the opened curve; raises ConfigError as `Worker.points` does."""
        from kvexp.bench import child

        assert self._experiment
        experiment = self._experiment

        def asks() -> Contract:
            return child.ask_contract(experiment, self.environment, self._asker)

        found = child.measure_points(
            experiment, list(num_tokens), self.columns, self._waits, self._shapes, asks
        )
        for measurement in found:
            yield measurement.row(), measurement.samples_us

    def end(self) -> None:
        """Nothing is left to end."""

    def close(self) -> None:
        """Nothing is left to end."""
