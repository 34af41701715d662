"""The house is what its README says: files and tree agree, files stay short, and each says what it is for."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nas", "predictors", "data", "experiments")
ROOMS = (*PACKAGES, "benchmarks", "notebooks")
MOST_LINES = 400


def files(*folders: str, kinds: tuple[str, ...] = (".py",)) -> list[str]:
    """Paths from the root, with `/`, of the files that are ours."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds)
    paths = (path.relative_to(ROOT) for path in found)
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def scripts() -> list[str]:
    return [
        path.removesuffix(".py").replace("/", ".").removeprefix("experiments.")
        for path in files("experiments")
        if re.search(r"^class Settings\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]


def tree() -> list[str]:
    """The paths in the fenced block under `## The tree`, one line each: `path  -- words`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## The tree\n.*?^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no fenced block under the heading '## The tree'"
    lines = [line for line in block[1].splitlines() if line.strip()]
    wrong = [line for line in lines if not re.fullmatch(r"\s*\S+\s+-- \S.*", line)]
    assert not wrong, f"not of the form 'path  -- words': {wrong}"
    return [line.split()[0] for line in lines]


def test_the_tree_holds_every_file_and_nothing_else() -> None:
    listed = tree()
    # A folder's own line speaks for its __init__.py.
    there = {path for path in files(*ROOMS, kinds=(".py", ".ipynb")) if not path.endswith("/__init__.py")}
    assert sorted(there - set(listed)) == [], "not in README.md's tree"
    assert [path for path in listed if not (ROOT / path).exists()] == [], "in README.md's tree, but not there"
    assert sorted({path for path in listed if listed.count(path) > 1}) == [], "twice in README.md's tree"


@pytest.mark.parametrize("path", files(*ROOMS, "tests"))
def test_no_file_is_long(path: str) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", [path for path in files(*ROOMS) if not Path(path).name.startswith("_")])
def test_every_public_module_says_what_it_is_for(path: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


def as_command(name: str, word: str) -> int:
    """The exit code of `python -m experiments.NAME WORD`, in this process: libraries are imported once."""
    with patch.object(sys, "argv", [name, word]), pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package")
@pytest.mark.parametrize("name", scripts())
def test_every_experiment_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_command(name, "--help") == 0
    assert f"python -m experiments.{name}" in capsys.readouterr().out
    assert as_command(name, "--no-such-option") == 2
    assert capsys.readouterr().err == "error: unknown option --no-such-option; --help lists what is.\n"


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same() -> None:
    command = [sys.executable, "-m", "experiments.compress", "--no-such-option"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --no-such-option; --help lists what is.\n"
