"""Implement the ops: one file or folder each, none imports another.

Imports nothing of kvexp but errors, experiment, gpu and op.

An implementation is a class named by its YAML in conf/impl/. For each op that it
supports it has a method of the op's name and arguments, which sets everything up and returns the bound call.
"""

import importlib
from typing import Any, Protocol

from kvexp.errors import ConfigError
from kvexp.experiment import Choice


class Impl(Protocol):
    """The contract of an implementation: made with the device and the options of its YAML.

    For each op it has a method of that name, for example
    `reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale,
    v_scale) -> Call`, which raises Unsupported for what it cannot do.

    Attributes:
        name: Its name in the configuration.
        untimed: Why its calls are not timed on this device; empty where they are.
    """

    name: str
    untimed: str

    def __init__(self, device: str, **options: Any) -> None:
        """Prepare to bind calls on `device` (`cuda:N` or `cpu`).

        Raises:
            Unsupported: It cannot run on this device; the message says what to do instead.
        """
        ...


def make(choice: Choice, **arguments: Any) -> Any:
    """Create an object of the class in the choice's YAML, with the YAML's options.

    Args:
        choice: The chosen option of `impl`, `op`, `layout` or `timer`.
        **arguments: Further keyword arguments.

    Raises:
        ConfigError: No class is named, it cannot be found, or it does not take the options.
    """
    module_name, _, class_name = choice.target.rpartition(".")
    if not module_name:
        raise ConfigError(f"the YAML of {choice.name} names no class under _target_")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing dependency of the module is not a mistyped path.
        if error.name and module_name.startswith(error.name):
            raise ConfigError(f"{choice.target} of {choice.name} cannot be found") from error
        raise
    made = getattr(module, class_name, None)
    if made is None:
        raise ConfigError(f"{choice.target} of {choice.name} cannot be found")
    try:
        return made(**arguments, **choice.options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            option = str(error).rpartition("argument ")[2]
            raise ConfigError(f"{choice.name} takes no option {option}") from error
        raise
