"""Additive models are solved exactly, and single replacements are what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyRegressor

from data.errors import InputError
from nas.cost import COUNTED
from nas.damage import DamagePredictor
from nas.encoding import Encoding
from nas.knapsack import line_damage, optimum
from nas.pairs import Pair
from nas.replacement import ModuleDamage, ReplacementPredictor, module_damage, replaced, replacements
from nas.shape import architecture_of
from nas.space import SearchSpace
from tests.nas.small_spaces import damage, everything, hints_of, part_of, score, small_space


def singles(space: SearchSpace) -> ModuleDamage:
    rows = replacements(space)
    pairs = [Pair(architecture_of(row, space.shape), float(score(row)), "replaced") for row in rows]
    return module_damage(pairs, space.shape, 0.0)


def test_replacements_change_one_module_and_all_choices_are_there() -> None:
    space = small_space(3)
    rows, modules = replaced(space)
    whole = np.array([space.shape.kv_groups, space.shape.queries_per_group, space.shape.ffn])
    for row, module in zip(rows, modules, strict=True):
        differs = row != whole
        block, kind = divmod(int(module), 2)
        assert not np.delete(differs, block, axis=0).any()
        assert not differs[block, 2 if kind == 0 else slice(0, 2)].any()
    assert len(np.unique(np.column_stack([rows.reshape(len(rows), -1), modules]), axis=0)) == len(rows)
    groups, queries, ffn = (len(choices) for choices in space.choices[:3])
    assert len(rows) == space.shape.blocks * ((groups - 1) * queries + 1 + ffn)
    assert len(replacements(space)) == len(rows) - 2 * space.shape.blocks


def test_sums_of_single_replacements_are_exact_where_damage_adds_up() -> None:
    space = small_space(3)
    added, rows = singles(space), everything(space)
    assert np.allclose(added(rows), damage(rows))
    predictor = ReplacementPredictor(added, 0.0).fit(np.zeros((0, 9)), np.zeros(0))
    assert np.allclose(predictor.predict(rows.reshape(len(rows), -1).astype(float)), score(rows))


def test_other_pairs_are_passed_over_and_none_at_all_is_said() -> None:
    space = small_space(2)
    many = np.tile([1, 1, 2], (2, 1))
    pair = Pair(architecture_of(many, space.shape), -1.0, "uniform")
    with pytest.raises(InputError, match="none of the 1 pairs"):
        module_damage([pair], space.shape, 0.0)


@settings(max_examples=40)
@given(
    share=st.floats(0.1, 1.0),
    cost=st.sampled_from(COUNTED),
    seed=st.integers(0, 999),
    blocks=st.integers(1, 3),
)
def test_the_exact_optimum_is_brute_force(share: float, cost: str, seed: int, blocks: int) -> None:
    space = small_space(blocks)
    budget = part_of(space, share, cost)
    rng = np.random.default_rng(seed)
    known = singles(space)
    # Any damage at all, also such as rewards smaller choices.
    noise = [rng.normal(0, 0.1, each.shape) for each in (known.attention, known.mlp)]
    wild = ModuleDamage(known.attention + noise[0], known.mlp + noise[1])
    within = everything(space, budget)
    found = optimum(space, budget, wild)
    if found is None:
        # Next to the limit there is room that is not used; then nothing else fits either.
        assert len(within) == 0 or budget.load(within).min() > 1 - 1e-5
        return
    widths = space.widths(found)
    assert budget.allows(widths).all()
    assert (widths[..., 0] > 0).any()
    comfortable = within[budget.load(within) <= 1 - 1e-5]
    assert wild(widths)[0] <= wild(comfortable).min() + 1e-6


def test_unknown_choices_are_not_made_and_nothing_may_fit() -> None:
    space = small_space(2)
    known = singles(space)
    mlp = known.mlp.copy()
    mlp[:, 1:-1] = np.nan
    found = optimum(space, part_of(space, 0.6), ModuleDamage(known.attention, mlp))
    assert found is not None
    assert np.isin(space.widths(found)[..., 2], (0, space.shape.ffn)).all()
    assert optimum(space, part_of(space, 1e-9), known) is None


def test_the_line_of_a_fitted_predictor_is_its_module_damage() -> None:
    space = small_space(3)
    budget, hints = part_of(space, 1.0), hints_of(space.shape)
    encoding = Encoding(budget.cost, hints.attention_error, hints.mlp_error)
    rows = everything(space)
    fitted = DamagePredictor(DummyRegressor(strategy="constant", constant=0.0), 0.0, encoding.errors)
    fitted.fit(encoding(rows), score(rows))
    line = line_damage(fitted, hints)
    predicted = -fitted.predict(encoding(rows))
    big = predicted > 1e-3  # below, the predictor has a floor
    assert np.allclose(line(rows)[big], predicted[big])
