"""An experiment chooses options and sweeps; values of its own would beat the options typed beside it."""

from pathlib import Path
from typing import Any

import yaml

from kvexp.cli.help import GROUPS
from kvexp.errors import ConfigError


def check(runtime: Any) -> None:
    """Returns when the chosen experiment, if any, sets no key of a group.

    Args:
        runtime: Hydra's `runtime` node: the choices and where configuration comes from.

    Raises:
        ConfigError: It does: `experiment=x workload=tiny` would measure x's sizes, named tiny.
    """
    name = runtime.choices.get("experiment")
    if name is None:
        return
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    files = (folder / "experiment" / f"{name}.yaml" for folder in folders)
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return
    for key in yaml.safe_load(file.read_text("utf-8")) or {}:
        if key in GROUPS:
            raise ConfigError(
                f"{file} sets keys of {key}; put them into an option of {key} and choose that under "
                "`defaults`, or sweep them under `hydra.sweeper.params`"
            )
