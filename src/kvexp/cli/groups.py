"""The groups, their options, and the names by which an option is found: its own, and its aliases.

An option's YAML names its aliases in a header of Hydra's form, on its first line: `# @aliases float16,fp16`.
In other capitals each of these names means the same.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from kvexp.bench.impl_hash import conf_dir

GROUPS = (
    "op",
    "impl",
    "layout",
    "dtype",
    "kv_cache_dtype",
    "scale",
    "connector",
    "mode",
    "timer",
    "workload",
    "tracking",
    "experiment",
)
"""Every group, in the order of `--help`. Each is required but `experiment`."""

GROUPS_WITH_KEYS = ("workload", "timer", "tracking")
"""The groups whose options all have the same keys, which can be set."""

CODE = ("op", "impl", "layout")
"""The groups whose options name a class and may have keys of their own."""

LAUNCHER = conf_dir() / "hydra" / "launcher" / "local.yaml"
"""The file of the launcher's keys."""

GROUPS_WITHOUT_KEYS = tuple(group for group in GROUPS if group not in (*GROUPS_WITH_KEYS, "experiment"))
"""The groups of which a row holds the option's name."""


_HEADER = "# @aliases "


def config_dirs(argv: Sequence[str]) -> list[Path]:
    """List the folders of options, the user's `--config-dir` first; `--config-path` is in place of conf/."""
    theirs, ours = [], conf_dir()
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        value = value if equals else "".join(argv[i + 1 : i + 2])
        if flag in ("--config-dir", "-cd"):
            theirs = [Path(value)]
        elif flag in ("--config-path", "-cp"):
            ours = Path(value)
    return [*theirs, ours]


def list_options(group: str, dirs: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each option of a group; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in dirs:
        for file in sorted((folder / group).rglob("*.yaml")):
            found.setdefault(file.relative_to(folder / group).with_suffix("").as_posix(), file)
    return found


def describe_options(group: str, dirs: Sequence[Path]) -> dict[str, str]:
    """Return the options of a group, each with the first comment of its file and its aliases."""
    return {name: describe_option(file) for name, file in list_options(group, dirs).items()}


def describe_option(file: Path) -> str:
    """Return the first comment of an option's file, and its aliases."""
    lines = (line.lstrip("# ").strip() for line in _read(file) if line.startswith("#") and "# @" not in line)
    comment, aliases = next(lines, ""), list_aliases(file)
    return f"{comment} Also {', '.join(aliases)}." if aliases else comment


def list_aliases(file: Path) -> list[str]:
    """List the aliases that an option's file names."""
    line = next(iter(_read(file)), "")
    return re.findall(r"[^\s,]+", line.removeprefix(_HEADER)) if line.startswith(_HEADER) else []


def find_option(group: str, word: str, dirs: Sequence[Path]) -> str | None:
    """Return the name of the only option that a word means; None where there is none, or several."""
    files = list_options(group, dirs)
    if word in files:
        return word
    meant = [
        name
        for name, file in files.items()
        if word.casefold() in (other.casefold() for other in (name, *list_aliases(file)))
    ]
    return meant[0] if len(meant) == 1 else None


def describe_unknown_option(group: str, word: str, names: Iterable[str]) -> str:
    """Say that a group has no option of that name, and which it has."""
    possible = list(names)
    aliases = chain(*map(list_aliases, list_options(group, [conf_dir()]).values()))
    more = "; --config-dir FOLDER adds your own" if group in GROUPS else ""
    hint = suggest(word, [*possible, *aliases])
    return f"unknown {group} {word!r}{hint}; choose one of {', '.join(possible)}{more}"


def suggest(word: str, names: Iterable[str], prefix: str = "") -> str:
    """Return ` (did you mean NAME?)` for the only name that is one slip of the fingers away; else nothing.

    A letter is missing, too many or another one, or two are swapped. Digits are never taken for a slip:
    `fp8_e5m3` may be meant as two formats.
    """
    near = sorted({name for name in names if _is_slip(word, name)})
    return f" (did you mean {prefix}{near[0]}?)" if len(near) == 1 else ""


def _is_slip(word: str, name: str) -> bool:
    if min(len(word), len(name)) < 3 or re.findall(r"\d", word) != re.findall(r"\d", name):
        return False
    if len(word) != len(name):
        longer, shorter = sorted((word, name), key=len, reverse=True)
        return any(longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer)))
    differing = [at for at in range(len(word)) if word[at] != name[at]]
    first, last = (differing or [0])[0], (differing or [0])[-1]
    return first == last or (last == first + 1 and word[first : last + 1] == name[last] + name[first])


def _read(file: Path) -> list[str]:
    """Return the lines of a file; none where it cannot be read, which Hydra says of one that is chosen."""
    try:
        return file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
