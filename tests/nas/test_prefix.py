"""Measuring from the first block that differs gives the same scores to the last bit, with less work."""

import numpy as np
import pytest

from nas import building, evaluate
from nas.building import SubnetMeter
from nas.prefix import PrefixMeter
from nas.shape import widths_of
from tests.nas.tiny_models import case_of


@pytest.mark.parametrize("name", ["llama", "ministral", "gemma2", "gpt2", "bloom", "qwen3_moe", "falcon"])
@pytest.mark.parametrize("room", [2**30, 1])
def test_scores_are_the_same_whatever_came_before(name: str, room: int) -> None:
    case = case_of(name)
    plain = SubnetMeter(case.permuted, case.shape, None, case.windows, 5)
    sharing = PrefixMeter(case.permuted, case.shape, None, case.windows, 5, room=room)
    rows = [widths_of(architecture, case.shape) for architecture in case.cuts.values()]
    turns = [case.shape.whole, *rows, *rows[::-1], case.shape.whole]
    assert [sharing(row) for row in turns] == [plain(row) for row in turns]
    blocks = sum(int((row > 0).any(1).sum()) for row in turns)
    assert sharing.passed < blocks if room > 1 else sharing.passed == blocks


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


def test_after_an_error_and_after_a_smaller_batch_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("llama")
    meter = PrefixMeter(case.permuted, case.shape, None, case.windows, 8)
    expected = SubnetMeter(case.permuted, case.shape, None, case.windows, 4)(case.shape.whole)
    meter(case.shape.whole)
    calls = iter([MemoryError(), None])
    summed = evaluate.summed

    def full(*args: object) -> object:
        error = next(calls, None)
        if error is not None:
            raise error
        return summed(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "summed", full)
    monkeypatch.setattr(building, "free_memory", lambda: None)
    assert meter(case.shape.whole) == expected
    assert (meter.batch_size, meter.passed) == (4, 2 * case.shape.blocks)
    monkeypatch.setattr(evaluate, "summed", lambda *_: np.empty(0).fill(0).nothing)
    with pytest.raises(AttributeError):
        meter(case.shape.whole)
    monkeypatch.setattr(evaluate, "summed", summed)
    assert meter(case.shape.whole) == expected
    assert meter.passed == 3 * case.shape.blocks
