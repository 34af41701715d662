"""The demo corpus is the same text in every process, and its splits share no module."""

import subprocess
import sys
from pathlib import Path

import pytest

import data.stdlib
from data.errors import InputError
from data.stdlib import SPLITS, split_of, stdlib_documents, stdlib_modules

ROOT = Path(__file__).resolve().parents[2]


def test_splits_are_disjoint_and_cover_every_module() -> None:
    by_split = {split: {m.name for m in stdlib_modules() if m.split == split} for split in SPLITS}
    assert (
        sum(map(len, by_split.values())) == len({m.name for m in stdlib_modules()}) == len(stdlib_modules())
    )
    texts = [text for split in SPLITS for text in stdlib_documents(split)]
    assert len(set(texts)) > 0.99 * len(texts)


def test_splits_are_about_90_5_5_in_modules_and_in_text() -> None:
    for count in (lambda texts: len(texts), lambda texts: sum(map(len, texts))):
        sizes = {split: count(stdlib_documents(split)) for split in SPLITS}
        total = sum(sizes.values())
        assert 0.85 < sizes["train"] / total < 0.94
        assert 0.02 < sizes["validation"] / total < 0.09
        assert 0.02 < sizes["test"] / total < 0.09


def test_a_module_stays_in_its_split_for_ever() -> None:
    assert {split_of(name) for name in ("argparse.py", "shutil.py", "email/message.py")} == {"train"}
    assert {split_of(name) for name in ("enum.py", "json/decoder.py", "ipaddress.py")} == {"validation"}
    assert {split_of(name) for name in ("dataclasses.py", "logging/config.py", "os.py")} == {"test"}


def test_nothing_that_differs_between_installations() -> None:
    folders = {part for module in stdlib_modules() for part in module.name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "idlelib", "tkinter", "__pycache__"}
    assert not [module.name for module in stdlib_modules() if "_sysconfig" in module.name.rpartition("/")[2]]
    assert not [module.name for module in stdlib_modules() if "\r" in module.text or not module.text.strip()]


def test_another_process_reads_the_same() -> None:
    script = (
        "import hashlib; from data.stdlib import stdlib_modules\n"
        "print(hashlib.sha256(repr(stdlib_modules()).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_python_without_its_source_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(data.stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="keeps 0 source files .* pass a text file"):
        stdlib_modules.__wrapped__()


def test_an_unknown_split_is_an_input_error() -> None:
    with pytest.raises(InputError, match="'dev' is no split: use one of train, validation, test"):
        stdlib_documents("dev")
