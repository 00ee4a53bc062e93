"""PostgreSQL for a test: find its programs, and run a server of one's own in a temporary folder."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers import mlflow_server


def find_programs() -> Path | None:
    """Return the folder of initdb and pg_ctl, of the newest version that is installed; None if none is."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@contextmanager
def serve(programs: Path, password: str) -> Iterator[int]:
    """Start a server whose superuser `postgres` has that password; yield its port on 127.0.0.1.

    PostgreSQL does not run as root, so there it runs as another account, which owns the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="kvexp-postgres-"))  # pytest's own folders are root's alone
    account = _choose_account()
    try:
        (folder / "password").write_text(password)
        if account:
            for path in (folder, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)

        def run(program: str, *words: str) -> None:
            how: dict[str, Any] = {}
            if account:
                how = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            # A server that is started keeps a pipe open, so its output goes to a file.
            with (folder / "log").open("a") as log:
                command = [str(programs / program), *words]
                done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, **how)
            assert done.returncode == 0, (folder / "log").read_text()

        data, port = str(folder / "data"), mlflow_server.free_port()
        ways = ("--username=postgres", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
        run("initdb", f"--pgdata={data}", *ways, "--no-sync", "--encoding=UTF8", "--locale=C")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "start", f"--pgdata={data}", "--wait", f"--options={options}")
        try:
            yield port
        finally:
            run("pg_ctl", "stop", f"--pgdata={data}", "--mode=immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _choose_account() -> pwd.struct_passwd | None:
    """Choose the account to run as: this process's own, which None stands for, unless that is root's."""
    if os.geteuid():
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def create_databases(port: int, password: str, *names: str) -> None:
    """Create empty databases; psycopg2 must be installed."""
    import psycopg2

    with closing(
        psycopg2.connect(host="127.0.0.1", port=port, user="postgres", password=password, dbname="postgres")
    ) as connection:
        connection.autocommit = True  # no database is created within a transaction
        with connection.cursor() as cursor:
            for name in names:
                cursor.execute(f'CREATE DATABASE "{name}"')
