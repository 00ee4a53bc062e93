"""Experiments composed from conf/, and the options of its groups: a new YAML is under test at once."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kvexp.cli import typed
from kvexp.cli.catalogue import conf_dir
from kvexp.experiment import Choice, Experiment


def options(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))


def experiment(*overrides: str) -> Experiment:
    """The experiment that these overrides make."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    container = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]))
    resolved = OmegaConf.to_container(OmegaConf.create(container), resolve=True)
    return typed.experiment(resolved, choices, overrides)


def choice(group: str, name: str) -> Choice:
    """One option of `op`, `impl` or `layout`."""
    made: Choice = getattr(experiment(f"{group}={name}"), group)
    return made
