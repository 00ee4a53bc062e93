"""CUDA C++ to cubin, with NVRTC, at run time; the only room that knows a compiler.

A source may include files of its own folder by `#include "name"`. Cubins are cached on disk under a hash
of the source and of what it includes, the macros, the architecture and the compiler's version. An entry
begins with the digest of its content: one that does not match is built anew.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kvexp.disk_cache import cache_dir, keep
from kvexp.errors import CompileError

OPTIONS = {"std": "c++17", "lineinfo": True}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def cubin(source: Path, macros: Mapping[str, str | int], arch: str) -> bytes:
    """The machine code of one source file for one architecture.

    Args:
        source: The .cu file; its folder is where its includes are.
        macros: Compile-time constants, defined as preprocessor macros.
        arch: `sm_90` and the like. Needs no GPU.

    Raises:
        CompileError: The source does not compile; the message is the compiler's, with file and line.
    """
    text = source.read_text()
    defined = sorted((name, str(value)) for name, value in macros.items())
    identity = json.dumps([text, _included(source.parent, text), defined, arch, OPTIONS, _compiler_version()])
    entry = cache_dir() / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
    code = _read(entry)
    if code is None:
        code = _compile(text, source, defined, arch)
        keep(entry, hashlib.sha256(code).digest() + code)
    return code


@functools.cache
def kernel(source: Path, name: str, macros: tuple[tuple[str, str | int], ...], arch: str) -> Any:
    """The `extern "C"` kernel `name`, as a `cuda.core.Kernel`; loaded once a process.

    Raises:
        CompileError: See `cubin`.
    """
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(cubin(source, dict(macros), arch), name=source.name).get_kernel(name)


def bound(
    source: Path,
    name: str,
    macros: tuple[tuple[str, str | int], ...],
    grid: int,
    threads: int,
    tensors: tuple[Any, ...],
    *sizes: int,
) -> Callable[[], None]:
    """A launch of the kernel on torch's current stream of the tensors' device, with nothing left to look up.

    Args:
        source: See `kernel`.
        name: See `kernel`.
        macros: See `kernel`.
        grid: CTAs.
        threads: Threads of a CTA.
        tensors: Whose addresses the kernel takes first; the device is theirs, or the current one.
        *sizes: 64-bit integers that follow.
    """
    import torch
    from cuda.core import LaunchConfig, Stream, launch

    device = tensors[0].device if tensors else torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    loaded = kernel(source, name, macros, f"sm_{major}{minor}")
    config = LaunchConfig(grid=grid, block=threads)
    arguments = (*(tensor.data_ptr() for tensor in tensors), *sizes)

    def call(_alive: tuple[Any, ...] = tensors) -> None:
        stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
        launch(stream, config, loaded, *arguments)

    return call


def _included(folder: Path, text: str) -> dict[str, str]:
    """The text of each file of the folder that this text includes, directly or not.

    One that cannot be read is left out: the compiler says so, or an `#if` hides it from the compiler.
    """
    found: dict[str, str] = {}
    names = INCLUDE.findall(text)
    while names:
        name = names.pop()
        if name in found:
            continue
        try:
            found[name] = (folder / name).read_text()
        except OSError:
            continue
        names += INCLUDE.findall(found[name])
    return dict(sorted(found.items()))


def _compile(text: str, source: Path, macros: list[tuple[str, str]], arch: str) -> bytes:
    from cuda.core import Program, ProgramOptions
    from cuda.core._utils.cuda_utils import CUDAError

    options = ProgramOptions(
        **OPTIONS, arch=arch, define_macro=macros or None, include_path=str(source.parent), name=str(source)
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


def _read(entry: Path) -> bytes | None:
    """The entry's code, or None when there is none or its digest does not match."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None
