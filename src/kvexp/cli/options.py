"""`layout=auto` becomes one of the layouts, with the reason why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kvexp.errors import ConfigError
from kvexp.layout import selection

AUTO = "auto"
CHOSEN = "chosen by name"


def resolve(
    config: Mapping[str, Any],
    choices: Mapping[str, str | None],
    folders: Sequence[Path],
    environ: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str | None], str]:
    """The configuration and the choices without `layout=auto`, and why that layout.

    Args:
        config: The composed configuration.
        choices: The option of each group, by name.
        folders: Where options come from, the first one that has a file wins.
        environ: The environment.

    Raises:
        ConfigError: The environment names a layout that is not there.
    """
    if choices.get("layout") != AUTO:
        return dict(config), dict(choices), CHOSEN
    wish = config["connector"].get("layout")
    connector = choices.get("connector") or "none"
    chosen = selection.select(choices.get("op") or "", environ, f"connector={connector}", wish)
    file = next((f for d in folders if (f := d / "layout" / f"{chosen.layout}.yaml").is_file()), None)
    if file is None:
        raise ConfigError(f"layout=auto means {chosen.layout} ({chosen.reason}), which has no YAML")
    option = yaml.safe_load(file.read_text("utf-8"))
    return {**config, "layout": option}, {**choices, "layout": chosen.layout}, chosen.reason
