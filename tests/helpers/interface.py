"""What users and files rely on, as data: `python -m tests.helpers.interface > tests/interface.json`.

tests/test_interface.py and tests/tracking/test_mlflow.py compare it, so that no change goes unnoticed.
"""

import contextlib
import io
import json
import re
import sys

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import kvexp
from kvexp.cli import commands, groups
from kvexp.measurement import Measurement
from tests.helpers import compose as composed
from tests.helpers import tiny_curve

FILE = "interface.json"


def interface():
    """Public names, columns of a row, options of each command, and what each preset composes."""
    base = _composed([])
    return {
        "names": sorted(kvexp.__all__),
        "columns": list(Measurement(tiny_curve.case(num_tokens=1), "skipped", "so").row()),
        "options": {name: _options(name) for name in commands.names()},
        "groups": {group: composed.options(group) for group in groups.GROUPS},
        "config": base,
        "presets": {
            name: _changes(base, _composed([f"experiment={name}"])) for name in composed.options("experiment")
        },
    }


def _options(command):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        commands.run(command, ["--help"])
    return sorted(set(re.findall(r"(?<!\w)--?[a-z][\w-]*", out.getvalue())))


def _composed(overrides):
    """Return every key with its value, except those that are Hydra's or name a class."""
    with initialize_config_dir(str(groups.conf_dir()), version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
    found = {"params": dict(config.hydra.sweeper.params or {})}
    found["choices"] = dict(config.hydra.runtime.choices)
    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    found["values"] = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_container(own)), resolve=True)
    return {key: value for key, value in _flat(found) if not key.endswith("_target_")}


def _flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _changes(base, other):
    changed = {key: value for key, value in other.items() if base.get(key, ...) != value}
    return changed | {key: "(gone)" for key in base if key not in other}


if __name__ == "__main__":
    json.dump(interface(), sys.stdout, indent=1)
    sys.stdout.write("\n")
