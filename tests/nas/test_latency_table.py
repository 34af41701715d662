"""Latencies add up over modules, are known for every choice, and limit a search like any other cost."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from nas.cost import Budget, CostModel, budget_of
from nas.latency_grid import calibrated, drawn, measure_table, rising
from nas.latency_table import Calibration, LatencyTable, Phase, Request, read_latency, write_latency
from nas.proposals import check_reachable, fit
from nas.sampling import SAMPLERS
from nas.search import search
from nas.shape import Shape
from nas.space import default_space
from tests.nas.small_spaces import SEQ_LEN, everything, hints_of, score, small_space
from tests.nas.tiny_models import permuted_parent

EXACT = Calibration(1.0, 0.0, 0.0, 0.0, (), ())


def phase(shape: Shape, scale: float, calibration: Calibration = EXACT) -> Phase:
    """A module takes as long as what it keeps of itself, and an attention three times as long as an MLP."""
    heads = np.outer(np.arange(shape.kv_groups + 1), np.arange(shape.queries_per_group + 1))
    attention = 3 * scale * (heads / heads.max() - 1.0)
    mlp = scale * (np.arange(shape.ffn + 1) / shape.ffn - 1.0)
    return Phase(scale * (1 + 4 * shape.blocks), attention, mlp, calibration)


def small_latency(shape: Shape) -> LatencyTable:
    return LatencyTable(
        "a device", "float32", Request(2, 16, 4), shape, phase(shape, 10.0), phase(shape, 1.0)
    )


def test_a_request_is_its_prefill_and_its_tokens_and_adds_up_over_modules() -> None:
    shape = small_space(3).shape
    table, rows = small_latency(shape), everything(small_space(3))
    assert np.allclose(table(rows), table.prefill(rows) + 4 * table.decode(rows))
    assert table(np.tile([2, 2, 4], (3, 1))) == pytest.approx(14 * 13.0)


def test_a_calibration_recovers_a_line_and_says_how_far_it_is_off() -> None:
    sums = np.linspace(5, 20, 16)
    found = calibrated(sums, 2.0 + 1.5 * sums)
    assert (found.slope, found.offset) == (pytest.approx(1.5), pytest.approx(2.0))
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.raw_error > 0.3
    assert calibrated(sums, sums[::-1].copy()).slope == 1.0  # no line that falls
    noise = np.random.default_rng(0).lognormal(0, 0.3, 16)
    assert calibrated(np.full(16, 10.0) + 1e-3 * sums, 10 * noise).slope == 1.0  # nor one that fits noise


def test_no_choice_takes_less_than_a_smaller_one() -> None:
    rng = np.random.default_rng(0)
    added = rng.normal(0, 1, (5, 4))
    added[2, 1] = np.nan
    found = rising(added)
    assert np.array_equal(np.isnan(found), np.isnan(added))
    full = np.where(np.isnan(found), -np.inf, found)
    for axis in (0, 1):
        steps = np.moveaxis(full, axis, 0)
        known = ~np.isinf(steps[1:]) & ~np.isinf(steps[:-1])
        assert (steps[1:] >= steps[:-1])[known].all()
    assert (found[~np.isnan(found)] >= added[~np.isnan(added)]).all()


def test_a_latency_budget_is_hard() -> None:
    space = small_space(3)
    cost = CostModel(space.shape, SEQ_LEN, 2, small_latency(space.shape))
    whole = cost(space.shape.parent)["latency_ms"]
    assert cost.names[-1] == "latency_ms"
    budget = budget_of(cost, latency_ms=0.6 * whole, keep=0.9)
    rng = np.random.default_rng(0)
    rows = fit(space, budget, rng.integers(0, space.depths, (50, len(space.depths))), rng)
    assert budget.allows(space.widths(rows)).all()
    assert (cost.of_widths(space.widths(rows))["latency_ms"] <= 0.6 * whole).all()
    for sampler in SAMPLERS.values():
        assert budget.allows(space.widths(sampler(space, budget, 12, rng, hints_of(space.shape)))).all()
    found = search(space, budget, score, starts=rows[:5], seed=0, trials=240)
    assert budget.allows(space.widths(found.indices)).all()
    assert found.predicted[0] == pytest.approx(score(everything(space, budget)).max())
    with pytest.raises(InputError, match="--max-latency 1 is too small: give"):
        check_reachable(space, Budget(cost, {"latency_ms": 1.0}))


def test_without_a_table_there_is_no_such_limit_and_narrower_streams_have_none() -> None:
    shape = small_space(3).shape
    with pytest.raises(InputError, match="unknown cost 'latency_ms'"):
        budget_of(CostModel(shape, SEQ_LEN, 2), latency_ms=3.0)
    cost = CostModel(shape, SEQ_LEN, 2, small_latency(shape))
    assert "latency_ms" not in cost(replace(shape.parent, hidden=8))
    with pytest.raises(InputError, match="--max-latency of -1"):
        budget_of(cost, latency_ms=-1.0)


def test_what_is_written_is_read_back_and_other_shapes_are_refused(tmp_path: Path) -> None:
    shape = small_space(3).shape
    table, path = small_latency(shape), tmp_path / "latency.json"
    write_latency(table, path)
    again, rows = read_latency(path, shape), everything(small_space(3))
    assert np.array_equal(again(rows), table(rows))
    assert (again.request, again.device, again.words()) == (table.request, table.device, table.words())
    with pytest.raises(InputError, match="another shape"):
        read_latency(path, small_space(2).shape)
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        read_latency(path, shape)


@pytest.mark.parametrize("name", ["llama-biased", "qwen3"])
def test_every_choice_of_a_space_is_measured(name: str) -> None:
    parent, shape = permuted_parent(name)
    space, turns = default_space(shape, steps=4), []
    table = measure_table(parent, shape, space, Request(1, 8, 2), repeats=1, progress=turns.append)
    rng = np.random.default_rng(0)
    rows = space.widths(rng.integers(0, space.depths, (200, len(space.depths))))
    assert np.isfinite(table(rows)).all()
    for phase in (table.prefill, table.decode):
        assert phase.attention[-1, -1] == phase.mlp[-1] == 0.0
        assert np.nanmax(phase.attention) == np.nanmax(phase.mlp) == 0.0  # the whole module takes most
    assert len(turns) % 2 == 0  # a turn to warm up and one that counts, of every model
    assert asdict(table.request) == {"batch": 1, "context": 8, "tokens": 2}
    subnets = drawn(space, 40, rng)
    assert (
        (subnets[..., 0] > 0).any(1).all() and (subnets[..., 0] == 0).any() and (subnets[..., 2] == 0).any()
    )
