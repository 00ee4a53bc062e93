"""The command line: the only room that sees argv, Hydra and OmegaConf.

Importing this package imports none of them, so that `--help` answers at once, and a sweep's processes start.
"""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvexp import __version__
from kvexp.cli import commands, help
from kvexp.errors import ConfigError, Terminated
from kvexp.sweep import prestart
from kvexp.sweep.prestart import Prestart

WRONG = 2
UNSAID = 1
"""The exit code where what was done could not be written out."""
SIGNALLED = 128
"""Exit codes of what a signal ended begin above this, as a shell has it: 130 for Ctrl-C, 143 for SIGTERM."""


def main() -> None:
    """What was typed is done, and the process ends with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a µ shows a ? in its place
            stream.reconfigure(errors="replace")
    try:
        with prestart.start_for(sys.argv[1:]) as begun:
            code = dispatch(sys.argv[1:], begun)
    except KeyboardInterrupt:  # while processes began or ended
        code = SIGNALLED + signal.SIGINT
    say("")
    sys.exit(code)


def dispatch(argv: Sequence[str], begun: Prestart | None = None) -> int:
    """The exit code of one command line; a ConfigError becomes one sentence on stderr.

    Args:
        argv: What was typed.
        begun: What a sweep needs, where that was started already.
    """
    try:
        return _command(list(argv), begun)
    except ConfigError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        sys.stderr.write(f"kvexp: {error}\n")
        return WRONG
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        what = error.filename or "what there is to say"
        with suppress(OSError):  # it may be the same disk
            sys.stderr.write(f"kvexp: cannot write {what} ({error.strerror})\n")
        with suppress(OSError):  # what is still buffered goes nowhere then
            say("")
        return UNSAID
    except Terminated as end:
        return SIGNALLED + end.number
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT


def say(text: str) -> None:
    """The text is on stdout at once; a reader that has left (`| head -1`) is no error."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is still buffered would be written again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _command(argv: list[str], begun: Prestart | None = None) -> int:
    if argv and argv[0] in commands.names():
        return commands.run(argv[0], argv[1:])
    if "--help" in argv or "-h" in argv:
        say(help.text(help.config_dirs(argv)))
        return 0
    if "--version" in argv:
        say(f"kvexp {__version__}\n")
        return 0
    if argv and _is_word(argv[0]):
        raise ConfigError(_unknown_word(argv[0], help.config_dirs(argv)))
    from kvexp.cli.compose import run  # here, since it imports Hydra

    return run(argv, begun)


def _is_word(argument: str) -> bool:
    """Whether an argument stands where a subcommand does: neither a flag nor an override."""
    return "=" not in argument and argument[:1] not in ("-", "+", "~")


def _unknown_word(word: str, dirs: Sequence[Path]) -> str:
    if word in help.GROUPS:
        names = ", ".join(help.options(word, dirs))
        return f"{word} names no option; write {word}= and one of {names}"
    return f"unknown command {word!r}; write GROUP=OPTION or KEY=VALUE, or --help for what there is"
