"""Rules for chosen options: an experiment sets no values, and `layout=auto` becomes one of the layouts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kvexp.cli.groups import GROUPS
from kvexp.errors import ConfigError
from kvexp.experiment import Choice
from kvexp.impl import make
from kvexp.layout import selection

AUTO = "auto"
CHOSEN = "chosen by name"


def check_experiment(name: str | None, folders: Sequence[Path]) -> None:
    """Check that an experiment only chooses options and sweeps.

    Values of its own would beat the options typed beside it.

    Raises:
        ConfigError: It sets keys of a group: with `workload=tiny`, its sizes would be measured as tiny.
    """
    file = _find(folders, "experiment", name) if name else None
    for key in (yaml.safe_load(file.read_text("utf-8")) or {}) if file else ():
        if key in GROUPS:
            raise ConfigError(
                f"{file} sets keys of {key}; put them into an option of {key} and choose that under "
                "`defaults`, or sweep them under `hydra.sweeper.params`"
            )


def resolve_layout(
    config: Mapping[str, Any],
    choices: Mapping[str, str | None],
    folders: Sequence[Path],
    environ: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str | None], str]:
    """Replace `layout=auto` by a layout; return the configuration, the choices and why that layout.

    Raises:
        ConfigError: The environment names a layout that is not there.
    """
    if choices.get("layout") != AUTO:
        return dict(config), dict(choices), CHOSEN
    wish = config["connector"].get("layout")
    connector = choices.get("connector") or "none"
    name = choices.get("op") or ""
    twins = make(Choice(name, config["op"]["_target_"])).twins
    chosen = selection.select(name, environ, f"connector={connector}", wish, twins)
    file = _find(folders, "layout", chosen.layout)
    if file is None:
        raise ConfigError(f"layout=auto means {chosen.layout} ({chosen.reason}), which has no YAML")
    option = yaml.safe_load(file.read_text("utf-8"))
    return {**config, "layout": option}, {**choices, "layout": chosen.layout}, chosen.reason


def _find(folders: Sequence[Path], group: str, name: str) -> Path | None:
    """Find the option's file; the first folder that has one wins."""
    files = (folder / group / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)
