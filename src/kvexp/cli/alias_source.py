"""Let Hydra find an option by its aliases: wherever it reads a name, typed, swept or in a YAML's defaults.

It is the last folder that Hydra searches, and holds what `groups.find_option` finds in the others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, cast

from hydra.conf import HydraConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, read_write

from kvexp.cli.groups import GROUPS, find_option, list_options
from kvexp.errors import ConfigError

_SCHEME = "kvexp-alias"


class AliasSource(ConfigSource):
    """Load the option that an alias means.

    Attributes:
        folders: The folders of options; none while kvexp composes nothing.
    """

    folders: ClassVar[Sequence[Path]] = ()

    @staticmethod
    def scheme() -> str:
        """Return the beginning of its address."""
        return _SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Load the option's file."""
        file = _find_file(config_path)
        assert file, config_path  # Hydra asks `is_config` first
        header = self._get_header_dict(file.read_text("utf-8"))
        return ConfigResult(self.provider, f"file://{file.parent}", OmegaConf.load(file), header)

    def is_config(self, config_path: str) -> bool:
        """Return whether it is an alias."""
        return _find_file(config_path) is not None

    def is_group(self, config_path: str) -> bool:
        """Return False: options are listed by their own names."""
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return nothing, for the same reason."""
        return []

    def available(self) -> bool:
        """Return True."""
        return True


class AliasSearchPath(SearchPathPlugin):
    """Put the source of aliases behind the folders that Hydra searches."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Do so while kvexp composes."""
        if AliasSource.folders:
            search_path.append("kvexp", f"{_SCHEME}://")


@contextmanager
def use_aliases(folders: Sequence[Path]) -> Iterator[None]:
    """Let Hydra find the aliases of the options in these folders."""
    for plugin in (AliasSource, AliasSearchPath):
        Plugins.instance().register(plugin)
    before, AliasSource.folders = AliasSource.folders, tuple(folders)
    try:
        yield
    finally:
        AliasSource.folders = before


def name_choices(hydra: HydraConf) -> None:
    """Write the name of each option that was chosen by an alias into Hydra's choices.

    Raises:
        ConfigError: Another folder that Hydra searches has an option of that name.
    """
    choices = hydra.runtime.choices
    searched = [Path(one.path) for one in hydra.runtime.config_sources if one.schema == "file"]
    with read_write(cast(DictConfig, choices)):
        for group, word in choices.items():
            name = find_option(group, word, AliasSource.folders) if group in GROUPS and word else None
            if name in (None, word):
                continue
            if word in (files := list_options(group, searched)):
                raise ConfigError(f"{files[word]} takes an alias of {group}={name}; give it another name")
            choices[group] = name


def _find_file(config_path: str) -> Path | None:
    """Return the file of the option that an alias means; None for what is no alias."""
    group, _, word = config_path.partition("/")
    name = find_option(group, word, AliasSource.folders) if group in GROUPS and word else None
    return None if name in (None, word) else list_options(group, AliasSource.folders)[name]
