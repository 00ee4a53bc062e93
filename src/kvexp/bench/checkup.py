"""Check what this machine can run: `python -m kvexp.bench.checkup` prints a JSON line for each check.

It is a process of its own, since a broken library may crash, and since the parent imports no torch.
"""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvexp.errors import Unsupported
from kvexp.gpu.nvml import load_nvml

MIN_DRIVER = 580
"""The first driver of CUDA 13."""
SEED_BYTES = 75e9
"""Memory of the default workload: 2 x 65536 blocks x 16 slots x 128 heads x 128 x 2 bytes, and inputs."""
PEERS = ("vllm", "flashinfer", "sglang")


def check_machine() -> Iterator[dict[str, Any]]:
    """Yield each finding; its state is `ok`, `no`, or `without` for what the defaults do not need."""
    yield from _check_torch()
    yield from _check_driver()
    yield _check_nvrtc()
    yield _check_triton()
    yield _find_headers()
    for peer in PEERS:
        version = _find_version(peer) or _find_version(f"{peer}-python")
        fix = f"pip install {peer}, to measure impl={peer} beside ours"
        yield _note(peer, "ok" if version else "without", version or "not installed", "" if version else fix)


def _note(what: str, state: str, said: str, fix: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "said": said, "fix": fix}


def _check_torch() -> Iterator[dict[str, Any]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield _note("torch", "no", f"cannot be imported ({error})", "make setup")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"
    yield _note("torch", "ok", f"{torch.__version__}, built {'with ' * bool(torch.version.cuda)}{build}")
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if not names:
        fix = (
            "remove .venv, then make setup without TORCH_INDEX"
            if not torch.version.cuda
            else "see driver below"
        )
        yield _note("GPU", "no", "none that torch can use", f"{fix}; or measure impl=torch workload=tiny")
    for i, gpu in enumerate(names):
        free, total = torch.cuda.mem_get_info(i)
        said = f"{gpu.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
        fits = i > 0 or free >= SEED_BYTES
        fix = "" if fits else f"workload=seed needs {SEED_BYTES / 1e9:.0f} GB; choose another, as llama3_8b"
        yield _note(f"cuda:{i}", "ok" if fits else "no", said, fix)


def _check_driver() -> Iterator[dict[str, Any]]:
    try:
        nvml = load_nvml()
    except ImportError:
        yield _note("driver", "no", "nvidia-ml-py is not installed", "make setup")
        return
    except Unsupported as error:
        yield _note("driver", "no", str(error), f"install driver {MIN_DRIVER} or newer")
        return
    version = str(nvml.nvmlSystemGetDriverVersion())
    is_new = int(version.partition(".")[0]) >= MIN_DRIVER
    yield _note(
        "driver", "ok" if is_new else "no", version, "" if is_new else f"install {MIN_DRIVER} or newer"
    )
    for i in range(nvml.nvmlDeviceGetCount()):
        yield from _check_clocks(nvml, i)


def _check_clocks(nvml: Any, index: int) -> Iterator[dict[str, Any]]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        now = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
        most = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
        busy = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    except nvml.NVMLError as error:
        yield _note(
            f"clocks {index}", "without", f"cannot be read ({error})", "ask for the right to read NVML"
        )
        return
    yield _note(f"clocks {index}", "ok", f"SM at {now} of {most} MHz now")
    said = f"processes {', '.join(map(str, busy))} use it" if busy else "nobody else uses it"
    fix = "stop them while you measure" if busy else ""
    yield _note(f"GPU {index} held", "without" if busy else "ok", said, fix)


def _check_nvrtc() -> dict[str, Any]:
    from kvexp.errors import CompileError
    from kvexp.gpu import nvrtc

    with tempfile.TemporaryDirectory() as folder:
        os.environ["KVEXP_CACHE_DIR"] = folder  # a hit in the user's cache would prove nothing
        source = Path(folder) / "checkup.cu"
        source.write_text('extern "C" __global__ void checkup() {}\n')
        try:
            nvrtc.compile_cubin(source, {}, "sm_90")
        except (ImportError, OSError, RuntimeError, CompileError) as error:
            return _note("NVRTC", "no", f"does not compile ({str(error)[:200]})", "make setup, on Linux")
    return _note("NVRTC", "ok", f"nvidia-cuda-nvrtc {_find_version('nvidia-cuda-nvrtc')} compiles for sm_90")


def _check_triton() -> dict[str, Any]:
    version = _find_version("triton")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if version is None:
        return _note("triton", "no", "not installed", "make setup, on Linux")
    if compiler is None:
        return _note(
            "triton", "without", f"{version}, but no C compiler", "install gcc, for its launcher on a GPU"
        )
    return _note("triton", "ok", f"{version}, with {compiler}")


def _find_headers() -> dict[str, Any]:
    places = [Path(path) / "nvidia" for path in sys.path if (Path(path) / "nvidia").is_dir()]
    roots = [*places, Path("/usr/local/cuda")]
    file = next((file for root in roots for file in root.glob("**/include/cuda_runtime.h")), None)
    if file is None:
        fix = "pip install nvidia-cuda-runtime, for peers that compile"
        return _note("CUDA headers", "without", "none; our own kernels need none", fix)
    return _note("CUDA headers", "ok", str(file.parent))


def _find_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    for finding in check_machine():
        print(json.dumps(finding), flush=True)  # noqa: T201  # what the parent reads
