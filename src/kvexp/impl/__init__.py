"""Implement the ops: one file or folder each, none imports another.

Imports nothing of kvexp but errors, experiment, gpu, layout and op.

An implementation is a class named by its YAML in conf/impl/. For each op that it
supports it has a method of the op's name and arguments, which sets everything up and returns the bound call.
"""

import importlib
import pkgutil
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kvexp import op as ops
from kvexp.errors import ConfigError, Unsupported
from kvexp.experiment import Choice
from kvexp.op import Call


class Impl(Protocol):
    """The contract of an implementation: made with the device and the options of its YAML.

    For each op it has a method of that name, for example
    `reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kv_cache_dtype, k_scale,
    v_scale) -> Call`, which raises Unsupported for what it cannot do.

    One whose launches the library keeps has `launcher(op, *arguments)`, too. It returns a launcher for every
    call whose tensors agree with these in dtypes, sizes and strides, and in the last four bits of the bitwise
    or of key's and value's addresses, and of the caches'. Nothing is compiled yet. Its `prepare(num_tokens)`
    gives a function of the addresses of the op's tensors, in its order, 0 for None, which launches on torch's
    current stream. The tensors' device must be the current one.

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


class HostCall(Protocol):
    """A bound call that derives something on the host from tensors which may change."""

    def update(self) -> None:
        """Derive it anew."""
        ...

    def __call__(self) -> None:
        """Launch the call."""
        ...


class Refreshing:
    """Bind calls that derive something on the host, outside what is timed."""

    def __init__(self) -> None:
        self._calls: weakref.WeakSet[HostCall] = weakref.WeakSet()

    def keep(self, call: HostCall) -> Call:
        """Let the call derive what it needs, now and at each `refresh`; return it."""
        call.update()
        self._calls.add(call)
        return call

    def refresh(self) -> None:
        """Let every bound call derive it anew; called after the tensors have changed."""
        for call in self._calls:
            call.update()


T = TypeVar("T", bound=type)


def do_nothing() -> None:
    """Do nothing: the bound call of no tokens."""


def op_files(package: str, path: Iterable[str]) -> Callable[[T], T]:
    """Give a class a method for each op that has a file of its name in the class's package.

    The method is named as the op. It imports the file when it is first called, and returns
    `self.bind_file(file, *arguments)`, the file as a module and the op's arguments. `package` and `path` are
    the package's `__name__` and `__path__`.
    """
    own = {module.name for module in pkgutil.iter_modules(path)}
    names = [module.name for module in pkgutil.iter_modules(ops.__path__) if module.name in own]

    def decorate(made: T) -> T:
        for name in names:
            setattr(made, name, _make_method(f"{package}.{name}", name))
        return made

    return decorate


def _make_method(file: str, op: str) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        return self.bind_file(importlib.import_module(file), *arguments, **named)

    method.__name__ = op
    method.__doc__ = f"Bind `op.{op}` to these arguments."
    return method


def make(choice: Choice, **arguments: Any) -> Any:
    """Create an object of the class in a YAML of `impl`, `op`, `layout` or `timer`, with the YAML's options.

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
            raise ConfigError(
                f"{choice.target} of {choice.name} cannot be found: {error.name} is no module in "
                f"{_list_searched(error.name)}"
            ) from error
        raise
    made = getattr(module, class_name, None)
    if made is None:
        where = getattr(module, "__file__", None) or module_name
        raise ConfigError(f"{choice.target} of {choice.name} cannot be found: {where} has no {class_name}")
    try:
        return made(**arguments, **choice.options)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            option = str(error).rpartition("argument ")[2]
            raise ConfigError(f"{choice.name} takes no option {option}") from error
        raise


def _list_searched(module: str) -> str:
    """List where Python has looked for a module: in its package, or in all folders for modules."""
    package = sys.modules.get(module.rpartition(".")[0])
    if package is not None:
        return ", ".join(getattr(package, "__path__", [package.__name__]))
    installed = (sys.prefix, sys.base_prefix)
    own = dict.fromkeys(str(Path(one).absolute()) for one in sys.path if not one.startswith(installed))
    return f"{', '.join(own)} or the installed packages; PYTHONPATH=FOLDER adds a folder"


def import_peer(impl: str, package: str, modules: Sequence[str]) -> Any:
    """Import the first of these modules that can be, for an implementation that needs another package.

    Args:
        impl: The implementation's name.
        package: What it needs, in words.
        modules: Where versions of the package have it, the newest first.

    Raises:
        Unsupported: None of them can be imported.
    """
    reasons = []
    for name in modules:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(error)
    raise Unsupported(
        f"impl={impl} needs the package {package}, which cannot be imported: {reasons[0]}"
    ) from reasons[0]
