"""For MLflow's servers in tests: find a free port, and wait until a server answers."""

import socket
import subprocess
import time
import urllib.request

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
