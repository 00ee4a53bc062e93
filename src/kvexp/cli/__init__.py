"""The command line: reads argv, composes with Hydra and OmegaConf, and runs the subcommands.

May import every other room, and Hydra only inside functions, so that `--help` answers at once.
"""

import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvexp import __version__
from kvexp.cli import commands, groups, help
from kvexp.errors import ConfigError, Terminated
from kvexp.host import disk_cache, terminal
from kvexp.host.addresses import mask_secrets
from kvexp.host.plain_file import is_here_gone
from kvexp.sweep import prestart
from kvexp.sweep.prestart import Prestart

CANNOT_WRITE = 1
BAD_INPUT = 2
SIGNALS = 128
"""Added to a signal's number, as a shell does: 130 for Ctrl-C, 143 for SIGTERM."""


def main() -> None:
    """Do what was typed, and exit with its code."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a µ shows a ? in its place
            stream.reconfigure(errors="replace")
    if logging.lastResort:
        logging.lastResort.setFormatter(terminal.LogFormatter())
    logging.raiseExceptions = False  # else Hydra's log prints a traceback where its reader has left
    disk_cache.settle()
    try:
        with prestart.start_for(sys.argv[1:]) as prestarted:
            code = dispatch(sys.argv[1:], prestarted)
    except KeyboardInterrupt:  # while processes were started or ended
        code = SIGNALS + signal.SIGINT
    with suppress(OSError):  # drops what is still buffered
        say("")
    sys.exit(code)


def _open_missing_streams() -> None:
    """Open what the caller has closed (`>&-`) on /dev/null: else the next file would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def dispatch(argv: Sequence[str], prestarted: Prestart | None = None) -> int:
    """Run one command line and return its exit code; a ConfigError becomes one sentence on stderr."""
    try:
        code = _run(list(argv), prestarted)
        say("")  # what Hydra has printed
        return code
    except ConfigError as error:
        return _refuse(str(error))
    except OSError as error:
        sentence = _explain_disk(error)
        if sentence is None:
            raise
        if error.errno != errno.ENOSPC:
            return _refuse(sentence)
        terminal.say(f"kvexp: {sentence}")
        return CANNOT_WRITE
    except Terminated as end:
        return SIGNALS + end.number
    except KeyboardInterrupt:
        return SIGNALS + signal.SIGINT


def _explain_disk(error: OSError) -> str | None:
    """Say what is wrong where a disk is full, a file cannot be used or the folder is gone; else None."""
    if error.errno == errno.ENOSPC:
        return f"cannot write {error.filename or 'the output'} ({error.strerror})"
    if is_here_gone():
        return "the current folder is gone; type the command again in one that is there"
    # A name that is too long, or a folder of another user.
    return f"{error.filename} cannot be used ({error.strerror})" if error.filename else None


def _refuse(sentence: str) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        terminal.say(traceback.format_exc().rstrip())
    one_line = mask_secrets(sentence).replace("\n", "\\n")  # the name of a file may have several
    terminal.say(f"kvexp: {one_line}")
    return BAD_INPUT


def say(text: str) -> None:
    """Print text to stdout at once, printable characters alone; ignore a closed pipe (`| head -1`)."""
    write(terminal.make_printable(text))


def write(text: str) -> None:
    """Write text to stdout at once, as it is; ignore a closed pipe."""
    try:
        if text:  # without a buffer even nothing cannot be written to a full disk
            sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Else what is still buffered would be written again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _run(argv: list[str], prestarted: Prestart | None = None) -> int:
    if argv and argv[0] in commands.names():
        return commands.run(argv[0], argv[1:])
    if "--help" in argv or "-h" in argv:
        say(help.text(groups.config_dirs(argv), argv))
        return 0
    if "--version" in argv:
        say(f"kvexp {__version__}\n")
        return 0
    if argv and "=" not in argv[0] and argv[0][:1] not in ("-", "+", "~"):  # neither override nor flag
        raise ConfigError(_describe_unknown(argv[0], groups.config_dirs(argv)))
    from kvexp.cli.compose import run_sweep  # here, since it imports Hydra

    return run_sweep(argv, prestarted=prestarted)[0]


def _describe_unknown(word: str, dirs: Sequence[Path]) -> str:
    if word in groups.GROUPS:
        names = ", ".join(groups.describe_options(word, dirs))
        return f"{word} names no option; write {word}= and one of {names}"
    known = commands.names()
    return (
        f"unknown command {word!r}{groups.suggest(word, known)}; the commands are {', '.join(known)}; "
        "without one write GROUP=OPTION or KEY=VALUE, which --help lists"
    )
