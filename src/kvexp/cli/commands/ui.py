"""Show the tracked runs in MLflow's UI in a browser; Ctrl-C ends it."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from kvexp.cli import say
from kvexp.cli.commands._parser import Parser
from kvexp.errors import ConfigError, Terminated
from kvexp.host.process import END_SECONDS, request_kill_on_parent_death, wait_for_end
from kvexp.sweep.signals import hold_signals, raise_on_signals, release_signals
from kvexp.tracking import sqlite, ui_views

_HOST = "127.0.0.1"
_QUIET = {
    # Without the jobs of MLflow's own evaluations it starts in a third of the time.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}


def main(argv: Sequence[str]) -> int:
    """Run MLflow's server until it ends; return 0 if that was by Ctrl-C, else its exit code.

    Raises:
        ConfigError: There are no runs, or the port cannot be used.
        Terminated: SIGTERM or SIGHUP came; the server has ended.
    """
    parser = Parser("kvexp ui", description=__doc__)
    parser.add_argument("dir", nargs="?", type=Path, default=Path("mlruns"), metavar="DIR", help="mlruns/")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    typed = parser.parse_args(argv)
    file = typed.dir / "mlflow.db"
    if not file.is_file():
        raise ConfigError(f"there are no runs yet ({file} is missing); make run makes some")
    _check_port(typed.port)
    say("".join(f"{line}\n" for line in _list_pages(file, f"http://{_HOST}:{typed.port}")))
    say("It answers in a few seconds; Ctrl-C ends it.\n")
    uri = sqlite.format_for_sqlalchemy(f"sqlite:///{file.absolute()}")
    command = ["mlflow", "ui", "--backend-store-uri", uri, "--host", _HOST, "--port", str(typed.port)]
    # Where kvexp is not installed but on PYTHONPATH, MLflow could not find it.
    command += ["--app-name", "kvexp"] if entry_points(group="mlflow.app", name="kvexp") else []
    return _serve([*command, "--workers", "1", "--uvicorn-opts", "--log-level warning"])


def _serve(command: Sequence[str]) -> int:
    """Run that module of Python in a session of its own: Ctrl-C would make each of its processes complain."""
    server = None
    with raise_on_signals():
        try:
            with hold_signals():  # a server that was begun is known here, and is ended
                server = subprocess.Popen(
                    [sys.executable, "-m", *command],
                    env=os.environ | _QUIET,
                    start_new_session=True,
                    preexec_fn=_prepare_server,
                )
            return wait_for_end(server)
        except Terminated:
            raise
        except KeyboardInterrupt:
            return 0
        finally:
            if server:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(server.pid, number)
                        server.wait(END_SECONDS)


def _prepare_server() -> None:
    """Have the server die with this process, however that ends, and hear signals itself."""
    request_kill_on_parent_death()
    release_signals()


def _check_port(port: int) -> None:
    """Check that the port is free; MLflow would print a traceback."""
    if not 0 < port < 1 << 16:
        raise ConfigError(f"--port must be a number from 1 to 65535, not {port}")
    with socket.socket() as probe:
        # As MLflow's server does: a port that was left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used ({error.strerror}); type --port with another"
            ) from error


def _list_pages(file: Path, address: str) -> list[str]:
    """List the address of the last sweep's page in each experiment; of the UI if no experiment has one."""
    try:
        found = sqlite.find_experiments(file, ui_views.TAG + ui_views.LAST)
    except (sqlite3.Error, UnicodeError) as error:
        raise ConfigError(f"{file} is no store of runs ({error})") from error
    return [f"{name}: {address}{ui_views.page_path(number)}" for name, number in found.items()] or [address]
