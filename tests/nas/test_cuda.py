"""What holds on the CPU holds on a GPU; skipped where there is none."""

import pytest
import torch

from nas.building import SubnetMeter
from nas.calibration import calibrate
from nas.importance.elimination import elimination
from nas.laws import LAWS, broken
from nas.laws.case import Case
from nas.recovery.training import recover
from nas.shape import widths_of
from tests.nas.tiny_models import PARENTS, config_of

pytestmark = pytest.mark.gpu

OF_FILES = ("saved", "needs its code", "narrower is saved", "ties")
"""Laws about checkpoints begin so: these are loaded on the CPU."""


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("name", PARENTS)
def test_a_family_keeps_the_laws_on_a_gpu(name: str) -> None:
    held = Case(config_of(name), "cuda")
    laws = [law for law in LAWS if not law.startswith(OF_FILES)]
    assert held.parent.device.type == "cuda"
    assert not {law: sentence for law in laws if (sentence := broken(law, held))}


def test_a_batch_that_does_not_fit_is_halved() -> None:
    held = Case(config_of("llama"), "cuda")
    windows = torch.randint(held.shape.vocab, (1024, 512), device="cuda")
    widths = widths_of(held.cuts["narrow"], held.shape)
    alone = SubnetMeter(held.permuted, held.shape, None, windows, batch_size=8)(widths)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - 64 * 2**20), dtype=torch.uint8, device="cuda")
    try:
        meter = SubnetMeter(held.permuted, held.shape, None, windows, batch_size=1024)
        found = meter(widths)
    finally:
        del ballast
        torch.cuda.empty_cache()
    assert meter.batch_size < 1024
    assert found.nll == pytest.approx(alone.nll, abs=1e-5)


def test_columns_leave_in_the_order_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(48, 150, generator=generator), torch.randn(600, 150, generator=generator)
    gram = (inputs.T @ inputs).double() / 600
    there = elimination(weight.cuda(), gram.cuda(), 1).cpu()
    torch.testing.assert_close(there, elimination(weight, gram, 1), rtol=1e-9, atol=0)


def test_statistics_are_those_of_the_cpu() -> None:
    held = Case(config_of("llama"), "cuda")
    there = calibrate(held.parent, held.windows)
    here = calibrate(held.parent.cpu(), held.windows.cpu())
    for ours, theirs in zip(here.ffn_gram, there.ffn_gram, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-6)


def test_recovery_lowers_the_loss() -> None:
    held = Case(config_of("llama"), "cuda")
    subnet = held.cut("narrow", own=True)
    after = recover(subnet, held.windows, steps=8, validation=held.windows)
    losses = [step.validation for step in after.history if step.validation is not None]
    assert losses[-1] < losses[0]
