"""Encoding is the same with and without its cache; windows lose only the tail; draws are subsets in order."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import data.windows
from data.errors import InputError
from data.windows import draw, encode, spread, spread_apart, tokenizer_digest, windows


def tokenizer_of(words: str) -> PreTrainedTokenizerFast:
    """A word tokenizer that adds `[B]` in front when it is let."""
    vocabulary = {word: number for number, word in enumerate(["[B]", "[U]", *words.split()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="[B] $A", special_tokens=[("[B]", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[U]", model_max_length=4)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The texts that were really encoded."""
    done: list[str] = []
    really = data.windows._encode
    monkeypatch.setattr(
        data.windows, "_encode", lambda tokenizer, text: done.append(text) or really(tokenizer, text)
    )
    yield done


def test_the_whole_text_and_nothing_else_is_encoded() -> None:
    ids = encode(tokenizer_of("a b c"), "a b c z a b c z")
    assert ids.tolist() == [2, 3, 4, 1, 2, 3, 4, 1]
    assert ids.dtype == np.int32
    assert encode(tokenizer_of("a"), "").shape == (0,)


def test_a_hit_equals_a_miss_equals_no_cache(tmp_path: Path, calls: list[str]) -> None:
    cache = tmp_path / "deep" / "cache"
    tokenizer = tokenizer_of("a b c")
    plain, miss, hit = (encode(tokenizer, "a b c", folder) for folder in (None, cache, cache))
    assert calls == ["a b c", "a b c"]
    for ids in (miss, hit):
        np.testing.assert_array_equal(ids, plain)
        assert ids.dtype == plain.dtype
    assert len(list(cache.iterdir())) == 1


def test_another_text_or_tokenizer_is_a_miss(tmp_path: Path) -> None:
    assert encode(tokenizer_of("a b"), "a b", tmp_path).tolist() == [2, 3]
    assert encode(tokenizer_of("b a"), "a b", tmp_path).tolist() == [3, 2]
    assert encode(tokenizer_of("a b"), "b a", tmp_path).tolist() == [3, 2]
    assert len(list(tmp_path.iterdir())) == 3
    assert tokenizer_digest(tokenizer_of("a b")) == tokenizer_digest(tokenizer_of("a b"))


def test_a_broken_cache_file_is_written_again(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("a b")
    encode(tokenizer, "a b a", tmp_path)
    (file,) = tmp_path.iterdir()
    for size in (0, 40, file.stat().st_size - 4):
        file.write_bytes(file.read_bytes()[:size])
        assert encode(tokenizer, "a b a", tmp_path).tolist() == [2, 3, 2]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        encode(tokenizer_of("a"), "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


@given(st.integers(1, 300), st.integers(1, 40))
def test_windows_are_the_text_without_its_tail(tokens: int, seq_len: int) -> None:
    ids = np.arange(tokens, dtype=np.int32)
    if tokens < seq_len:
        with pytest.raises(InputError, match=f"{tokens} tokens, fewer than one window of {seq_len}"):
            windows(ids, seq_len)
        return
    cut = windows(ids, seq_len)
    assert cut.shape == (tokens // seq_len, seq_len)
    assert cut.dtype == torch.int64
    assert cut.flatten().tolist() == list(range(tokens - tokens % seq_len))


def test_windows_own_their_numbers() -> None:
    ids = np.arange(4, dtype=np.int64)
    windows(ids, 2).fill_(9)
    assert ids.tolist() == [0, 1, 2, 3]


counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(counts, st.integers(0, 2**32))
def test_a_draw_is_distinct_ascending_and_its_seed(sizes: tuple[int, int], seed: int) -> None:
    available, count = sizes
    every = windows(np.arange(3 * available, dtype=np.int32), 3)
    drawn = draw(every, count, np.random.default_rng(seed))
    first = drawn[:, 0].tolist()
    assert first == sorted(set(first)) and len(first) == count
    assert torch.equal(drawn, every[drawn[:, 0] // 3])
    assert torch.equal(drawn, draw(every, count, np.random.default_rng(seed)))
    if count == available:
        assert torch.equal(drawn, every)


@given(counts)
def test_spread_windows_are_even(sizes: tuple[int, int]) -> None:
    available, count = sizes
    chosen = spread(windows(np.arange(available, dtype=np.int32), 1), count)[:, 0].tolist()
    steps = np.diff(chosen)
    assert chosen[0] == 0 and len(chosen) == count
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    assert available - chosen[-1] <= available / count + 1


@given(counts, st.integers(1, 60))
def test_windows_spread_apart_have_none_in_common(sizes: tuple[int, int], more: int) -> None:
    available, count = sizes
    every = windows(np.arange(available, dtype=np.int32), 1)
    if available == 1:
        with pytest.raises(InputError, match="fills one window"):
            spread_apart(every, count, more)
        return
    first, second = (set(chosen[:, 0].tolist()) for chosen in spread_apart(every, count, more))
    assert len(first) == min(count, available // 2)
    assert first == set(spread(every, len(first))[:, 0].tolist())
    assert len(second) == min(more, available - len(first))
    assert not first & second


def test_every_window_may_be_drawn() -> None:
    every = windows(np.arange(5, dtype=np.int32), 1)
    rng = np.random.default_rng(0)
    assert {int(draw(every, 1, rng)[0, 0]) for _ in range(100)} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("count", [0, -1, 4])
def test_too_many_or_no_windows_are_an_input_error(count: int) -> None:
    every = windows(np.arange(6, dtype=np.int32), 2)
    sentence = f"{count} windows were asked for.* 3"
    with pytest.raises(InputError, match=sentence):
        draw(every, count, np.random.default_rng(0))
    with pytest.raises(InputError, match=sentence):
        spread(every, count)
    with pytest.raises(InputError, match="a window of 0 tokens"):
        windows(np.arange(6, dtype=np.int32), 0)
