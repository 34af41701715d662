"""The guides do what they say: each is followed, word by word, in a fresh copy of the repository.

Of a guide's fenced blocks, `python file=PATH` is a file to write, `diff` an edit to apply, `sh` are commands,
each of which must succeed, and `output` holds lines that the commands before it print, at least in part;
`text` is for reading only.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.warm_python import write_stub

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\S+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = ("python", "diff", "sh", "output", "text")


def blocks(guide: str) -> list[tuple[str, str, str]]:
    """Kind, path and text of a guide's fenced blocks, in order."""
    return BLOCK.findall((ROOT / "docs" / guide).read_text(encoding="utf-8"))


def copy_of_the_repository(folder: Path) -> Path:
    """What a clone would hold, with the edits that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """A Python that need not import the large libraries again."""
    script = ROOT / "tests" / "docs" / "warm_python.py"
    with tempfile.TemporaryDirectory() as folder:  # of a short name: a socket's has at most a hundred letters
        place, stub = Path(folder) / "socket", Path(folder) / "python"
        write_stub(stub, str(place))
        with subprocess.Popen([sys.executable, str(script), str(place)]) as server:
            while not place.exists() and server.poll() is None:
                time.sleep(0.05)
            yield str(stub)
            server.kill()


def follow(guide: str, folder: Path, python: str = sys.executable) -> None:
    """Write, apply and run everything, in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    # A guide is read by people: no marks of the run around it, no options of the tests around it.
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]

    def run(command: list[str], **more: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, timeout=300, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(command)}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    said = ""
    for kind, path, text in blocks(guide):
        if kind == "python":
            assert not (folder / path).exists(), f"{path} is there already"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        elif kind == "diff":
            # A repository of its own, or git looks for one further up.
            run(["git", "init", "--quiet"])
            run(["git", "apply", "-"], input=text)
        elif kind == "sh":
            said = run(["bash", "-euo", "pipefail", "-c", text.replace(".venv/bin/python", python)])
        elif kind == "output":
            assert [line for line in text.splitlines() if line not in said] == [], said


def test_there_are_guides() -> None:
    assert set(GUIDES) >= {
        "add-a-criterion.md",
        "add-a-model-family.md",
        "add-a-predictor.md",
        "export.md",
        "read-a-report.md",
    }


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_is_of_a_kind(guide: str) -> None:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    found = blocks(guide)
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found)
    assert {kind for kind, _, _ in found} <= set(KINDS)
    assert all(bool(path) == (kind == "python") for kind, path, _ in found), (
        "a file has a path, and only a file"
    )


@pytest.mark.parametrize("guide", GUIDES)
def test_what_a_guide_links_to_is_there(guide: str) -> None:
    text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    named = re.findall(r"`((?:nas|predictors|data|experiments|tests|docs)/[\w/.-]*)`", text)
    made = [path for _, path, _ in blocks(guide)]
    assert [path for path in named if path not in made and not (ROOT / path).exists()] == []
    assert f"docs/{guide}" in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "the README does not link to it"
    )


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_can_be_followed(guide: str, tmp_path: Path, python: str) -> None:
    follow(guide, copy_of_the_repository(tmp_path), python)


def test_a_guide_that_is_wrong_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "```sh\nfalse\n```\n": "false",
        "```sh\necho one\n```\n```output\ntwo\n```\n": "one",
        "```diff\n--- a/no.py\n+++ b/no.py\n@@ -1 +1 @@\n-1\n+2\n```\n": "git apply",
        "```python file=x.py\nraise SystemExit(3)\n```\n```sh\n.venv/bin/python x.py\n```\n": "ended with 3",
    }
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for number, (text, words) in enumerate(wrong.items()):
        (tmp_path / "docs" / "wrong.md").write_text(text)
        (tmp_path / str(number)).mkdir()
        with pytest.raises(AssertionError, match=words):
            follow("wrong.md", tmp_path / str(number))
