"""Chats and instructions as text: by the tokenizer's template, or plainly where it has none."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.conversations import form_of, spoken, turns_of
from data.corpus import load_corpus, load_text
from data.errors import InputError
from data.fields import Field

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + TEMPLATE
)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hi."},
]
ALPACA = {"instruction": "Add.", "input": "1 + 1", "output": "2"}


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"[U]": 0}, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[U]")
    tokenizer.chat_template = template
    return tokenizer


def said(row: dict[str, Any], template: str | None = None) -> str:
    return spoken(turns_of(row, form_of(row), "here"), tokenizer_with(template), "here")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_messages_go_through_the_template_or_are_plain() -> None:
    assert said({"messages": MESSAGES}, TEMPLATE) == (
        "<|system|>Be brief.<|end|>\n<|user|>Hi?<|end|>\n<|assistant|>Hi.<|end|>\n"
    )
    assert said({"messages": MESSAGES}) == "System: Be brief.\n\nUser: Hi?\n\nAssistant: Hi."


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (ALPACA, "User: Add.\n\n1 + 1\n\nAssistant: 2"),
        ({**ALPACA, "input": ""}, "User: Add.\n\nAssistant: 2"),
        ({"instruction": "Add.", "output": "2"}, "User: Add.\n\nAssistant: 2"),
        (
            {"instruction": "Add.", "context": "1", "response": "2", "category": "sum"},
            "User: Add.\n\n1\n\nAssistant: 2",
        ),
        ({"prompt": "Hi?", "response": "Hi."}, "User: Hi?\n\nAssistant: Hi."),
        ({"prompt": "Hi?", "completion": "Hi."}, "User: Hi?\n\nAssistant: Hi."),
        ({"prompt": "Hi?", "messages": MESSAGES[1:]}, "User: Hi?\n\nAssistant: Hi."),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]},
            "User: Hi?\n\nAssistant: Hi.",
        ),
    ],
)
def test_every_form_of_row(row: dict[str, Any], text: str) -> None:
    assert said(row) == text


def test_a_template_without_a_system_turn_gets_it_from_the_user() -> None:
    expected = "<|user|>Be brief.\n\nHi?<|end|>\n<|assistant|>Hi.<|end|>\n"
    assert said({"messages": MESSAGES}, NO_SYSTEM) == expected
    with pytest.raises(InputError, match=r"template refuses the conversation in here \(roles must alternate"):
        said({"messages": MESSAGES[1:] + MESSAGES[2:]}, ALTERNATE)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"messages": "Hi?"}, "'messages' in here is a str and no list of messages"),
        ({"messages": []}, "'messages' in here is a list and no list of messages"),
        ({"messages": [{"role": "user"}]}, "a message in here has no role and content that are text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}]},
            "a message in here has no role and content that are text",
        ),
        ({**ALPACA, "output": None}, "instruction and input and output in here are not text"),
        ({**ALPACA, "instruction": "", "input": ""}, "in here are not text: each row needs a question"),
    ],
)
def test_what_is_no_conversation_is_one_sentence(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        said(row)


def test_a_file_of_conversations_is_a_corpus(tmp_path: Path) -> None:
    rows = [{"messages": [*MESSAGES[:2], {"role": "assistant", "content": f"{n}."}]} for n in range(40)]
    path = write(tmp_path / "chat.jsonl", rows)
    templated = tokenizer_with(TEMPLATE)
    corpus = load_corpus(f"{path}#messages", templated)
    whole = "".join(said(row, TEMPLATE) for row in rows)
    assert corpus.train + corpus.validation + corpus.test == whole
    assert "of 40 templated conversations" in corpus.source["train"]
    assert load_corpus(str(path), templated).train == corpus.train
    assert load_corpus(f"{path}#chat", templated).train == corpus.train
    plain, source = load_text(str(path), "all", tokenizer_with(None))
    assert plain == "\n\n".join(said(row) for row in rows) == load_text(str(path), "all")[0]
    assert source.endswith("40 plain conversations")
    pandas.DataFrame(rows).to_parquet(tmp_path / "chat.parquet")
    assert load_text(str(tmp_path / "chat.parquet"), "all", templated)[0] == whole


def test_a_json_list_is_read_and_text_goes_before_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{**ALPACA, "text": "whole"}] * 3))
    assert load_text(str(path), "all")[0] == "whole\n\nwhole\n\nwhole"
    assert load_text(f"{path}#output", "all")[0] == "2\n\n2\n\n2"
    assert load_text(f"{path}#chat", "all")[0] == "\n\n".join([said(ALPACA)] * 3)
    write(path, [{"text": "a"}, {"text": "b"}])
    assert load_text(str(path), "all")[0] == "a\n\nb"
    for content, sentence in (("[1]", "item 1 of .* is a int"), ("[{]", "alpaca.json is no JSON")):
        path.write_text(content)
        with pytest.raises(InputError, match=sentence):
            load_text(str(path), "all")


def test_rows_without_a_conversation_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a", "story": "b"}])
    with pytest.raises(InputError, match="line 1 of .* has no conversation, only text, story: name the text"):
        load_text(f"{path}#chat", "all")


def test_a_field_needs_its_columns_alone() -> None:
    assert Field().of(["id", "text"]) == ("text",)
    assert Field().of(["id", *ALPACA]) == tuple(ALPACA)
    assert Field("chat").of(["text", "id", "messages", "prompt"]) == ("messages",)
    assert Field("body").of(["text"]) == ("body",)
