"""The task that Hydra is given: kvexp's launcher hands it the composed jobs of a sweep."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, read_write

from kvexp.cli import own_keys, say
from kvexp.cli.argv import MOST_CURVES, count_values
from kvexp.cli.choices import list_swept
from kvexp.cli.cleanup import list_existing, remove_unused_folder
from kvexp.cli.collector import HOLDS_ROWS, Collector
from kvexp.errors import ConfigError, KvexpError
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.row_file import ROWS, make_folder
from kvexp.sweep.objective import Objective
from kvexp.sweep.signals import DeferredInterrupt

if TYPE_CHECKING:
    from kvexp.experiment import Experiment
    from kvexp.sweep.place import Place
    from kvexp.sweep.settings import Isolation

MANY = 10
"""Curves above which composing is announced: Hydra needs about 0.1 s for each, silently."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The variable that lets Hydra's errors pass: by default it prints them and exits."""

ListPlaces = Callable[[Sequence["Experiment"], "Isolation", ExitStack], Sequence["Place"]]
"""Lists where curves are measured, given `isolation`, and raises ConfigError where they cannot be.

What it starts for that ends with the stack."""


class SweepTask:
    """Prepare a sweep's folder, collect its curves, and have them measured while the folder is held.

    Args:
        collector: Takes each job.
        measure: Called with each batch of curves, when all of them are valid.

    Attributes:
        interrupt: Ctrl-C, which waits while Hydra composes a curve.
    """

    def __init__(self, collector: Collector, measure: Callable[[ListPlaces], Sequence[float]]) -> None:
        self._collector = collector
        self._measure = measure
        self._locks = ExitStack()
        self._folder: Path | None = None
        self._existing: frozenset[Path] = frozenset()
        self._typed_full_error = os.environ.get(FULL_ERROR)
        self.interrupt = DeferredInterrupt()

    def __enter__(self) -> Self:
        """Hold nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the folder up."""
        self._locks.close()

    def __call__(self, config: DictConfig) -> None:
        """Refuse a launcher that calls its task with one job after another: kvexp's call `run`.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a sweep is measured as one; choose hydra/launcher=local and hydra/sweeper=product")

    def hold(self, folder: Path) -> None:
        """Hold the folder of a sweep.

        Raises:
            ConfigError: Another process does.
        """
        self._locks.enter_context(sweep_folder.hold_for_sweep(folder))

    def begin(self, config: DictConfig, compose: own_keys.Compose | None = None) -> None:
        """Make and hold the sweep's folder before the first job is composed, and announce a long composition.

        Hydra writes there before a job is measured, and jobs get numbers.

        Args:
            config: Hydra's, without the overrides of any job.
            compose: Where the sweeper optimises: composes what was typed beside the choices that it makes.

        Raises:
            ConfigError: The folder has the rows of another sweep or cannot be used, jobs are too many, or the
                sweeper would optimise the wrong way.
        """
        with read_write(config):  # Hydra's sweeper reads them after this
            config.hydra.overrides.task.extend(own_keys.list_own(self._collector.line))
        HydraConfig.instance().set_config(config)
        folder = Path(config.hydra.sweep.dir)
        overrides = _list_overrides(config)
        self._collector.swept = list_swept(overrides)
        count = 0 if compose else _count_jobs(overrides)
        if compose and self._collector.resumes:
            raise ConfigError("resume is refused beside a sweeper that optimises: it begins anew each time")
        try:
            self._existing = list_existing(folder.absolute())
            self._folder = folder.absolute()
            if not self._collector.resumes and (any(folder.glob(ROWS)) or any(folder.glob(f"*/{ROWS}"))):
                raise ConfigError(HOLDS_ROWS.format(folder))
            sweep_folder.check_links(folder, is_new=not self._collector.resumes)
            make_folder(folder)
            self.hold(folder)
        except KvexpError as error:
            raise ConfigError(str(error)) from error
        except OSError as error:  # a name that is too long
            raise ConfigError(f"{folder} cannot be used ({error.strerror})") from error
        except RecursionError as error:
            raise ConfigError(f"{folder} cannot be used (too many folders in one another)") from error
        if count > MANY:
            say(f"composing {count} curves\n")
        if compose:
            own_keys.check_space(overrides, compose)
            fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
            (default,) = own_keys.compose_jobs([fixed], 0, compose)
            HydraConfig.instance().set_config(default)
            self._collector.set_default(_drop_hydra(default))
            _check_direction(config, self._collector.objective)

    def run(self, configs: Iterable[DictConfig], list_places: "ListPlaces") -> list[JobReturn]:
        """Collect a batch of jobs, check it, and have it measured at the places that are listed for it.

        Returns:
            One for each job, with the number that a sweeper which optimises is told.

        Raises:
            ConfigError: One is wrong, or all of them are as one sweep.
            Ended: Measuring raised.
        """
        self._collector.begin_batch()
        jobs = [self._collect(config) for config in configs]
        self._collector.check()
        self.interrupt.check()
        try:
            with self.interrupt.lift(), set_variable(FULL_ERROR, self._typed_full_error):
                values = iter(self._measure(list_places))
        except BaseException as error:
            raise Ended(error) from error
        worst = self._collector.objective.worst
        for job, is_valid in jobs:
            job.return_value = next(values) if is_valid else worst
        return [job for job, _ in jobs]

    def remove_folder(self) -> None:
        """Remove the sweep's folder where this command has made it and nothing was measured."""
        self._locks.close()
        if self._folder and self._existing:
            with suppress(OSError):
                remove_unused_folder(self._folder, self._existing)

    def _collect(self, config: DictConfig) -> tuple[JobReturn, bool]:
        HydraConfig.instance().set_config(config)
        own = _drop_hydra(config)
        is_valid = self._collector.add(own)
        overrides = cast(list[str], OmegaConf.to_container(config.hydra.overrides.task))
        return JobReturn(overrides=overrides, cfg=own, status=JobStatus.COMPLETED), is_valid


class Ended(BaseException):
    """Carry an error of measuring through Hydra, where errors of composing are explained.

    Attributes:
        error: What was raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


@contextmanager
def set_variable(name: str, value: str | None) -> Iterator[None]:
    """Set a variable of the environment, or unset it where the value is None; put it back in the end."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _drop_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, cast(list[str], [key for key in config if key != "hydra"]))


def _list_overrides(config: DictConfig) -> list[Override]:
    """List the overrides of a sweep; what is typed replaces a preset's values of the same key."""
    # Unresolved: a typed interpolation is one text among the overrides.
    hydra_config = cast(dict[str, Any], OmegaConf.to_container(config.hydra, resolve=False))
    swept = [f"{key}={value}" for key, value in (hydra_config["sweeper"].get("params") or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*swept, *hydra_config["overrides"]["task"]])
    return list({override.get_key_element(): override for override in overrides}.values())


def _count_jobs(overrides: Sequence[Override]) -> int:
    """Count the jobs of the product.

    Raises:
        ConfigError: They are too many.
    """
    count = math.prod(map(count_values, filter(Override.is_discrete_sweep, overrides)))
    if count > MOST_CURVES:
        raise ConfigError(f"{count:,} curves were typed, and a sweep has at most {MOST_CURVES:,}")
    return count


def _check_direction(config: DictConfig, objective: Objective) -> None:
    """Refuse a sweeper that says which way it optimises, and would look for the slowest curve.

    Raises:
        ConfigError: It would.
    """
    direction = str(config.hydra.sweeper.get("direction") or "").rpartition(".")[2]
    right = "maximize" if objective.grows else "minimize"
    if direction in ("minimize", "maximize") and direction != right:
        raise ConfigError(
            f"objective={objective} is best where it is {'largest' if objective.grows else 'smallest'}; "
            f"type hydra.sweeper.direction={right} beside it"
        )
