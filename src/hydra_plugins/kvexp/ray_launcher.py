"""Measure a sweep's jobs on the GPUs, or CPUs, of a Ray cluster (hydra/launcher=ray)."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from hydra_plugins.kvexp.launcher import LocalLauncher

if TYPE_CHECKING:
    from kvexp.experiment import Experiment
    from kvexp.sweep.place import Place
    from kvexp.sweep.settings import Isolation


class RayLauncher(LocalLauncher):
    """Compose as on one host, and measure on a cluster.

    See `kvexp.sweep.ray_cluster.places` for the arguments.
    """

    def __init__(self, address: object = None, workers: object = None) -> None:
        super().__init__(workers=workers)
        self._address = address

    def list_places(
        self, experiments: Sequence["Experiment"], isolation: "Isolation", stack: ExitStack
    ) -> Sequence["Place"]:
        """List where the curves are measured; the stack ends the cluster that is started for them."""
        from kvexp.sweep.ray_cluster import places  # here, since what only prints or is wrong does without

        return places.list_places(self._address, self._workers, experiments, isolation, stack)
