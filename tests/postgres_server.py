"""A PostgreSQL server of the tests' own, on the loopback interface, from the system's package."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Server:
    """A running server; `url` is its empty database."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "secateur", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        """Where SQLAlchemy finds it."""
        return f"postgresql+psycopg://secateur@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Until it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k {self._folder}"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")

    def stop(self, how: str = "fast") -> None:
        """`immediate` is as if the machine had lost its power."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", how, "stop")

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), *words]
        if os.geteuid() == 0:  # which the server refuses to run as
            command = ["runuser", "-u", "postgres", "--", *command]
        with (self._folder / "said").open("wb") as said:  # not a pipe: the server would keep it open
            done = subprocess.run(
                command, cwd=self._folder, stdout=said, stderr=said, timeout=120, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{program}: {(self._folder / 'said').read_text()}")


def why_absent() -> str:
    """Why there can be no server here; empty where there can."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "tests run as root, and there is no user postgres to run a server as"
    return ""


def programs() -> Path | None:
    """Where the server's programs are."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def server() -> Iterator[Server]:
    """A server for a while."""
    place = programs()
    assert place is not None
    folder = Path(tempfile.mkdtemp(prefix="secateur-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        running = Server(place, folder)
        try:
            yield running
        finally:
            with suppress(RuntimeError):
                running.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
