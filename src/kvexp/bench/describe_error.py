"""Describe an error that an implementation raised: its message, and the last line of the user's own code."""

import importlib.util
import traceback
from pathlib import Path

_KVEXP = Path(__file__).resolve().parents[1]
_LIBRARIES = ("site-packages", "dist-packages")


def describe_error(error: BaseException, target: str) -> str:
    """Return the error's type and message, and where the user's own code was left: `my.py:31, in call`.

    What lies beside the module of `target`, a dotted path of the implementation's, is the user's own.
    """
    said = f"{type(error).__name__}: {error}"
    place = _find_last_frame(error, _find_folders(target))
    separator = "\n" if "\n" in said else " "
    return f"{said}{separator}at {place}" if place else said


def _find_folders(target: str) -> list[Path]:
    """Return where the path's top-level module or package lies; nowhere for what cannot be found."""
    try:
        spec = importlib.util.find_spec(target.partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    packages = spec.submodule_search_locations or [str(Path(spec.origin or "").parent)]
    return [Path(place).resolve() for place in packages]


def _find_last_frame(error: BaseException, folders: list[Path]) -> str:
    """Return the innermost line in a file of these folders that is neither kvexp's nor another library's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        for folder in folders:
            if not file.is_relative_to(folder) or file.is_relative_to(_KVEXP):
                continue
            if not set(file.relative_to(folder).parts) & set(_LIBRARIES):
                return f"{file.name}:{frame.lineno}, in {frame.name}"
    return ""
