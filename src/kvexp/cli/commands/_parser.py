"""An argument parser for subcommands that raises ConfigError for what is typed wrong."""

import argparse
from typing import NoReturn

from kvexp.errors import ConfigError

SWEEPS = "a sweep's folder, a job's, a rows.jsonl file or a folder of sweeps; default: the last of ./multirun"


class Parser(argparse.ArgumentParser):
    """argparse's parser, which would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{self.prog.removeprefix('kvexp ')}: {message}; --help says what is possible")


def make_sweep_parser(command: str, doc: str | None) -> Parser:
    """Make the parser of a command that takes overrides beside its flags; no flag may be abbreviated."""
    raw = argparse.RawDescriptionHelpFormatter
    return Parser(f"kvexp {command}", description=doc, formatter_class=raw, allow_abbrev=False)
