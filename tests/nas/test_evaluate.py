"""Evaluation: scores of models whose scores are known without running them."""

import math

import pytest
import torch
from torch.nn import functional

from nas.evaluate import Scores, evaluate, evaluate_all
from nas.latency import measure_latency
from nas.subnet import cut
from tests.nas.tiny_models import PARENTS, VOCAB, architecture_of_cut, permuted_parent, tiny_parent, tokens

every_parent = pytest.mark.parametrize("name", PARENTS)


def test_a_model_with_uniform_output_has_the_vocabulary_as_perplexity() -> None:
    model = tiny_parent("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    scores = evaluate(model, tokens(batch=5))
    assert scores.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert scores.nll == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert scores.accuracy == 0  # all are equal, the first is named, and it does not occur


def test_a_model_that_knows_what_comes_is_always_right() -> None:
    model = tiny_parent("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(50.0 * functional.one_hot(torch.tensor(7), VOCAB).float())
    scores = evaluate(model, torch.full((2, 9), 7))
    assert scores.accuracy == 1
    assert scores.perplexity == pytest.approx(1, abs=1e-9)


@every_parent
def test_the_score_is_the_loss_of_the_library(name: str) -> None:
    model = tiny_parent(name)
    windows = tokens(batch=4)
    scores = evaluate(model, windows, batch_size=4)
    with torch.no_grad():
        assert scores.nll == pytest.approx(float(model(windows, labels=windows).loss), rel=1e-5)
    assert scores.score == -scores.nll
    assert scores.tokens == 4 * 11  # the first of each window is not predicted


@every_parent
def test_batching_does_not_matter(name: str) -> None:
    model, parent = tiny_parent(name), tiny_parent(name, seed=1)
    windows = tokens(batch=7)
    each = [evaluate(model, windows, batch_size=size, parent=parent) for size in (1, 3, 7, 100)]
    for other in each[1:]:
        assert other.nll == pytest.approx(each[0].nll, rel=1e-5)
        assert other.kl == pytest.approx(each[0].kl, rel=1e-4)
        assert other.accuracy == each[0].accuracy
        assert other.tokens == each[0].tokens


@every_parent
def test_the_parent_diverges_from_itself_by_nothing(name: str) -> None:
    parent, shape = permuted_parent(name)
    assert evaluate(parent, tokens(), parent=parent).kl == 0
    assert evaluate(cut(parent, shape, shape.parent), tokens(), parent=parent).kl == 0
    other = evaluate(cut(parent, shape, architecture_of_cut("narrow", shape)), tokens(), parent=parent)
    assert other.kl is not None
    assert other.kl > 0.01
    assert evaluate(parent, tokens()).kl is None


def test_divergence_is_that_of_the_parent_from_the_model() -> None:
    model, parent = tiny_parent("llama"), tiny_parent("llama", seed=1)
    windows = tokens()
    with torch.no_grad():
        q, p = (each(windows).logits[:, :-1].double().log_softmax(-1) for each in (model, parent))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert evaluate(model, windows, parent=parent).kl == pytest.approx(expected, rel=1e-5)


def test_models_side_by_side_score_what_each_scores_alone() -> None:
    models, parent = [tiny_parent("llama", seed=seed) for seed in (1, 2)], tiny_parent("llama")
    together = evaluate_all(models, tokens(batch=5), batch_size=2, parent=parent)
    assert together == [evaluate(m, tokens(batch=5), batch_size=2, parent=parent) for m in models]
    assert together[0] != together[1]


def test_windows_do_not_see_one_another() -> None:
    model = tiny_parent("llama")
    windows = tokens(batch=3)
    alone = [evaluate(model, windows[i : i + 1]).nll for i in range(3)]
    assert evaluate(model, windows).nll == pytest.approx(sum(alone) / 3, rel=1e-6)


def test_progress_tells_of_every_window() -> None:
    seen: list[int] = []
    evaluate(tiny_parent("llama"), tokens(batch=7), batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]


def test_a_broken_model_scores_nan_and_a_terrible_one_infinity() -> None:
    model = tiny_parent("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    scores = evaluate(model, tokens())
    assert math.isnan(scores.nll)
    assert math.isnan(scores.perplexity)
    assert Scores(1e4, 0.0, 1).perplexity == math.inf
    assert Scores(2.0, 0.25, 8).record() == {
        "nll": 2.0,
        "accuracy": 0.25,
        "tokens": 8,
        "kl": None,
        "perplexity": math.exp(2.0),
    }


def test_latency_is_measured_of_every_model() -> None:
    parent, shape = permuted_parent("llama")
    small = cut(parent, shape, architecture_of_cut("one block", shape))
    found = measure_latency([parent, small], context=8, tokens=2, repeats=3)
    assert len(found) == 2
    for latency in found:
        assert latency.prefill_ms > 0
        assert latency.decode_ms_per_token > 0
        assert (latency.batch, latency.context) == (1, 8)
