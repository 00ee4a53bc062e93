"""The subcommands, one file each: `kvexp NAME ...` runs `main(argv)` of the module of that name.

The first line of a module's docstring is its line in `--help`. `main` takes the words after the name and
returns the exit code, or raises ConfigError for what is typed wrong.
"""

import ast
import importlib
from collections.abc import Sequence
from pathlib import Path


def names() -> dict[str, str]:
    """Return each subcommand with its line in `--help`, without importing any."""
    files = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return {file.stem: _first_line(file) for file in files}


def run(name: str, argv: Sequence[str]) -> int:
    """Run a subcommand and return its exit code."""
    code: int = importlib.import_module(f"{__name__}.{name}").main(argv)
    return code


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]
