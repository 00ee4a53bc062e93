"""Measure a sweep's jobs on this host (hydra/launcher=local)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from kvexp.cli.sweep_task import SweepTask


class LocalLauncher(Launcher):
    """Compose all jobs of a batch, and hand them to the task as one sweep.

    Its task is a SweepTask, which has methods for that.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what jobs are composed with, and let the task prepare the sweep's folder."""
        self._loader: ConfigLoader = hydra_context.config_loader
        self._task = cast("SweepTask", task_function)
        self._config = config
        self._task.begin(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Have the jobs measured; they are numbered from `initial_job_idx` on.

        Returns:
            One for each job, in their order.
        """
        numbered = enumerate(job_overrides, initial_job_idx)
        return self._task.run(self._compose(number, overrides) for number, overrides in numbered)

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config
