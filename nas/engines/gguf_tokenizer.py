"""The vocabulary of a checkpoint as GGUF stores it, read from `tokenizer.json`.

llama.cpp knows two kinds of byte-pair tokenizers: byte-level ones (`gpt2`), whose way of splitting text into
words it knows by name, and those of SentencePiece (`llama`), where merges follow from scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data.errors import InputError
from nas.engines.checkpoint import number_of, read_json
from nas.parent import saying_what_failed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""GGUF's types of tokens."""
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_ENGLISH = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
)
_SPACES = r"|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
)
SPLITS = {
    _ENGLISH % "{1,3}" + _SPACES: "llama-bpe",
    _ENGLISH % "" + _SPACES: "qwen2",
    _CASES + _SPACES: "tekken",
}
"""llama.cpp's names of the regular expressions that split text into words."""


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF's `tokenizer.ggml.*` hold: the `model`, for byte-level ones what splits words (`pre`) and the
    merges, for SentencePiece's the scores; token ids by role, whether texts get the first and last one, and
    whether the tokenizer `composes` letters first (Unicode's NFC), which llama.cpp does not."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    ids: Mapping[str, int]
    begins: bool
    ends: bool
    pre: str | None = None
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    space_first: bool | None = None
    composes: bool = False
    chat_template: str | None = None


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a checkpoint, as long as its embedding: ids that no token has are marked unused.

    Raises `InputError` where llama.cpp has no tokenizer of the kind, and where the files are damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no tokenizer.json; save the tokenizer in its fast form, or give --no-tokenizer"
        )
    with saying_what_failed(f"the tokenizer {path}"):
        return _vocabulary(path, config)


def _vocabulary(path: Path, config: Mapping[str, Any]) -> Vocabulary:
    folder, stored = path.parent, read_json(path)
    size = number_of(config, "vocab_size")
    model, added = stored["model"], stored.get("added_tokens") or []
    if model.get("type") not in (None, "BPE") or "merges" not in model:
        raise InputError(
            f"llama.cpp is given byte-pair tokenizers here, and {path} is a {model.get('type')}; "
            "give --no-tokenizer and feed it token ids"
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):  # with a prefix longer than a token the library would end the process
            raise InputError(f"{path} has a {name}, which llama.cpp has not; give --no-tokenizer")
    tokenizer = Tokenizer.from_file(str(path))  # which looks at every value's kind
    by_id = {index: token for token, index in model["vocab"].items()}
    types = dict.fromkeys(by_id, NORMAL)
    for each in added:
        by_id[each["id"]] = each["content"]
        types[each["id"]] = CONTROL if each.get("special") else USER_DEFINED
    if by_id and max(by_id) >= size:
        raise InputError(f"the tokenizer of {folder} has the id {max(by_id)}, its model {size} in all")
    tokens = [by_id.get(index, f"[unused{index}]") for index in range(size)]
    settings, ids = _roles(folder, config, {token: index for index, token in by_id.items()})
    begins, ends = _surrounds(tokenizer, ids)
    common: dict[str, Any] = {
        "tokens": tokens, "ids": ids, "begins": begins, "ends": ends,
        "chat_template": _chat_template(folder, settings),
    }  # fmt: skip
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if model.get("byte_fallback"):
        for index, token in by_id.items():
            if BYTE_TOKEN.fullmatch(token):
                types[index] = BYTE
        if "unknown" in ids:
            types[ids["unknown"]] = UNKNOWN
        return Vocabulary(
            "llama",
            types=[types.get(index, UNUSED) for index in range(size)],
            scores=_scores(tokens, merges),
            space_first=_space_first(stored, path),
            **common,
        )
    return Vocabulary(
        "gpt2", types=[types.get(index, UNUSED) for index in range(size)], merges=merges,
        pre=_split_name(stored, path), composes=_composes(stored, path), **common,
    )  # fmt: skip


def _parts(stored: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, without what only says that there are several."""
    found = stored.get(kind)
    if found is None:
        return []
    key = "normalizers" if kind == "normalizer" else "pretokenizers"
    return list(found[key]) if found["type"] == "Sequence" else [found]


def _composes(stored: Mapping[str, Any], path: Path) -> bool:
    """Whether a byte-level tokenizer brings text into the form NFC, in which most text is, before all else.

    Raises `InputError` for whatever else changes text: llama.cpp's byte-level tokenizers take it as it is.
    """
    kinds = [each["type"] for each in _parts(stored, "normalizer")]
    if not set(kinds) <= {"NFC"}:
        raise InputError(
            f"{path} changes text by {', '.join(kinds)} before it splits it, and llama.cpp's byte-level "
            "tokenizers take it as it is; give --no-tokenizer and feed it token ids"
        )
    return bool(kinds)


def _split_name(stored: Mapping[str, Any], path: Path) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer splits text into words."""
    *before, last = _parts(stored, "pre_tokenizer") or [{}]
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    kinds = [each["type"] for each in before]
    if plain and last.get("use_regex", True):
        if not before:
            return "gpt-2"
        if kinds == ["Digits"] and before[0].get("individual_digits"):
            return "smollm"
    elif plain and kinds == ["Split"] and not before[0].get("invert"):
        name = SPLITS.get(before[0]["pattern"].get("Regex", ""))
        if name is not None:
            return name
    words = ", ".join([*kinds, str(last.get("type"))])
    raise InputError(
        f"{path} splits text into words in a way ({words}) that has no name in llama.cpp, as far as is known "
        "here; give --no-tokenizer and feed it token ids"
    )


def _space_first(stored: Mapping[str, Any], path: Path) -> bool:
    """Whether a SentencePiece tokenizer puts a space before the text."""
    steps = [*_parts(stored, "normalizer"), *_parts(stored, "pre_tokenizer")]
    kinds = {each["type"]: each for each in steps}
    if not set(kinds) <= {"Prepend", "Replace", "Metaspace"}:
        raise InputError(
            f"{path} changes text by {', '.join(kinds)}, and llama.cpp's SentencePiece by spaces alone; "
            "give --no-tokenizer and feed it token ids"
        )
    return "Prepend" in kinds or kinds.get("Metaspace", {}).get("prepend_scheme", "never") != "never"


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """SentencePiece's scores that merge in the order of the merges: the earlier, the higher."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    last = -float(len(merges) + 1)
    return [-float(ranks[token]) if token in ranks else last for token in tokens]


def _roles(
    folder: Path, config: Mapping[str, Any], by_token: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The tokenizer's settings, and the ids of the tokens with a role by GGUF's words for it."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    ids: dict[str, int] = {}
    size = number_of(config, "vocab_size")
    for ours, word in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = settings.get(f"{ours}_token")
        token = token.get("content") if isinstance(token, dict) else token
        index = by_token.get(token) if isinstance(token, str) else None
        if index is None and word in ("bos", "eos"):
            index = config.get(f"{ours}_token_id")
            index = index[0] if isinstance(index, list) else index
        if type(index) is int and 0 <= index < size:
            ids[word] = index
    return settings, ids


def _surrounds(tokenizer: Tokenizer, ids: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether the tokenizer puts the first and the last token around a text: found by letting it."""
    found = tokenizer.encode("a").ids
    return (
        bool(found) and "bos" in ids and found[0] == ids["bos"],
        len(found) > 1 and "eos" in ids and found[-1] == ids["eos"],
    )


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    return found if isinstance(found, str) else None
