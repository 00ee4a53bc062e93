"""Sweep over the Cartesian product of what was typed (hydra/sweeper=product)."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kvexp.errors import ConfigError

OURS = "hydra_plugins.kvexp."
"""Package of the launchers that measure."""


class ProductSweeper(BasicSweeper):
    """List the jobs as Hydra's basic sweeper does, and compose none of them beforehand.

    That is for launchers that compose in other processes. kvexp's composes all jobs before it measures one.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set the launcher up.

        Raises:
            ConfigError: It is not one of kvexp's.
        """
        if not str(config.hydra.launcher.get("_target_")).startswith(OURS):
            name = config.hydra.runtime.choices["hydra/launcher"]
            raise ConfigError(
                f"hydra/launcher={name} would run each curve by itself, and a sweep is measured as one; "
                "choose local or ray"
            )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: see the class."""
