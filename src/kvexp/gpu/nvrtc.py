"""Compile CUDA C++ to cubins with NVRTC at run time.

A source may include files of its own folder by `#include "name"`. Cubins are cached on disk under a hash
of the source and of what it includes, the macros, the architecture and the compiler's version. An entry
begins with the digest of its content; an entry whose digest does not match is compiled again.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvexp.errors import CompileError
from kvexp.host import disk_cache

STANDARD = "c++17"
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def compile_cubin(source: Path, macros: Mapping[str, str | int], arch: str) -> bytes:
    """Return the machine code of one source file for one architecture, from the cache if it is there.

    Args:
        source: The .cu file; its includes are in the same folder.
        macros: Compile-time constants, defined as preprocessor macros.
        arch: `sm_90` and the like. Needs no GPU.

    Raises:
        CompileError: The source does not compile; the message is the compiler's, with file and line.
    """
    text = _read(source)
    defined = sorted((name, str(value)) for name, value in macros.items())
    identity = json.dumps(
        [text, _read_includes(source.parent, text), defined, arch, _make_options(source), _compiler_version()]
    )
    entry = f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
    code = _read_entry(entry)
    if code is None:
        code = _compile(text, source, defined, arch)
        disk_cache.keep(entry, hashlib.sha256(code).digest() + code)
    return code


@functools.cache
def load_kernel(source: Path, name: str, macros: tuple[tuple[str, str | int], ...], arch: str) -> Any:
    """Load the `extern "C"` kernel `name` once a process and return its `cuda.core.Kernel`.

    Raises:
        CompileError: See `compile_cubin`.
    """
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(compile_cubin(source, dict(macros), arch), name=source.name).get_kernel(name)


def bind(
    source: Path,
    name: str,
    macros: tuple[tuple[str, str | int], ...],
    grid: int,
    threads: int,
    tensors: tuple[Any, ...],
    *sizes: int,
) -> Callable[[], None]:
    """Return a function that launches the kernel, see `load_kernel`, on torch's current stream.

    The kernel takes the addresses of the tensors, whose device is used, or the current one without any; then
    the sizes as 64-bit integers. The grid is a number of CTAs.
    """
    import torch
    from cuda.core import LaunchConfig, Stream, launch

    device = tensors[0].device if tensors else torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    kernel = load_kernel(source, name, macros, f"sm_{major}{minor}")
    config = LaunchConfig(grid=grid, block=threads)
    arguments = (*(tensor.data_ptr() for tensor in tensors), *sizes)

    def call(_alive: tuple[Any, ...] = tensors) -> None:
        stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
        launch(stream, config, kernel, *arguments)

    return call


def _read_includes(folder: Path, text: str) -> dict[str, str]:
    """Return the text of each file of the folder that this text includes, directly or indirectly.

    A file that cannot be read is left out: the compiler reports it, unless an `#if` skips it.
    """
    found: dict[str, str] = {}
    names = INCLUDE.findall(text)
    while names:
        name = names.pop()
        if name in found:
            continue
        try:
            found[name] = _read(folder / name)
        except OSError:
            continue
        names += INCLUDE.findall(found[name])
    return dict(sorted(found.items()))


def _read(file: Path) -> str:
    """Return the text of a source, which is UTF-8 in any locale; what is not can only be in comments."""
    return file.read_text("utf-8", errors="replace")


def _make_options(source: Path) -> dict[str, Any]:
    # With line numbers the paths of the sources are in the PTX, and a quote in one would end it there.
    return {"std": STANDARD, "lineinfo": '"' not in str(source.absolute())}


def _compile(text: str, source: Path, macros: list[tuple[str, str]], arch: str) -> bytes:
    from cuda.core import Program, ProgramOptions
    from cuda.core._utils.cuda_utils import CUDAError

    options = ProgramOptions(
        **_make_options(source),
        arch=arch,
        define_macro=macros or None,
        include_path=str(source.parent),
        name=str(source),
    )
    try:
        compiled = Program(text, "c++", options).compile("cubin")
    except CUDAError as error:
        log = str(error).replace("\0", "").strip()
        raise CompileError(f"{source.name} does not compile for {arch}: {log}") from error
    return bytes(compiled.code)


@functools.cache
def _compiler_version() -> list[int]:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return [major, minor]


def _read_entry(entry: str) -> bytes | None:
    """Return the entry's code; None when there is no entry or its digest does not match."""
    content = disk_cache.read(entry) or b""
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None
