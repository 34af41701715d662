"""Distillation: a true divergence over the vocabulary, a lower bound over its top, nothing from oneself."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data.errors import InputError
from nas.recovery.losses import Reference, divergence, objective
from nas.recovery.teacher import LiveTeacher, StoredTeacher, stored_teacher
from tests.nas.tiny_models import VOCAB, tiny_parent, tokens

ROWS = torch.arange(2)
ROUNDING = dict(rtol=1e-5, atol=1e-6)
"""Of float32 sums over a vocabulary of 61."""
HALF = 2e-3
"""Of a log-probability near -4 in float16, which has 11 bits: 2^-9 = 0.002."""


def logits(seed: int, n: int = 5, spread: float = 3.0) -> Tensor:
    return torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def top(log_p: Tensor, k: int) -> Reference:
    """The exact k + rest cells of log-probabilities (n, vocab)."""
    values, indices = log_p.topk(k)
    rest = log_p.exp().scatter(-1, indices, 0.0).sum(-1).log()
    return Reference(values, indices, rest)


def slow_divergence(teacher: Tensor, student: Tensor) -> float:
    """Token by token, in float64, as the formula says."""
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    each = [sum(a * (a.log() - b.log()) for a, b in zip(*row, strict=True)) for row in zip(p, q, strict=True)]
    return float(sum(each)) / len(each)


def test_the_divergence_is_the_mean_over_positions_of_the_sum_over_the_vocabulary() -> None:
    teacher, student = logits(0), logits(1)
    assert float(divergence(student, Reference(teacher.log_softmax(-1)))) == pytest.approx(
        slow_divergence(teacher, student), rel=1e-5
    )


def test_the_top_of_all_tokens_is_the_full_divergence() -> None:
    teacher, student = logits(0).log_softmax(-1), logits(1)
    for k in (VOCAB, VOCAB - 1):  # a rest of one token is that token
        torch.testing.assert_close(
            divergence(student, top(teacher, k)), divergence(student, Reference(teacher)), **ROUNDING
        )


def test_fewer_tokens_never_show_more_divergence() -> None:
    for seed in range(5):
        teacher, student = logits(seed).log_softmax(-1), logits(seed + 50)
        found = [float(divergence(student, top(teacher, k))) for k in (1, 2, 8, 30, VOCAB)]
        assert found == sorted(found)
        assert found[0] > 0


def test_the_gradient_of_the_top_pulls_the_rest_together() -> None:
    """d KL / d z_j is q_j - p_j in the top, and in the rest q_j (1 - r / s): only their sum is taught."""
    teacher, student = logits(0).log_softmax(-1), logits(1).requires_grad_()
    reference = top(teacher, 4)
    (divergence(student, reference) * len(student)).backward()
    q, p = student.detach().softmax(-1), teacher.exp()
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, reference.indices, True)
    r, s = (each.masked_fill(inside, 0).sum(-1, keepdim=True) for each in (p, q))
    torch.testing.assert_close(student.grad, torch.where(inside, q - p, q * (1 - r / s)), **ROUNDING)


@pytest.mark.parametrize("k", [None, 1, 7, VOCAB])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_model_has_nothing_to_learn_from_itself(k: int | None, temperature: float) -> None:
    own = logits(3).requires_grad_()
    log_p = (own.detach() / temperature).log_softmax(-1)
    reference = Reference(log_p) if k is None else top(log_p, k)
    loss = objective(own, torch.zeros(5, dtype=torch.long), reference, temperature, alpha=0.0)
    loss.backward()
    # Rounding of float32 alone, times T^2.
    assert abs(float(loss.detach())) < 1e-6 * temperature**2
    assert float(own.grad.abs().max()) < 1e-6 * temperature**2


def test_the_objective_mixes_both_losses() -> None:
    student, teacher, targets = logits(1), logits(0), torch.arange(5)
    reference = Reference((teacher / 2).log_softmax(-1))
    entropy = functional.cross_entropy(student, targets)
    softened = 4 * slow_divergence(teacher / 2, student / 2)
    assert float(objective(student, targets, reference, 2.0, 0.0)) == pytest.approx(softened, rel=1e-5)
    assert float(objective(student, targets, reference, 2.0, 1.0)) == pytest.approx(float(entropy), rel=1e-5)
    assert float(objective(student, targets, reference, 2.0, 0.3)) == pytest.approx(
        0.7 * softened + 0.3 * float(entropy), rel=1e-5
    )
    assert torch.equal(objective(student, targets, None, 1.0, 0.0), entropy)


def test_a_token_that_has_everything_leaves_no_rest() -> None:
    teacher = torch.full((1, VOCAB), -1e3).index_fill(1, torch.tensor([4]), 0.0).log_softmax(-1)
    student = logits(1, 1).requires_grad_()
    loss = divergence(student, top(teacher, 2))
    loss.backward()
    torch.testing.assert_close(loss, -student.log_softmax(-1)[0, 4], **ROUNDING)
    assert bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_stored_logits_say_what_the_parent_says(tmp_path: Path, temperature: float) -> None:
    parent, windows = tiny_parent("llama"), tokens()
    student = logits(1, windows[:, 1:].numel())
    live = LiveTeacher(parent, temperature)(ROWS, windows)
    for k in (3, VOCAB):
        stored = stored_teacher(parent, windows, k, tmp_path, temperature=temperature)(ROWS, windows)
        exact = top(live.log_p, k)
        assert torch.equal(stored.indices, exact.indices)
        torch.testing.assert_close(stored.log_p, exact.log_p, rtol=HALF, atol=HALF)
        whole = torch.cat([stored.log_p, stored.log_rest[:, None]], -1).logsumexp(-1)
        torch.testing.assert_close(whole, torch.zeros_like(whole), **ROUNDING)
        torch.testing.assert_close(
            divergence(student, stored), divergence(student, exact), rtol=HALF, atol=HALF
        )


def test_logits_are_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, windows = tiny_parent("llama"), tokens()
    seen: list[int] = []
    first = stored_teacher(parent, windows, 3, tmp_path, progress=seen.append)
    assert sum(seen) == len(windows)
    assert len(list(tmp_path.glob("logits-*"))) == 1
    monkeypatch.setattr(parent, "forward", lambda *_, **__: pytest.fail("the parent was asked again"))
    again = stored_teacher(parent, windows, 3, tmp_path)
    assert again.digest == first.digest
    for one, other in zip(
        again(ROWS, windows).__dict__.values(), first(ROWS, windows).__dict__.values(), strict=True
    ):
        assert torch.equal(one, other)


def test_another_parent_text_k_or_temperature_is_stored_apart(tmp_path: Path) -> None:
    def digest(name: str = "llama", seed: int = 0, k: int = 3, temperature: float = 1.0) -> str:
        parent, windows = tiny_parent(name), tokens(seed=seed)
        return stored_teacher(parent, windows, k, tmp_path, temperature=temperature).digest

    assert len({digest(), digest("qwen2"), digest(seed=1), digest(k=4), digest(temperature=2.0)}) == 5


def test_a_damaged_file_is_written_again(tmp_path: Path) -> None:
    parent, windows = tiny_parent("llama"), tokens()
    stored_teacher(parent, windows, 3, tmp_path)
    (path,) = tmp_path.glob("logits-*")
    path.write_bytes(path.read_bytes()[:100])
    assert isinstance(stored_teacher(parent, windows, 3, tmp_path), StoredTeacher)


def test_what_cannot_be_taught_is_refused(tmp_path: Path) -> None:
    parent, windows = tiny_parent("llama"), tokens()
    for k in (0, VOCAB + 1):
        with pytest.raises(InputError, match=f"1 to {VOCAB}"):
            stored_teacher(parent, windows, k, tmp_path)
    with pytest.raises(InputError, match="temperature"):
        LiveTeacher(parent, 0.0)
    teacher = stored_teacher(parent, windows, 3, tmp_path)
    with pytest.raises(InputError, match="other windows"):
        teacher(ROWS, tokens(seed=1))
