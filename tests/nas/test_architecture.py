"""An architecture is a value: one spelling, the same text and digest everywhere, and no illegal ones."""

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
from nas.report.words import blocks as in_words
from nas.shape import Shape, architecture_of, check_fits, head_widths_of, widths_of

SHAPE = Shape("llama", 64, 6, 4, 3, 8, 40, 97, 10, 20, 30, 40, 50, 60)


def blocks(source: int) -> st.SearchStrategy[Block]:
    """Legal blocks cut from one layer of `SHAPE`."""
    attention = st.tuples(st.integers(1, SHAPE.kv_groups), st.integers(1, SHAPE.queries_per_group))
    widths = st.tuples(st.one_of(st.just((0, 0)), attention), st.integers(0, SHAPE.ffn))
    head_width = st.sampled_from([None, *range(2, SHAPE.head_dim, 2)])
    return st.tuples(widths.filter(lambda w: w[0][0] + w[1] > 0), head_width).map(
        lambda drawn: Block(source, *drawn[0][0], drawn[0][1], drawn[1] if drawn[0][0][0] else None)
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Legal architectures under `SHAPE`."""
    sources = sorted(draw(st.sets(st.integers(0, SHAPE.blocks - 1), min_size=1)))
    hidden = draw(st.integers(1, SHAPE.hidden))
    return Architecture(hidden, tuple(draw(blocks(source)) for source in sources))


@given(architectures())
def test_json_gives_the_architecture_back(architecture: Architecture) -> None:
    text = architecture.to_json()
    assert Architecture.from_json(text) == architecture
    assert Architecture.from_json(json.dumps(json.loads(text), indent=2)).to_json() == text
    assert hash(Architecture.from_json(text)) == hash(architecture)


@given(architectures())
def test_widths_give_the_architecture_back(architecture: Architecture) -> None:
    narrowed = SHAPE.narrowed(architecture.hidden)
    again = architecture_of(widths_of(architecture, SHAPE), narrowed, head_widths_of(architecture, SHAPE))
    assert again == architecture
    assert json.loads(again.to_json())  # plain integers, not numpy's


@given(architectures(), architectures())
def test_equal_digests_mean_equal_architectures(left: Architecture, right: Architecture) -> None:
    assert (left.digest == right.digest) == (left == right)


def test_the_digest_is_the_same_in_another_process() -> None:
    examples = [SHAPE.parent, Architecture(32, (Block(1, 2, 3, 0), Block(4, 0, 0, 7)))]
    code = (
        "import sys; from nas.architecture import Architecture; "
        "print(*(Architecture.from_json(line).digest for line in sys.stdin), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(example.to_json() for example in examples),
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [example.digest for example in examples]
    assert SHAPE.parent.digest == "d7a4500502935cb5"  # and the same tomorrow: stored pairs are found by it


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ((0, 1, 0, 8), "1 KV groups with 0 queries each"),
        ((0, 0, 2, 8), "0 KV groups with 2 queries each"),
        ((3, 0, 0, 0), "block 3 keeps neither attention nor MLP"),
        ((0, -1, 1, 8), "kv_groups is -1"),
        ((0, 1, 1, 8.0), "ffn is 8.0"),
        ((0, True, 1, 8), "kv_groups is True"),
        ((0, np.int64(1), 1, 8), "kv_groups is"),
    ],
)
def test_an_illegal_block_is_refused_with_the_numbers(widths: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Block(*widths)


def test_blocks_out_of_order_or_used_twice_are_refused() -> None:
    for sources in ((1, 0), (0, 0)):
        with pytest.raises(InputError, match=r"in the parent's order"):
            Architecture(32, tuple(Block(source, 1, 1, 8) for source in sources))
    with pytest.raises(InputError, match="hidden width is 0"):
        Architecture(0, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "null",
        '{"hidden": 32}',
        '{"hidden": 32, "blocks": 3}',
        '{"hidden": 32, "blocks": [3]}',
        '{"hidden": 32, "blocks": [], "more": 1}',
        '{"hidden": 32, "blocks": [{"source": 0}]}',
        '{"hidden": "32", "blocks": []}',
        '{"hidden": 32, "blocks": [{"source": 0, "kv_groups": 1.5, "queries_per_group": 1, "ffn": 1}]}',
        "[" * 100_000,
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Architecture.from_json(text)


def test_uniform_means_that_one_width_describes_all_blocks() -> None:
    assert SHAPE.parent.is_uniform
    assert Architecture(64, SHAPE.parent.blocks[2:]).is_uniform
    assert not Architecture(64, (*SHAPE.parent.blocks[:2], Block(2, 4, 3, 39))).is_uniform


@given(architectures())
def test_every_part_of_a_parent_with_attention_fits_it(architecture: Architecture) -> None:
    if any(block.kv_groups for block in architecture.blocks):
        check_fits(architecture, SHAPE)
    else:
        with pytest.raises(InputError, match="attention in at least one block"):
            check_fits(architecture, SHAPE)


def test_people_read_a_line_a_block() -> None:
    architecture = Architecture(64, (Block(0, 4, 2, 0), Block(2, 0, 0, 40), Block(5, 1, 3, 8, 4)))
    assert in_words(architecture).splitlines() == [
        "0: 4 × 2 heads, no MLP",
        "2: no attention, 40 channels",
        "5: 1 × 3 heads of 4 channels, 8 channels",
    ]
    assert in_words(architecture, "<br>").count("<br>") == 2
