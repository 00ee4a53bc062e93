"""From argv to curves: Hydra composes every job, and nothing is measured before all of them are typed."""

import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from kvexp.bench.impl_hash import conf_dir
from kvexp.cli import WRONG, how, options, presets, resume, say, schema
from kvexp.cli.argv import CommandLine, ordered
from kvexp.cli.cleanup import forget
from kvexp.cli.hydra_errors import COMPOSING, sentence
from kvexp.errors import ConfigError, KvexpError
from kvexp.experiment import Experiment
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.row_file import ROWS, make_folder
from kvexp.sweep.prestart import Prestart
from kvexp.sweep.settings import SweepSettings
from kvexp.tracking import TrackingSettings, mask_passwords, settings

if TYPE_CHECKING:
    from kvexp.sweep.runner import Job

MANY = 10
"""Curves above which composing is announced: Hydra needs about 0.1 s for each, silently."""


class Curves:
    """The task that Hydra calls once per job: it measures nothing, it collects."""

    def __init__(self, line: CommandLine, resumes: bool = False) -> None:
        self.line = line
        self.resumes = resumes
        self.right: list[tuple[Experiment, Path, tuple[str, ...]]] = []
        self.wrong: list[tuple[str, str]] = []
        self.settings: set[SweepSettings] = set()

    def __call__(self, config: DictConfig) -> None:
        """The job's curve is among the right or the wrong ones."""
        job = HydraConfig.get()
        overrides = tuple(job.overrides.task)
        try:
            values = _values(config)
            presets.check(job.runtime)
            folders = [Path(source.path) for source in job.runtime.config_sources if source.schema == "file"]
            resolved = options.resolve(values, job.runtime.choices, folders, os.environ)
            experiment = schema.experiment(*resolved[:2], overrides, resolved[2])
            tracking = self._tracking(job.runtime.choices["tracking"], values["tracking"])
            self.settings.add(how.settings(values, tracking, self.resumes))
        except ConfigError as error:
            self.wrong.append((" ".join(overrides), str(error)))
        else:
            self.right.append((experiment, Path(job.runtime.output_dir), overrides))

    def check(self) -> None:
        """Returns when there is something to measure, and nothing wrong with any of it.

        Raises:
            ConfigError: A curve is wrong or there twice, there is none, its folder holds rows already, or
                they disagree about tracking.
        """
        if self.wrong:
            raise ConfigError(self._what_is_wrong())
        if not self.right:
            raise ConfigError("what was typed matches no option, so there is nothing to measure")
        if len(self.settings) > 1:
            raise ConfigError("the curves of a sweep are run and tracked in one way; choose one")
        self._check_twins()
        self._check_folders()

    def _check_twins(self) -> None:
        """Two curves that share a point would be one in every table, with that point there twice."""
        seen: dict[object, str] = {}
        for experiment, _, overrides in self.right:
            shown_overrides = " ".join(overrides)
            # The workload's name tells curves apart as well, though it is no part of a case's identity.
            points = [(case, case.workload) for case in experiment.cases()]
            twin = next((seen[point] for point in points if point in seen), None)
            if twin is not None:
                which = f"{twin} and {shown_overrides}" if twin != shown_overrides else twin
                raise ConfigError(f"the same curve is typed twice ({which}); keep one of them")
            seen.update(dict.fromkeys(points, shown_overrides))

    def _check_folders(self) -> None:
        """The rows of two curves, or of two sweeps, never share a file."""
        folders = Counter(folder for _, folder, _ in self.right)
        for folder, count in folders.items():
            if count > 1:
                raise ConfigError(
                    f"{count} curves would share {folder}; name hydra.job.num in hydra.sweep.subdir"
                )
            if (folder / ROWS).exists():
                raise ConfigError(_HOLDS_ROWS.format(folder))

    def _what_is_wrong(self) -> str:
        overrides, message = self.wrong[0]
        total = len(self.wrong) + len(self.right)
        if len(self.wrong) == total and len({text for _, text in self.wrong}) == 1:
            return message
        return f"{message} (in the curve {overrides}; wrong in {len(self.wrong)} of {total} curves)"

    def _tracking(self, option: str, config: Mapping[str, Any]) -> TrackingSettings:
        schema.check_keys("tracking", config, ("uri", "experiment"))
        uri = None if config["uri"] is None else schema.text("tracking.uri", config["uri"])
        was_typed = self.line.types("tracking.uri")
        return settings(
            kind=option,
            typed_uri=uri if was_typed else None,
            yaml_uri=None if was_typed else uri,
            experiment=schema.text("tracking.experiment", config["experiment"]),
            environ=os.environ,
        )


_working = ExitStack()
"""Holds the folder of the sweep that is composed and measured: Hydra writes there from the first job on."""
_HOLDS_ROWS = "{} holds the rows of another sweep; choose another hydra.sweep.dir"


class _Refused(BaseException):
    """Ends Hydra from within a callback, where it makes a warning of every Exception."""


class SweepStart(Callback):
    """What is said, checked and remembered before the first job is composed.

    Args:
        resumes: Whether rows in the sweep's folder are meant; new curves then have numbers of their own.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """The sweep's folder is there, with no rows unless it resumes; a long wait is announced.

        Hydra writes each job's configuration before its task is called: in a folder with rows it would
        replace the one that they were measured with.
        """
        HydraConfig.instance().set_config(config)
        try:
            folder = Path(config.hydra.sweep.dir)
        except COMPOSING as error:
            raise _Refused(sentence(error)) from error
        if not self.resumes and (any(folder.glob(ROWS)) or any(folder.glob(f"*/{ROWS}"))):
            raise _Refused(_HOLDS_ROWS.format(folder))
        try:
            make_folder(folder)
            _working.enter_context(sweep_folder.hold_for_sweep(folder))
        except KvexpError as error:
            raise _Refused(str(error)) from error
        count = _count(config)
        if count > MANY:
            say(f"composing {count} curves\n")


def composed(argv: Sequence[str]) -> list[Experiment]:
    """Return the curves of what was typed, checked as a sweep's are; nothing is measured, no file is left.

    Raises:
        ConfigError: Something typed is wrong, or a flag asks for something else than curves.
    """
    with _working:
        line = ordered(argv)
        curves = Curves(line)
        try:
            if _compose(line, curves) or not line.measures:
                raise ConfigError("only overrides, --config-dir and -m say what is to be verified")
            curves.check()
            return [experiment for experiment, *_ in curves.right]
        finally:
            if HydraConfig.initialized() and line.measures:
                _working.close()
                with suppress(*COMPOSING):  # it may be what cannot be composed
                    forget(Path(HydraConfig.get().sweep.dir).absolute())


def run(argv: Sequence[str], ahead: Prestart | None = None) -> int:
    """The exit code of composing and measuring what was typed; see `swept`."""
    return swept(argv, ahead=ahead)[0]


def swept(
    argv: Sequence[str],
    check: Callable[[Sequence["Job"]], None] = lambda jobs: None,
    ahead: Prestart | None = None,
) -> tuple[int, Path | None]:
    """The exit code of composing and measuring what was typed, and the sweep's folder.

    Args:
        argv: What was typed.
        check: Shown the jobs before the first is measured; a ConfigError of its own ends it there.
        ahead: What was started before.

    Returns:
        The code, and None for the folder where a flag only prints.

    Raises:
        ConfigError: Something typed is wrong; nothing was measured, and no file is left.
    """
    with _working:
        return _swept(argv, check, ahead)


def _swept(
    argv: Sequence[str], check: Callable[[Sequence["Job"]], None], ahead: Prestart | None
) -> tuple[int, Path | None]:
    typed_line = ordered(argv)
    line, resumed = resume.begun(typed_line)
    curves = Curves(line, resumed is not None)
    if resumed:  # before its curves get numbers
        _working.enter_context(sweep_folder.hold_for_sweep(resumed))
    try:
        code = _compose(resume.placed(line, resumed), curves)
        if code or not line.measures:
            return code, None
        curves.check()
        return _measure(curves, shlex.join(["python", "-m", "kvexp", *argv]), check, ahead)
    except ConfigError:
        if HydraConfig.initialized() and line.measures:
            _working.close()
            with suppress(*COMPOSING):  # it may be what cannot be composed
                forget(Path(HydraConfig.get().sweep.dir).absolute())
        raise


def _measure(
    curves: Curves, command: str, check: Callable[[Sequence["Job"]], None], ahead: Prestart | None
) -> tuple[int, Path | None]:
    from kvexp.sweep import runner  # here, since what only prints or is wrong does without
    from kvexp.sweep.repetitions import plan_rounds

    flags = [flag for flag in curves.line.flags if flag != "--multirun"]
    jobs = [
        runner.Job(experiment, folder, (*flags, *map(mask_passwords, overrides)))
        for experiment, folder, overrides in curves.right
    ]
    home = jobs[0].folder.parent
    (how_run,) = curves.settings
    jobs = plan_rounds(jobs, how_run.repeat)
    try:
        check(jobs)
        sweep_folder.write_command(home, curves.line.overrides, flags)
        return runner.run(jobs, how_run, mask_passwords(command), ahead), home
    finally:
        for job in jobs:
            # A curve whose points were all there already has only what Hydra wrote.
            if curves.resumes:
                forget(job.folder)


def _compose(line: CommandLine, curves: Curves) -> int:
    """0 when Hydra has composed or printed, WRONG when it has said itself what is wrong."""
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        with _hydra_raises(line.argv):
            main(curves)()
    except SystemExit as stop:  # Hydra ends some of its prints like this, a wrong --package too
        return WRONG if stop.code else 0
    except BrokenPipeError:  # the reader of what it prints has left
        return 0
    except _Refused as refusal:
        raise ConfigError(str(refusal)) from refusal.__cause__
    except COMPOSING as error:
        raise ConfigError(sentence(error)) from error
    return 0


@contextmanager
def _hydra_raises(argv: Sequence[str]) -> Iterator[None]:
    """Hydra reads this argv, and its errors reach us: it prints and exits unless told otherwise.

    It composes each job once: the rehearsal before that is for launchers which compose somewhere else.
    """
    typed_argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    rehearse = Sweeper.validate_batch_is_legal
    HydraConfig.instance().cfg = None
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [sys.argv[0], *argv], "1"
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        sys.argv = typed_argv
        Sweeper.validate_batch_is_legal = rehearse  # type: ignore[method-assign]
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _values(config: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except COMPOSING as error:
        raise ConfigError(sentence(error)) from error
    return cast(dict[str, Any], values)


def _count(config: DictConfig) -> int:
    """How many curves the sweep has; what is typed replaces a preset's values of the same key."""
    # Unresolved: a typed interpolation is one text among the overrides.
    hydra_config = cast(dict[str, Any], OmegaConf.to_container(config.hydra, resolve=False))
    swept = [f"{key}={value}" for key, value in (hydra_config["sweeper"]["params"] or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*swept, *hydra_config["overrides"]["task"]])
    by_key = {override.get_key_element(): override for override in overrides}
    return math.prod(
        len(list(override.sweep_iterator())) for override in by_key.values() if override.is_discrete_sweep()
    )
