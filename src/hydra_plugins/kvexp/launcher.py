"""Measure a sweep's jobs on this host (hydra/launcher=local)."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from kvexp.cli.sweep_task import SweepTask
    from kvexp.experiment import Experiment
    from kvexp.sweep.place import Place
    from kvexp.sweep.settings import Isolation


class LocalLauncher(Launcher):
    """Compose all jobs of a batch, and hand them to the task as one sweep.

    Its task is a SweepTask, which has methods for that. See `place.list_places` for the arguments.
    """

    def __init__(self, devices: object = None, workers: object = 1) -> None:
        self._devices = OmegaConf.to_object(devices) if isinstance(devices, ListConfig) else devices
        self._workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what jobs are composed with, and let the task prepare the sweep's folder."""
        self._loader: ConfigLoader = hydra_context.config_loader
        self._task = cast("SweepTask", task_function)
        self._config = config
        # Hydra's basic sweeper has it, and so ours. (Hydra imports plugins anew, so classes are no identity.)
        self._lists_product = hasattr(get_class(config.hydra.sweeper._target_), "split_arguments")
        self._task.begin(config, None if self._lists_product else self._compose)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Have the jobs measured; they are numbered from `initial_job_idx` on.

        Returns:
            One for each job in their order; of a product for each that is another than those before it.
        """
        from kvexp.cli.own_keys import compose_jobs  # here: any program that uses Hydra imports this file

        jobs = compose_jobs(job_overrides, initial_job_idx, self._compose, self._lists_product)
        return self._task.run(jobs, self.list_places)

    def list_places(
        self, experiments: Sequence["Experiment"], isolation: "Isolation", stack: ExitStack
    ) -> Sequence["Place"]:
        """List where the curves are measured; see `place.list_places`. The stack is left as it is."""
        from kvexp.sweep import place  # here, since what only prints or is wrong does without

        return place.list_places(self._devices, self._workers, experiments, isolation)

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        from kvexp.cli.alias_source import name_choices

        self._task.interrupt.check()
        config = self._loader.load_sweep_config(self._config, list(overrides))
        name_choices(config.hydra)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config
