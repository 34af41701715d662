"""A first run reads a Hub, a second one has none: the same text. The Hub is one on this machine."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from data.streamed import Streamed, keep, kept, size_of
from tests.data.fake_hub import COMMIT, fake_hub

ROOT = Path(__file__).resolve().parents[2]
READ = """
import json, sys
from data import hub, known
from data.corpus import load_corpus
from data.errors import InputError

found = {}
for name in sys.argv[1:]:
    try:
        if name.endswith("/task"):
            found[name] = hub.read_rows(name, "validation")
        else:
            corpus = load_corpus(name)
            found[name] = [corpus.train, corpus.validation, corpus.test, corpus.source]
    except InputError as error:
        found[name] = str(error)
print(json.dumps(found))
"""
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: train
    path: wikitext-2-raw-v1/train-*
  - split: test
    path: wikitext-2-raw-v1/test-*
---
"""
TURNS = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]


def publish(folder: Path) -> None:
    """Data sets with the files and the cards of the real ones, a few rows each."""
    c4 = folder / "allenai" / "c4" / "en"
    c4.mkdir(parents=True)
    for name in ("train.00000-of-01024", "train.00001-of-01024", "validation.00000-of-00008"):
        with gzip.open(c4 / f"c4-{name}.json.gz", "wt", encoding="utf-8") as file:
            rows = ({"text": f"{name} {n}", "timestamp": "2019-04-25T12:57:54Z", "url": ""} for n in range(6))
            file.writelines(json.dumps(row) + "\n" for row in rows)
    wikitext = folder / "Salesforce" / "wikitext"
    (wikitext / "wikitext-2-raw-v1").mkdir(parents=True)
    (wikitext / "README.md").write_text(CARD)
    for split in ("train", "test"):
        table = pandas.DataFrame({"text": ["", " = Short = \n", "", " too short \n"]})
        table.to_parquet(wikitext / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
    alpaca = folder / "yahma" / "alpaca-cleaned"
    alpaca.mkdir(parents=True)
    rows = [{"instruction": f"Do {n}", "input": "", "output": f"Did {n}."} for n in range(20)]
    (alpaca / "alpaca_data_cleaned.json").write_text(json.dumps(rows))
    chat = folder / "HuggingFaceH4" / "ultrachat_200k" / "data"
    chat.mkdir(parents=True)
    for split in ("train_sft", "test_sft", "train_gen"):
        table = pandas.DataFrame({"prompt": ["Hi?"] * 4, "messages": [TURNS] * 4})
        table.to_parquet(chat / f"{split}-00000-of-00001.parquet")
    (chat.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: data/{s}-*\n" for s in ("train_sft", "test_sft", "train_gen"))
        + "---\n"
    )
    task = folder / "owner" / "task"
    task.mkdir(parents=True)
    pandas.DataFrame({"goal": ["g"], "label": [1]}).to_parquet(task / "validation-00000-of-00001.parquet")
    script = folder / "owner" / "script"
    script.mkdir(parents=True)
    (script / "script.py").write_text("")


@dataclass(frozen=True)
class Runs:
    """What a run online and one offline after it found by name, and what was asked of the Hub."""

    online: dict[str, Any]
    offline: dict[str, Any]
    asked: list[str]
    home: Path


NAMES = ("c4", "wikitext2", "alpaca-cleaned", "ultrachat", "owner/task", "owner/script", "owner/none")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("hub")
    publish(folder / "published")

    def read(address: str, offline: str) -> dict[str, Any]:
        environment = {
            **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": offline,
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", READ, *NAMES], env=environment, cwd=folder, timeout=200, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    with fake_hub(folder / "published") as (address, asked):
        online = read(address, "0")
    yield Runs(online, read(address, "1"), asked, folder / "home")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c4", "alpaca-cleaned", "ultrachat", "owner/task"])
def test_the_second_run_reads_the_same_without_a_hub(runs: Runs, name: str) -> None:
    assert not isinstance(runs.online[name], str), runs.online[name]
    assert runs.offline[name] == runs.online[name]


@pytest.mark.slow
def test_c4_is_the_beginning_of_its_first_files(runs: Runs) -> None:
    train, validation, test, source = runs.online["c4"]
    assert train == "\n\n".join(f"train.00000-of-01024 {n}" for n in range(6))
    assert (validation + "\n\n" + test) == "\n\n".join(f"validation.00000-of-00008 {n}" for n in range(6))
    assert "file en/c4-train.00000-of-01024.json.gz" in source["train"]
    assert "rows halved, second half" in source["test"] and "ODC-BY" in source["test"]
    assert COMMIT[:12] in source["train"]
    assert not [path for path in runs.asked if "c4-train.00001" in path]
    assert len(list((runs.home / "datasets" / "secateur").glob("allenai_c4_en-*.jsonl"))) == 1


@pytest.mark.slow
def test_conversations_come_from_the_splits_that_have_them(runs: Runs) -> None:
    train, validation, _, source = runs.online["ultrachat"]
    assert train.count("User: Hi?\n\nAssistant: Hi.") == 4
    assert validation.count("User: Hi?") == 2
    assert "split train_sft" in source["train"]
    assert runs.online["alpaca-cleaned"][0].startswith("User: Do 0\n\nAssistant: Did 0.\n\nUser: Do 1")
    assert "train_gen" not in str(runs.asked)


@pytest.mark.slow
def test_what_cannot_be_had_says_what_to_pass(runs: Runs) -> None:
    for found in (runs.online, runs.offline):
        assert (
            "is not train of WikiText-2, raw as released: it has 4 documents, not 36,718"
            in found["wikitext2"]
        )
        assert "'owner/none' " in found["owner/none"] and "pass a local file or folder" in found["owner/none"]
    assert "script-based data set, which datasets 4 refuses" in runs.online["owner/script"]
    assert "fills the cache" in runs.offline["owner/script"]


ROWS = {"train": [{"text": "a"}, {"text": "b\u2028c"}], "test": [{"messages": [{"role": "user"}]}]}
FOUND = Streamed("owner/name:config", "text", 9, "c0ffee", {"train": 9, "test": 0}, ROWS)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "secateur"


def test_what_is_kept_is_found_by_name_field_and_limit(cache: Path) -> None:
    assert kept("owner/name:config", "text", 9) is None
    keep(FOUND)
    assert kept("owner/name:config", "text", 9) == FOUND
    assert kept("owner/name", "text", 9) is kept("owner/name:config", "body", 9) is None
    assert kept("owner/name:config", "text", 8) is None
    assert len(list(cache.iterdir())) == 1


def test_a_kept_file_that_is_damaged_is_none_and_written_again(cache: Path) -> None:
    keep(FOUND)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert kept("owner/name:config", "text", 9) is None
    keep(FOUND)
    assert path.read_bytes() == whole
    assert list(cache.iterdir()) == [path]


def test_sizes_count_every_text() -> None:
    assert size_of({"a": "xy", "b": [{"c": "z", "d": None}], "e": 3}) == 3
