"""Every reader of what others made, with a small valid file for each: models, texts, tasks, settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import datasets
import pandas as pd

from data.files import Field, read_passages
from data.streamed import Streamed, keep, kept
from data.tasks import TASKS, read_task
from data.windows import encode, windows
from experiments import command_line, compress
from experiments.recover import read_architecture
from nas.engines.checkpoint import open_checkpoint
from nas.engines.gguf_layout import plan
from nas.engines.gguf_rope import rope_of
from nas.engines.gguf_tokenizer import read_vocabulary
from nas.export import RECORD, save_checkpoint
from nas.parent import read_config
from nas.subnet import cut
from tests.data.tiny_tasks import tiny_forms, write_tasks
from tests.nas.small_tokenizers import small_tokenizer
from tests.nas.tiny_models import architecture_of_cut, permuted_parent


class Parser(NamedTuple):
    """`make(folder)` writes a valid file there and returns it; `read` reads one."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    is_json: bool = False


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def checkpoint(file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        parent, shape = permuted_parent("llama")
        architecture = architecture_of_cut("narrow", shape)
        save_checkpoint(cut(parent, shape, architecture), parent.config, shape, architecture, folder / "c")
        return folder / "c" / file

    return make


def blocks(path: Path) -> object:
    found = open_checkpoint(path.parent)
    plan(found, padded=True)
    return found.blocks, found.tied, rope_of(found.config, found.head_dim)


def tensors(path: Path) -> object:
    found = open_checkpoint(path.parent)
    return found.blocks, found.shapes, [found.tensor(name) for name in found.places]


def tokenizer(kind: str, file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        small_tokenizer(kind, 300, begins=True).save_pretrained(folder)
        return folder / file

    return make


def vocabulary(path: Path) -> object:
    return read_vocabulary(path.parent, {"vocab_size": 400, "bos_token_id": 0})


def passages(path: Path) -> object:
    return read_passages(path, Field("text", None))


def parquet(folder: Path) -> Path:
    pd.DataFrame(ROWS).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def streamed(folder: Path) -> Path:
    with patch.object(datasets.config, "HF_DATASETS_CACHE", folder):
        keep(Streamed("a/b", "text", 0, "1", {"train": 0}, {"train": ROWS}))
    return next((folder / "secateur").iterdir())


def kept_text(path: Path) -> object:
    with patch.object(datasets.config, "HF_DATASETS_CACHE", path.parents[1]):
        found = kept("a/b", "text", 0)
    return found and [found.characters[split] for split in found.rows]


class Words:
    """A tokenizer, as far as `encode` knows one."""

    backend_tokenizer: Any = type("Backend", (), {"to_str": lambda self: "words"})()

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


def token_ids(folder: Path) -> Path:
    encode(Words(), "one two three four", folder)
    return next(folder.iterdir())


def kept_ids(path: Path) -> object:
    with patch("data.windows._write_atomically"):  # which would mend the file
        return windows(encode(Words(), "one two three four", path.parent), 2)


def task(name: str, file: str = "") -> tuple[Callable[[Path], Path], Callable[[Path], object], bool]:
    """A task's reader and one of its files: the questions', where no other is named."""
    forms = tiny_forms()
    file = file or next(iter(forms[name].parts.values())).file

    def make(folder: Path) -> Path:
        path = write_tasks(folder) / file
        return min(path.glob("*.csv")) if path.is_dir() else path

    def read(path: Path) -> object:
        with patch.dict(TASKS, forms):
            return read_task(name, path.parents[2 if path.suffix == ".csv" else 1]).digest

    return make, read, file.endswith(".jsonl")


ROWS = [{"text": "one two", "more": 1}, {"text": "three\n\nfour", "more": 2}, {"text": "five", "more": 3}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TURNS = [{"role": "user", "content": "one"}, {"from": "gpt", "value": "two"}]
YAML = "keep: 0.5\nparent: demo\nseed: 3\nrandom-search: false\nmax-flops: null\nout: runs/x\n"
OPTIONS = command_line._options(compress.Settings)
FROM_ELSEWHERE = {
    "checkpoint's configuration": Parser(checkpoint("config.json"), blocks, True),
    "checkpoint's weights": Parser(checkpoint("model.safetensors"), tensors),
    "checkpoint's architecture": Parser(
        checkpoint(RECORD), lambda path: read_architecture(path.parent, permuted_parent("llama")[1]), True
    ),
    "parent's configuration": Parser(
        lambda folder: Path(shutil.copy("data/demo/config.json", folder)),
        lambda path: read_config(str(path.parent)), True,
    ),
    "tokenizer": Parser(tokenizer("gpt-2", "tokenizer.json"), vocabulary, True),
    "tokenizer of SentencePiece": Parser(tokenizer("llama", "tokenizer.json"), vocabulary, True),
    "tokenizer's settings": Parser(tokenizer("llama", "tokenizer_config.json"), vocabulary, True),
    "settings": Parser(
        text("s.yaml", YAML), lambda path: command_line._from_file(path, OPTIONS)
    ),
    "text": Parser(text("a.txt", "one two\n\nthree\n"), read_passages),
    "JSON lines": Parser(text("a.jsonl", LINES), passages, True),
    "JSON": Parser(text("a.json", json.dumps(ROWS)), passages, True),
    "Parquet": Parser(parquet, passages),
    "conversations": Parser(
        text("a.json", json.dumps([{"messages": TURNS}, {"messages": TURNS[:1]}])), passages, True
    ),
    "streamed text": Parser(streamed, kept_text, True),
    "token ids": Parser(token_ids, kept_ids),
    **{f"task {name}": Parser(*task(name)) for name in TASKS if name != "arc_challenge"},
    "labels of piqa": Parser(*task("piqa", "piqa/dev-labels.lst")),
    "examples of mmlu": Parser(*task("mmlu", "mmlu/dev")),
}  # fmt: skip
