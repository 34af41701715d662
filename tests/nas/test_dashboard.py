"""Optuna's dashboard opens a run's pair store as it is, and leaves it as it was."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from nas.architecture import Architecture, Block
from nas.pairs import Pairs, Setting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("optuna_dashboard") is None, reason="the extra `dashboard` is not installed"
    ),
]

SETTING = Setting({"parent": "toy", "seed": 0})


@contextmanager
def dashboard(store: str, log: Path) -> Iterator[Callable[[str], Any]]:
    """The command of `docs/read-a-report.md` on this store; what it gives asks the HTTP interface."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("optuna-dashboard"), store, "--host", "127.0.0.1"]
    with log.open("w") as said:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=said, stderr=subprocess.STDOUT)

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return json.load(answer)

    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            try:
                ask("/api/meta")
                break
            except OSError:
                time.sleep(0.2)
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_the_dashboard_shows_the_pairs(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs.{kind}"
    store = str(path) if kind == "journal" else f"sqlite:///{path}"
    pairs = Pairs(store, SETTING)
    architectures = [Architecture(16, (Block(0, 1, 1, ffn),)) for ffn in (8, 16, 24)]
    for number, architecture in enumerate(architectures):
        pairs.add(architecture, -3.0 + number / 8, "start" if number < 2 else "round 1", accuracy=0.25)
    before = path.read_bytes()
    with dashboard(store, tmp_path / "dashboard.log") as ask:
        (study,) = ask("/api/studies")["study_summaries"]
        assert study["study_name"] == f"pairs-{SETTING.digest}"
        assert study["directions"] == ["maximize"]
        found = ask(f"/api/studies/{study['study_id']}")
    assert [json.loads(each["value"]) for each in found["user_attrs"]] == [SETTING.fields]
    assert [trial["values"] for trial in found["trials"]] == [[-3.0], [-2.875], [-2.75]]
    assert all(trial["state"] == "Complete" and trial["params"] == [] for trial in found["trials"])
    shown = [{each["key"]: each["value"] for each in trial["user_attrs"]} for trial in found["trials"]]
    assert [Architecture.from_json(each["architecture"]) for each in shown] == architectures
    assert [each["origin"] for each in shown] == ["start", "start", "round 1"]
    if kind == "journal":
        assert path.read_bytes() == before
    assert Pairs(store, SETTING).all == pairs.all
