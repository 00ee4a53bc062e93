"""Start Slurm with one node, which is this host, without touching a Slurm that may be installed here."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.helpers.mlflow_server import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
_READY_SECONDS = 60.0


def find_reason_to_skip() -> str:
    """Say why Slurm cannot be started here; nothing where it can."""
    if missing := [name for name in DAEMONS if not shutil.which(name, path=_PATH)]:
        return f"there is no {missing[0]}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def run_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run it until the block ends; yield the variables with which sbatch finds it."""
    host, key = socket.gethostname(), folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    settings = {
        "ClusterName": "one",
        "SlurmctldHost": host,
        "SlurmctldPort": free_port(),
        "SlurmdPort": free_port(),
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "KillWait": 10,
        **{f"{name}PidFile": folder / f"{name}.pid" for name in ("Slurmctld", "Slurmd")},
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines += [f"NodeName={host} CPUs={os.cpu_count()}", "PartitionName=all Nodes=ALL Default=YES"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
    environment = os.environ | {"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        munge = ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        for command in (munge, ("slurmctld", "-D"), ("slurmd", "-D")):
            stack.callback(_end, subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        until = time.monotonic() + _READY_SECONDS
        ask = ["sinfo", "--noheader", "--format=%T"]
        while subprocess.run(ask, env=environment, capture_output=True, text=True).stdout.strip() != "idle":
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)  # nothing says when the node is ready; sinfo has to be asked
        yield environment


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    daemon.wait(30)
