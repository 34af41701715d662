"""The space: every knob setting spells one architecture, every architecture has one spelling."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.cost import CostModel
from nas.encoding import Encoding
from nas.sampling import SAMPLERS
from nas.shape import Shape, architecture_of, widths_of
from nas.space import KINDS, SearchSpace, default_space
from tests.nas.small_spaces import everything, hints_of, part_of, small_shape, small_space, spaces

ROOT = Path(__file__).resolve().parents[2]


def a_choice(data: st.DataObject, space: SearchSpace) -> dict[str, int]:
    return {name: data.draw(st.sampled_from(choices), label=name) for name, choices in space.knobs.items()}


def encoding_of(shape: Shape) -> Encoding:
    hints = hints_of(shape)
    return Encoding(CostModel(shape, 8, 2), hints.attention_error, hints.mlp_error)


@given(st.data(), spaces())
def test_an_architecture_is_built_from_its_choice(data: st.DataObject, space: SearchSpace) -> None:
    architecture = space.build(a_choice(data, space))
    canonical = space.choice_of(architecture)
    assert list(canonical) == list(space.knobs)
    assert space.build(canonical) == architecture
    assert space.choice_of(space.build(canonical)) == canonical


@given(st.data(), spaces())
def test_encodings_are_equal_exactly_where_architectures_are(data: st.DataObject, space: SearchSpace) -> None:
    choices = [a_choice(data, space) for _ in range(2)]
    if data.draw(st.booleans(), label="nearly the same"):
        knob = data.draw(st.sampled_from(list(space.knobs)), label="but for")
        choices[1] = {**choices[0], knob: choices[1][knob]}
    one, other = (space.build(choice) for choice in choices)
    rows = np.stack([widths_of(one, space.shape), widths_of(other, space.shape)])
    features = encoding_of(space.shape)(rows)
    assert (features[0] == features[1]).all() == (one == other)
    assert (space.choice_of(one) == space.choice_of(other)) == (one == other)
    assert (one.digest == other.digest) == (one == other)


@given(st.data(), spaces())
def test_indices_and_widths_are_two_forms_of_one_thing(data: st.DataObject, space: SearchSpace) -> None:
    rows = np.array([[data.draw(st.integers(0, int(depth) - 1)) for depth in space.depths] for _ in range(3)])
    widths = space.widths(rows)
    assert widths.shape == (3, space.shape.blocks, len(KINDS))
    assert space.contains(widths).all()
    assert (space.widths(space.indices(widths)) == widths).all()
    assert (space.canonical(widths) == widths).all()
    for row in widths:
        assert (widths_of(architecture_of(row, space.shape), space.shape) == row).all()


def test_no_rows_are_no_architectures() -> None:
    space = small_space()
    none = np.empty((0, len(space.knobs)), dtype=np.int64)
    assert space.widths(none).shape == (0, 3, 3)
    assert space.indices(space.widths(none)).shape == none.shape
    assert space.contains(space.widths(none)).shape == (0,)
    assert encoding_of(space.shape)(space.widths(none)).shape[0] == 0


@given(spaces())
def test_the_largest_choice_of_a_whole_space_builds_the_parent(space: SearchSpace) -> None:
    whole = default_space(space.shape)
    assert whole.build({name: choices[-1] for name, choices in whole.knobs.items()}) == space.shape.parent


def test_skipped_parts_have_one_spelling() -> None:
    space = small_space(2)
    choice = space.choice_of(space.shape.parent) | {"0.kv_groups": 0}
    spelled = {space.build(choice | {"0.queries_per_group": queries}) for queries in (1, 2)}
    assert spelled == {Architecture(16, (Block(0, 0, 0, 4), Block(1, 2, 2, 4)))}
    assert space.choice_of(spelled.pop())["0.queries_per_group"] == 1
    assert (
        len(everything(space)) == 25 * 25 - 5 * 5
    )  # 4 kinds of attention or none, 5 widths, never no attention


def test_what_is_outside_is_refused_with_the_choices() -> None:
    space = small_space(2)
    choice = space.choice_of(space.shape.parent)
    with pytest.raises(InputError, match=r"1.ffn=5 is not in the space; choose from \(0, 1, 2, 3, 4\)"):
        space.build(choice | {"1.ffn": 5})
    narrow = space.restrict({"0.ffn": (2, 4)})
    with pytest.raises(InputError, match="outside the space"):
        narrow.choice_of(Architecture(16, (Block(0, 1, 1, 3),)))
    # A skipped attention is in the space only where skipping is a choice.
    kept = space.restrict({"0.kv_groups": (1, 2)})
    with pytest.raises(InputError, match="outside the space"):
        kept.choice_of(Architecture(16, (Block(0, 0, 0, 4), Block(1, 1, 1, 4))))


@given(st.data(), spaces(most_blocks=2))
def test_a_restricted_space_holds_the_kept_choices(data: st.DataObject, space: SearchSpace) -> None:
    name = data.draw(st.sampled_from(list(space.knobs)))
    kept = data.draw(st.lists(st.sampled_from(space.knobs[name]), min_size=1, unique=True))
    part = space.restrict({name: kept})
    assert part.knobs[name] == tuple(sorted(kept))
    assert {key: value for key, value in part.knobs.items() if key != name} == {
        key: value for key, value in space.knobs.items() if key != name
    }
    choice = a_choice(data, part)
    assert space.build(choice) == part.build(choice)
    assert part.size <= space.size


@pytest.mark.parametrize("choices", [(), (2, 1), (1, 1)])
def test_choices_are_ascending_and_distinct(choices: tuple[int, ...]) -> None:
    space = small_space(1)
    with pytest.raises(InputError, match="knob 0.ffn has choices"):
        SearchSpace(space.shape, {**space.knobs, "0.ffn": choices})


def test_knobs_are_those_of_the_parent_in_order() -> None:
    space = small_space(2)
    for knobs in (dict(reversed(space.knobs.items())), small_space(1).knobs, {}):
        with pytest.raises(InputError, match="6 knobs BLOCK.KIND in order"):
            SearchSpace(space.shape, knobs)


@pytest.mark.parametrize("ffn", [1, 5, 31, 64, 512, 688, 11008])
def test_the_grid_of_channels_is_even_fine_and_whole(ffn: int) -> None:
    choices = default_space(small_shape(1, ffn=ffn)).knobs["0.ffn"]
    assert choices[0] == 0
    assert choices[-1] == ffn
    assert len(choices) > min(ffn, 32)
    step = choices[1]
    assert step & (step - 1) == 0  # a power of two, which hardware likes
    assert all(width % step == 0 for width in choices[:-1])


@pytest.mark.parametrize(("queries", "choices"), [(1, (1,)), (4, (1, 2, 4)), (7, (1, 2, 4, 7))])
def test_queries_are_powers_of_two_and_all(queries: int, choices: tuple[int, ...]) -> None:
    space = default_space(small_shape(1, kv_groups=3, queries=queries))
    assert space.knobs["0.queries_per_group"] == choices
    assert space.knobs["0.kv_groups"] == (0, 1, 2, 3)


SAMPLE = """
import json, sys
import numpy as np
from nas.sampling import SAMPLERS
from tests.nas.small_spaces import hints_of, part_of, small_space
space = small_space()
rows = {
    name: sampler(space, part_of(space, 0.6), 30, np.random.default_rng(7), hints_of(space.shape)).tolist()
    for name, sampler in SAMPLERS.items()
}
json.dump(rows, sys.stdout)
"""


def test_equal_seeds_give_equal_samples_in_another_process_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    elsewhere = json.loads(done.stdout)
    space = small_space()
    for name, sampler in SAMPLERS.items():
        here, again, other = (
            sampler(space, part_of(space, 0.6), 30, np.random.default_rng(seed), hints_of(space.shape))
            for seed in (7, 7, 8)
        )
        assert here.tolist() == again.tolist() == elsewhere[name]
        assert here.tolist() != other.tolist()
