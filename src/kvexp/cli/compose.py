"""Run a sweep from argv: Hydra composes every job, all of them are checked, then the first is measured."""

import errno
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig

from kvexp.bench.impl_hash import conf_dir
from kvexp.cli import BAD_INPUT, own_keys, resume, say
from kvexp.cli.alias_source import name_choices, use_aliases
from kvexp.cli.argv import CommandLine, mask_override, parse_command_line
from kvexp.cli.choices import format_choices
from kvexp.cli.collector import Collector
from kvexp.cli.groups import config_dirs
from kvexp.cli.hydra_errors import COMPOSE_ERRORS, explain
from kvexp.cli.measuring import Check, Measuring
from kvexp.cli.sweep_task import FULL_ERROR, Ended, SweepTask, set_variable
from kvexp.errors import ConfigError
from kvexp.experiment import Experiment
from kvexp.host import terminal
from kvexp.host.addresses import mask_secrets
from kvexp.sweep.prestart import Prestart


def run_sweep(
    argv: Sequence[str], check: Check = lambda jobs: None, prestarted: Prestart | None = None
) -> tuple[int, Path | None]:
    """Compose and measure what was typed; return the exit code and the sweep's folder, if there is one.

    `check` is called with the jobs before the first is measured, and may raise ConfigError.

    Raises:
        ConfigError: Something typed is wrong; nothing was measured, and no file is left.
    """
    line, resumed = resume.read_resume(parse_command_line(argv))
    collector = Collector(line, resumed is not None)
    command = shlex.join(["python", "-m", "kvexp", *(mask_secrets(mask_override(word)) for word in argv)])
    measuring = Measuring(collector, mask_secrets(command), check, prestarted)
    with SweepTask(collector, measuring.measure) as task:
        if resumed:  # before its curves get numbers
            task.hold(resumed)
        try:
            with measuring:
                code = _compose(resume.place_curves(line, resumed), task)
                measuring.confirm()
        except ConfigError:
            task.remove_folder()
            raise
        measuring.print_best()
    return (code if measuring.code is None else measuring.code), measuring.home


def compose_experiments(argv: Sequence[str]) -> list[Experiment]:
    """Compose and check the curves of what was typed; measure nothing and leave no file.

    Raises:
        ConfigError: Something typed is wrong, or a flag asks for something else than curves.
    """
    line = parse_command_line(argv)
    collector = Collector(line)
    with SweepTask(collector, lambda _: [0.0 for _ in collector.batch]) as task:
        try:
            if _compose(line, task) or not line.measures:
                raise ConfigError("only overrides, --config-dir and -m say what is to be verified")
            return [experiment for experiment, *_ in collector.valid]
        finally:
            task.remove_folder()


def _compose(line: CommandLine, task: SweepTask) -> int:
    """Let Hydra print, or call the task; return 0, or BAD_INPUT where Hydra has said what is wrong."""
    version.setbase("1.3")
    HydraConfig.instance().cfg = None
    parser = get_args_parser()
    composed = own_keys.withhold(line) if line.measures else line
    arguments, where = parser.parse_args(composed.argv), str(conf_dir())
    try:
        with set_variable(FULL_ERROR, "1"), use_aliases(config_dirs(line.flags)):
            with task.interrupt:
                _run_hydra(arguments, parser, task, config_path=where, config_name="config")
            if arguments.cfg == "job":
                name_choices(HydraConfig.get())
        if arguments.cfg == "job" and arguments.package in (None, "_global_"):
            say(format_choices(HydraConfig.get().runtime.choices))
    except SystemExit as stop:  # Hydra ends some of its prints like this, a wrong --package too
        return BAD_INPUT if stop.code else 0
    except BrokenPipeError:  # the reader of what it prints has left
        return 0
    except KeyboardInterrupt:
        terminal.say("kvexp: interrupted before anything was measured")
        task.remove_folder()
        raise
    except Ended as ended:
        raise ended.error from None
    except COMPOSE_ERRORS as error:
        if not line.measures and isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise  # what it prints cannot be written
        raise ConfigError(explain(error)) from error
    return 0
