"""MLflow's servers, as the tests start them: a port to listen at, and whether one answers there."""

import socket
import subprocess
import time
import urllib.request

PATIENCE_S = 300
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def get(url: str) -> bytes:
    """What is answered there, past any proxy."""
    answer: bytes = _LOCAL.open(url, timeout=60).read()
    return answer


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the process, which may still be starting, answers there before it ends."""
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < until:
        try:
            get(url)
        except OSError:  # it does not listen yet
            time.sleep(0.1)  # who asks without a pause takes the CPU that it starts with
        else:
            return True
    return False
