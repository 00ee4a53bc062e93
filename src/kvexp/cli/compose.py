"""Run a sweep from argv: Hydra composes every job, all of them are checked, then the first is measured."""

import errno
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from kvexp.bench.impl_hash import conf_dir
from kvexp.cli import BAD_INPUT, resume, say
from kvexp.cli.argv import MOST_CURVES, CommandLine, count_values, mask_override, parse_command_line
from kvexp.cli.cleanup import list_existing, remove_unused_folder
from kvexp.cli.collector import HOLDS_ROWS, Collector
from kvexp.cli.hydra_errors import COMPOSE_ERRORS, explain
from kvexp.errors import ConfigError, KvexpError
from kvexp.experiment import Experiment
from kvexp.host import terminal
from kvexp.host.addresses import mask_secrets
from kvexp.results import sweep_dir as sweep_folder
from kvexp.results.row_file import ROWS, make_folder
from kvexp.sweep.prestart import Prestart

if TYPE_CHECKING:
    from kvexp.sweep.runner import Job

    Check = Callable[[Sequence[Job]], None]

MANY = 10
"""Curves above which composing is announced: Hydra needs about 0.1 s for each, silently."""

_locks = ExitStack()
"""Holds the sweep's folder while it is composed and measured: Hydra writes there from the first job on."""

_existing: set[Path] = set()
"""Files and folders from before the command, which must stay; empty until it has looked."""


def run_sweep(
    argv: Sequence[str], check: "Check" = lambda jobs: None, prestarted: Prestart | None = None
) -> tuple[int, Path | None]:
    """Compose and measure what was typed; return the exit code and the sweep's folder, if there is one.

    `check` is called with the jobs before the first is measured, and may raise ConfigError.

    Raises:
        ConfigError: Something typed is wrong; nothing was measured, and no file is left.
    """
    line, resumed = resume.read_resume(parse_command_line(argv))
    collector = Collector(line, resumed is not None)
    with _locks:
        if resumed:  # before its curves get numbers
            _locks.enter_context(sweep_folder.hold_for_sweep(resumed))
        try:
            code = _compose(resume.place_curves(line, resumed), collector)
            if code or not line.measures:
                return code, None
            collector.check()
            words = (mask_secrets(mask_override(word)) for word in argv)
            return _measure(collector, shlex.join(["python", "-m", "kvexp", *words]), check, prestarted)
        except ConfigError:
            _remove_hydra_folder(line)
            raise


def compose_experiments(argv: Sequence[str]) -> list[Experiment]:
    """Compose and check the curves of what was typed; measure nothing and leave no file.

    Raises:
        ConfigError: Something typed is wrong, or a flag asks for something else than curves.
    """
    line = parse_command_line(argv)
    collector = Collector(line)
    with _locks:
        try:
            if _compose(line, collector) or not line.measures:
                raise ConfigError("only overrides, --config-dir and -m say what is to be verified")
            collector.check()
            return [experiment for experiment, *_ in collector.valid]
        finally:
            _remove_hydra_folder(line)


def _compose(line: CommandLine, collector: Collector) -> int:
    """Let Hydra compose or print; return 0, or BAD_INPUT where Hydra itself has said what is wrong."""
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        with _patch_hydra(line.argv):
            main(collector)()
    except SystemExit as stop:  # Hydra ends some of its prints like this, a wrong --package too
        return BAD_INPUT if stop.code else 0
    except BrokenPipeError:  # the reader of what it prints has left
        return 0
    except KeyboardInterrupt:
        terminal.say("kvexp: interrupted before anything was measured")
        _remove_hydra_folder(line)
        raise
    except _Refusal as refusal:
        raise ConfigError(str(refusal)) from refusal.__cause__
    except COMPOSE_ERRORS as error:
        if not line.measures and isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # what it prints cannot be written
        raise ConfigError(explain(error)) from error
    return 0


def _measure(
    collector: Collector, command: str, check: "Check", prestarted: Prestart | None
) -> tuple[int, Path | None]:
    from kvexp.sweep import runner  # here, since what only prints or is wrong does without
    from kvexp.sweep.repetitions import plan_rounds

    flags = [flag for flag in collector.line.flags if flag != "--multirun"]
    jobs = [
        runner.Job(experiment, folder, (*flags, *map(mask_secrets, overrides)))
        for experiment, folder, overrides in collector.valid
    ]
    home = jobs[0].folder.parent
    (settings,) = collector.settings
    collector.write_records()
    jobs = plan_rounds(jobs, settings.repeat)
    try:
        check(jobs)
        kept = collector.resolve_overrides()
        sweep_folder.write_command(home, kept, flags)
        again = resume.write_resume(collector.line, home, kept)
        return runner.run(jobs, settings, mask_secrets(command), prestarted, again), home
    finally:
        for job in jobs:
            # A curve whose points were all there already has only what Hydra wrote.
            if collector.resumes:
                remove_unused_folder(job.folder, {home})


def _remove_hydra_folder(line: CommandLine) -> None:
    """Remove the sweep's folder where Hydra has made it and nothing was measured."""
    if HydraConfig.initialized() and line.measures and _existing:
        _locks.close()
        with suppress(OSError):
            remove_unused_folder(Path(HydraConfig.get().sweep.dir).absolute(), _existing)


@contextmanager
def _patch_hydra(argv: Sequence[str]) -> Iterator[None]:
    """Give Hydra this argv, and let its errors pass: by default it prints them and exits.

    Each job is composed once; Hydra's rehearsal is for launchers that compose in another process.
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


class SweepStart(Callback):
    """Prepare the sweep's folder before Hydra composes the first job; one that `resumes` may hold rows."""

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make and lock the sweep's folder, refuse one with rows, and announce a long composition.

        Hydra writes each job's configuration before its task is called: in a folder with rows it would
        replace the one that they were measured with.
        """
        HydraConfig.instance().set_config(config)
        _existing.clear()
        try:
            _check_nodes(config)
            folder = Path(config.hydra.sweep.dir)
            count = _count_jobs(config)
        except ConfigError as error:
            raise _Refusal(str(error)) from error
        except COMPOSE_ERRORS as error:
            raise _Refusal(explain(error)) from error
        try:
            _existing.update(list_existing(folder.absolute()))
            if not self.resumes and (any(folder.glob(ROWS)) or any(folder.glob(f"*/{ROWS}"))):
                raise _Refusal(HOLDS_ROWS.format(folder))
            sweep_folder.check_links(folder, is_new=not self.resumes)
            make_folder(folder)
            _locks.enter_context(sweep_folder.hold_for_sweep(folder))
        except KvexpError as error:
            raise _Refusal(str(error)) from error
        except OSError as error:  # a name that is too long
            raise _Refusal(f"{folder} cannot be used ({error.strerror})") from error
        except RecursionError as error:
            raise _Refusal(f"{folder} cannot be used (too many folders in one another)") from error
        if count > MANY:
            say(f"composing {count} curves\n")


class _Refusal(BaseException):
    """Ends Hydra from within a callback, where it turns every Exception into a warning."""


def _check_nodes(config: DictConfig) -> None:
    """Check that what kvexp and Hydra read keys of has keys: a reference may stand for anything.

    Raises:
        ConfigError: One has none.
    """
    for name in ("sweep", "job", "sweeper", "launcher"):
        if not OmegaConf.is_dict(OmegaConf.select(config.hydra, name)):
            raise ConfigError(
                f"hydra.{name} must have its keys; hydra.sweep.dir=FOLDER says where a sweep goes"
            )


def _count_jobs(config: DictConfig) -> int:
    """Count the sweep's jobs; what is typed replaces a preset's values of the same key.

    Raises:
        ConfigError: They are too many.
    """
    # Unresolved: a typed interpolation is one text among the overrides.
    hydra_config = cast(dict[str, Any], OmegaConf.to_container(config.hydra, resolve=False))
    swept = [f"{key}={value}" for key, value in (hydra_config["sweeper"]["params"] or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*swept, *hydra_config["overrides"]["task"]])
    by_key = {override.get_key_element(): override for override in overrides}
    count = math.prod(map(count_values, filter(Override.is_discrete_sweep, by_key.values())))
    if count > MOST_CURVES:
        raise ConfigError(f"what was typed are {count:,} curves, and a sweep has at most {MOST_CURVES:,}")
    return count
