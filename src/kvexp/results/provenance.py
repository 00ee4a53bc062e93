"""Tell a store of a sweep's origin: who began it, from which code, its tags, and what it swept.

A sweep's folder keeps it, so that a later `kvexp sync` sends what was so when the sweep began. The tags of
user and source have MLflow's names and the values that its fluent API would give them.
"""

import functools
import getpass
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kvexp
from kvexp.column import ANY
from kvexp.errors import ConfigError
from kvexp.host.addresses import mask_address, mask_secrets
from kvexp.host.checkout import find_checkout
from kvexp.host.process import ask_git
from kvexp.measurement import COLUMNS
from kvexp.results.overrides import TAGS

USER, SOURCE = "mlflow.user", "mlflow.source."
_COMMIT, _BRANCH, _URL = (f"{SOURCE}git.{name}" for name in ("commit", "branch", "repoURL"))
_OWN = {*COLUMNS, "command", "impl_target", "kvexp"}
_NAME = re.compile(r"\w[\w.-]{0,249}", re.ASCII)
_PARAM = re.compile(r"\w[\w./-]{0,249}", re.ASCII)


@dataclass(frozen=True)
class Provenance:
    """The origin of a sweep, as texts.

    Attributes:
        tags: Those of all of its runs.
        params: Those of the sweep's run: each swept key with its values.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what `parse` reads."""
        return asdict(self)

    @classmethod
    def parse(cls, content: object) -> "Provenance":
        """Read what a file holds; leave out what is no text, and tags that only kvexp and MLflow set."""
        tags, params = (_select_texts(content, key) for key in ("tags", "params"))
        return cls(
            {name: tag for name, tag in tags.items() if _is_of_origin(name) or not find_fault(name)},
            {name: param for name, param in params.items() if _PARAM.fullmatch(name)},
        )


def read_tags(config: object) -> tuple[tuple[str, str], ...]:
    """Return the user's own tags by name, with secrets masked; `{a: {b: x}}` is the tag `a.b`.

    A number, and true or false, is its text.

    Raises:
        ConfigError: A name is refused, or a value is something else.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{TAGS} must be names with texts, such as {TAGS}.team=x, not {config!r}")
    found = dict(_flatten(config, ""))
    for name, value in found.items():
        if fault := find_fault(name):
            raise ConfigError(f"{TAGS}.{name} is refused: {fault}")
        fault = "a text that is not empty" if value in (None, "") else ANY.find_fault(value)
        if fault:
            raise ConfigError(f"{TAGS}.{name} must be {fault}, not {json.dumps(value, default=str)}")
    texts = {name: tag if isinstance(tag, str) else json.dumps(tag) for name, tag in found.items()}
    return tuple((name, mask_secrets(text)) for name, text in sorted(texts.items()))


def find_fault(name: str) -> str:
    """Say why a user's own tag cannot have that name; return an empty text where it can."""
    if name in _OWN or name.partition(".")[0] in ("mlflow", "kvexp"):
        return "kvexp or MLflow sets a tag of that name; choose another one"
    if not _NAME.fullmatch(name):
        return "the name of a tag has letters, digits, _, - and ., 250 at most; choose another one"
    return ""


def read_source_tags() -> dict[str, str]:
    """Return the tags of the user and of the code: the file that runs, and its checkout, if there is one."""
    file = Path(kvexp.__file__).resolve().with_name("__main__.py")
    tags = {USER: _read_user(), f"{SOURCE}name": str(file), f"{SOURCE}type": "LOCAL"}
    return {name: tag for name, tag in (tags | _read_git_tags(Path(__file__))).items() if tag}


@functools.cache
def _read_git_tags(file: Path) -> dict[str, str]:
    """Return the tags of the checkout that holds the file; none where there is no such checkout."""
    root = find_checkout(file)
    if root is None:
        return {}
    commit, _, branch = _run_git(root, "rev-parse", "HEAD", "--abbrev-ref", "HEAD").partition("\n")
    urls = _run_git(root, "config", "--get-regexp", r"^remote\..*\.url$").splitlines()
    url = urls[0].partition(" ")[2] if urls else ""
    # A checkout of a commit alone has no branch.
    return {_COMMIT: commit, _BRANCH: "" if branch == "HEAD" else branch, _URL: mask_address(url)}


def _read_user() -> str:
    """Return who logs in to the store, else who runs this process; empty where neither is known."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "").strip()
    with suppress(OSError, KeyError, ImportError):  # an account without a name, as in containers
        user = user or getpass.getuser()
    return user


def _run_git(root: Path, *words: str) -> str:
    return (ask_git("-C", root, *words) or b"").decode(errors="replace").strip()


def _flatten(config: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _is_of_origin(name: str) -> bool:
    return name in (USER, f"{SOURCE}name", f"{SOURCE}type", _COMMIT, _BRANCH, _URL)


def _select_texts(content: object, key: str) -> dict[str, str]:
    found = content.get(key) if isinstance(content, Mapping) else None
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
