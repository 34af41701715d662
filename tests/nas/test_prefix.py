"""Measuring from the first block that differs gives the same scores to the last bit, with less work."""

import numpy as np
import pytest

from nas import evaluate
from nas.building import SubnetMeter
from nas.prefix import PrefixMeter
from nas.shape import widths_of
from tests.nas.tiny_models import case_of


@pytest.mark.parametrize("name", ["llama", "ministral", "gemma2", "gpt2", "bloom", "qwen3_moe", "falcon"])
@pytest.mark.parametrize("states", [1000, 2, 0])
def test_scores_are_the_same_whatever_came_before(name: str, states: int) -> None:
    case = case_of(name)
    room = states * case.windows.numel() * case.shape.hidden * 4
    plain = SubnetMeter(case.permuted, case.shape, None, case.windows, 5)
    sharing = PrefixMeter(case.permuted, case.shape, None, case.windows, 5, room=room)
    rows = [widths_of(architecture, case.shape) for architecture in case.cuts.values()]
    turns = [case.shape.whole, *rows, *rows[::-1], case.shape.whole]
    assert [sharing(row) for row in turns] == [plain(row) for row in turns]
    blocks = sum(int((row > 0).any(1).sum()) for row in turns)
    assert sharing.passed < blocks if states else sharing.passed == 0


def test_only_what_differs_is_run() -> None:
    case = case_of("llama")
    meter = PrefixMeter(case.permuted, case.shape, None, case.windows, 8)
    whole = case.shape.whole
    last = whole.copy()
    last[-1, 2] = 8
    passed = []
    for row in (whole, last, last, whole):
        before = meter.passed
        meter(row)
        passed.append(meter.passed - before)
    assert passed == [len(whole), 1, 0, 1]


def test_where_the_stream_does_not_fit_a_subnet_is_measured_without(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("llama")
    meter = PrefixMeter(case.permuted, case.shape, None, case.windows, 8)
    expected = meter(case.shape.whole)
    calls = iter([MemoryError(), None])
    summed = evaluate.summed

    def full(*args: object) -> object:
        error = next(calls, None)
        if error is not None:
            raise error
        return summed(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "summed", full)
    assert meter(case.shape.whole) == expected
    assert (meter.batch_size, meter.passed) == (8, case.shape.blocks)
    monkeypatch.setattr(evaluate, "summed", lambda *_: np.empty(0).fill(0).nothing)
    with pytest.raises(AttributeError):
        meter(case.shape.whole)
    monkeypatch.setattr(evaluate, "summed", summed)
    assert meter(case.shape.whole) == expected
    assert meter.passed == 3 * case.shape.blocks  # twice since: the stream that broke off is not used
