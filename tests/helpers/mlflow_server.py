"""For MLflow's servers in tests: find a free port, start a server, and wait until it answers."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 300
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """Find a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> bytes:
    """Return the answer, without going through a proxy."""
    answer: bytes = _LOCAL.open(url, timeout=60).read()
    return answer


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Return whether the process, which may still be starting, answers there before it ends."""
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            get(url)
        except OSError:  # it does not listen yet
            time.sleep(0.1)  # asking without a pause would take the CPU from it
        else:
            return True
    return False


@contextmanager
def serve(words: Sequence[str], folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start `mlflow` with these words in the folder; yield the process, which `stop` ends."""
    command = [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "server.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [*command, "--workers", "1"], stdout=output, stderr=output, cwd=folder, env=os.environ | quiet,
            start_new_session=True,
        )  # fmt: skip
    try:
        assert answers(f"http://127.0.0.1:{port}/health", process), log.read_text()
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, without a chance to finish anything."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
        process.wait()
