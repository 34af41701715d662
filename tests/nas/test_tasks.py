"""Task accuracy: continuations are as likely as the model's own logits say, and what is made of that."""

import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from data.errors import InputError
from data.tasks import Item
from nas.subnet import cut
from nas.tasks import accuracy, encode_pairs, log_likelihoods, score_items, standard_error
from tests.nas.byte_tokenizer import BEGIN, SIZE, byte_tokenizer
from tests.nas.tiny_models import CUTS, PARENTS, architecture_of_cut, permuted_parent, tiny_parent

every_parent = pytest.mark.parametrize("name", PARENTS)
# Forward passes of other shapes round otherwise: float32 sums of a few dozen log-likelihoods up to 20 each.
ROUNDING = 2e-4
PAIRS = [
    ("What is it?", " a cat"),
    ("What is it?", " a car"),
    ("What is it?", " a"),
    ("What is it?", " a cat in the sun, on a long and warm afternoon"),
    ("It ends in a space ", "so"),
    ("Grüße:", " schön"),
    ("Q", "?"),
]


def model_of(name: str = "llama", **settings: object) -> PreTrainedModel:
    return tiny_parent(name, vocab_size=SIZE, max_position_embeddings=128, **settings)


def by_hand(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """Of one sequence, from all of its logits."""
    with torch.no_grad():
        logits = model(torch.tensor([context + continuation])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(continuation))


def ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text)["input_ids"]
    return found


@every_parent
def test_each_pair_has_the_likelihood_that_its_own_logits_give(name: str) -> None:
    model = model_of(name)
    expected = [by_hand(model, ids(c.rstrip()), ids(c + k)[len(ids(c.rstrip())) :]) for c, k in PAIRS]
    found = log_likelihoods(model, byte_tokenizer(), PAIRS, batch_size=3)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)


@every_parent
def test_neither_batches_nor_order_matter(name: str) -> None:
    model, tokenizer = model_of(name), byte_tokenizer()
    once = log_likelihoods(model, tokenizer, PAIRS, batch_size=len(PAIRS))
    for size in (1, 2, 100):
        again = log_likelihoods(model, tokenizer, PAIRS[::-1], batch_size=size)[::-1]
        np.testing.assert_allclose(again, once, atol=ROUNDING)


def test_a_continuation_is_as_likely_as_its_parts_one_after_another() -> None:
    whole, first, second = log_likelihoods(
        model_of(), byte_tokenizer(), [("ab", "cdef"), ("ab", "cd"), ("abcd", "ef")]
    )
    assert whole == pytest.approx(first + second, abs=ROUNDING)


def test_all_next_tokens_together_are_certain() -> None:
    letters = [chr(code) for code in range(33, 127)]
    model = model_of()
    with torch.no_grad():
        logits = model(torch.tensor([ids("ab")])).logits[0, -1].double().softmax(-1)
    others = 1 - sum(float(logits[ids(letter)[0]]) for letter in letters)
    found = log_likelihoods(model, byte_tokenizer(), [("ab", letter) for letter in letters])
    assert np.exp(found).sum() + others == pytest.approx(1, abs=1e-5)


def test_the_spaces_at_the_end_of_a_context_belong_to_the_continuation() -> None:
    found = log_likelihoods(model_of(), byte_tokenizer(), [("ab  ", "c"), ("ab", "  c"), ("ab ", " c")])
    assert found[0] == found[1] == found[2]


def test_a_long_context_loses_its_beginning() -> None:
    model = model_of()
    text = "".join(chr(97 + i % 26) for i in range(300))
    (found,) = log_likelihoods(model, byte_tokenizer(), [(text, "xyz")])
    assert found == pytest.approx(by_hand(model, ids(text)[-126:], ids("xyz")), abs=ROUNDING)


def test_texts_begin_with_the_token_that_the_tokenizer_gives_them_and_with_one() -> None:
    def tokens(begins: bool, *pair: str) -> list[int]:
        (request,) = encode_pairs(byte_tokenizer(begins=begins), [pair], 100)  # type: ignore[list-item]
        assert request.scored == len(ids(pair[1]))
        found: list[int] = request.tokens.tolist()
        return found

    assert tokens(False, "ab", "c") == ids("abc")
    assert tokens(True, "ab", "c") == [0, *ids("abc")]
    assert tokens(True, f"{BEGIN}ab", "c") == [0, *ids("abc")]
    assert tokens(True, "", "c") == tokens(False, "", "c") == [0, *ids("c")]


def test_an_empty_context_takes_a_token_to_begin_with() -> None:
    with pytest.raises(InputError, match="a context is empty"):
        log_likelihoods(model_of(), byte_tokenizer(named=False), [("", "c")])


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(InputError, match="the choice '' has 0 tokens of its own"):
        log_likelihoods(model_of(), byte_tokenizer(), [("ab", "")])
    with pytest.raises(InputError, match="has 200 tokens of its own, and the model's 128 positions"):
        log_likelihoods(model_of(), byte_tokenizer(), [("ab", "c" * 200)])
    with pytest.raises(InputError, match="there are 0 items"):
        score_items(model_of(), byte_tokenizer(), [])


@pytest.mark.parametrize("which", CUTS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_views_of_the_parent_score_what_their_copies_score(name: str, which: str) -> None:
    parent, shape = permuted_parent(name)  # its vocabulary is smaller: ids of its own
    pairs = [("!", chr(34 + i) + chr(40 - i)) for i in range(5)]
    architecture = architecture_of_cut(which, shape)
    view, copy = (cut(parent, shape, architecture, own=own) for own in (False, True))
    found = [log_likelihoods(model, byte_tokenizer(), pairs) for model in (view, copy)]
    assert (found[0] == found[1]).all()
    whole = log_likelihoods(parent, byte_tokenizer(), pairs)
    assert (log_likelihoods(cut(parent, shape, shape.parent), byte_tokenizer(), pairs) == whole).all()
    assert (found[0] != whole).any()


def test_a_model_that_finds_all_equally_likely_takes_the_first() -> None:
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    items = [Item(("ab",) * 3, (" cc", " dd", " ee"), gold, (2, 2, 2)) for gold in (0, 1, 2, 0)]
    scores = score_items(model, byte_tokenizer(), items)
    assert (scores.n, scores.acc, scores.acc_norm) == (4, 0.5, 0.5)
    (found,) = log_likelihoods(model, byte_tokenizer(), [("ab", " cc")])
    assert found == pytest.approx(-3 * math.log(SIZE), rel=1e-6)


def test_accuracies_of_known_likelihoods() -> None:
    items = [
        Item(("c",) * 2, (" long one", " b"), 0, (8, 1)),  # less likely, more so per character
        Item(("c",) * 3, (" a", " b", " c"), 1, (1, 1, 1)),
        Item(("c",) * 2, (" a", " b"), 1, (1, 1)),
    ]
    scores = accuracy(items, np.array([-8.0, -2.0, -3.0, -1.0, -2.0, -1.0, -1.0]))
    assert scores.acc == pytest.approx(1 / 3)
    assert scores.acc_norm == pytest.approx(2 / 3)
    # The variance of zeros and ones is n p (1 - p) / (n - 1).
    assert scores.acc_stderr == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 2))
    assert scores.record()["n"] == 3
    assert math.isnan(standard_error([1.0]))
    plain = [Item(item.contexts, item.continuations, item.gold) for item in items]
    assert accuracy(plain, np.arange(7.0)).acc_norm is None


def test_progress_tells_of_every_choice() -> None:
    seen: list[int] = []
    log_likelihoods(model_of(), byte_tokenizer(), PAIRS, batch_size=2, progress=seen.append)
    assert sum(seen) == len(PAIRS)


@pytest.mark.gpu
def test_the_likelihoods_are_those_of_the_cpu() -> None:
    here = log_likelihoods(model_of(), byte_tokenizer(), PAIRS)
    there = log_likelihoods(model_of().to("cuda"), byte_tokenizer(), PAIRS)
    np.testing.assert_allclose(there, here, atol=0.05)  # matrix products in TF32
