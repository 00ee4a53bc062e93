"""How a subcommand reads its arguments: what is typed wrong is a ConfigError, one sentence as everywhere."""

import argparse
from typing import NoReturn

from kvexp.errors import ConfigError

SWEEPS = "a sweep's folder, a job's, a rows.jsonl file or a folder of sweeps; default: the last of ./multirun"


class Parser(argparse.ArgumentParser):
    """Argparse's parser, without its way of ending the process where something is wrong."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{self.prog.removeprefix('kvexp ')}: {message}; --help says what is possible")
