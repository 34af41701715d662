"""Least-squares repair: what it minimises never rises, and nothing else changes."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture, Block
from nas.calibration import Statistics, calibrate
from nas.families import layers_of, shape_of
from nas.laws.case import whole_bank
from nas.laws.streams import behind_last
from nas.linear import damped, prefix_solutions, ridge, strength
from nas.ranking import permute
from nas.repair.bank import Bank, attention_key, mlp_key, queries_key, repair_block
from nas.repair.sequential import repair_front_to_back
from nas.repair.stream import Stream, input_of
from nas.shape import Shape
from nas.subnet import cut
from tests.nas.tiny_models import (
    CUTS,
    architecture_of_cut,
    case_of,
    permuted_parent,
    random_ranking,
    tiny_parent,
    tokens,
)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error_of(weight: Tensor, gram: Tensor, other: Tensor) -> float:
    """Mean squared difference of the outputs of `weight` and of `other` on its first columns."""
    lost = weight.double().clone()
    lost[:, : other.shape[1]] -= other.double()
    return float((lost @ gram * lost).sum())


def prepared(name: str, **settings: object) -> tuple[PreTrainedModel, Shape, Statistics, Bank]:
    parent = tiny_parent(name, **settings)
    shape = shape_of(parent)
    parent = permute(parent, shape, random_ranking(shape))
    statistics = calibrate(parent, tokens(batch=24))
    return parent, shape, statistics, whole_bank(parent, shape, statistics)


@pytest.mark.parametrize("seed", range(3))
def test_every_prefix_is_the_closed_form_and_its_error_the_measured_one(seed: int) -> None:
    n = 9
    weight, inputs = random(5, n, seed=seed), random(30, n, seed=seed + 9) @ random(n, n, seed=seed + 99)
    gram = inputs.T @ inputs / 30
    projected, inverse, error = prefix_solutions(weight, gram)
    damp = damped(gram)
    for k in range(n + 1):
        direct = weight @ damp[:, :k] @ torch.linalg.inv(damp[:k, :k])
        torch.testing.assert_close(projected[:, :k] @ inverse[:k, :k], direct)
        assert float(error[k]) == pytest.approx(error_of(weight, damp, direct), abs=1e-9)
    assert (error.diff() <= 0).all()
    torch.testing.assert_close(projected @ inverse, weight)


@pytest.mark.parametrize("relative", [1e-3, 0.1, 10.0])
def test_ridge_is_least_squares_on_the_augmented_system(relative: float) -> None:
    x, y, towards = random(40, 6), random(40, 4, seed=1), random(4, 6, seed=2)
    gram, cross = x.T @ x / 40, y.T @ x / 40
    pull = strength(gram, relative) ** 0.5
    rows = torch.cat([x / 40**0.5, pull * torch.eye(6, dtype=torch.float64)])
    wanted = torch.cat([y / 40**0.5, pull * towards.T])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(ridge(gram, cross, towards, relative), expected)


def test_a_dead_module_is_repaired_to_what_it_was() -> None:
    weight, nothing = random(4, 6), torch.zeros(6, 6, dtype=torch.float64)
    torch.testing.assert_close(ridge(nothing, torch.zeros(4, 6), weight, 0.1), weight)
    projected, inverse, _ = prefix_solutions(weight, nothing)
    torch.testing.assert_close(projected[:, :3] @ inverse[:3, :3], weight[:, :3])


def test_a_gram_matrix_with_nan_is_an_error() -> None:
    gram = torch.full((3, 3), torch.nan, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="NaN"):
        prefix_solutions(random(2, 3), gram)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_everything_is_the_weight_itself_bit_for_bit(dtype: torch.dtype) -> None:
    parent, shape, _, bank = prepared("llama", dtype=dtype)
    for index, layer in enumerate(layers_of(parent)):
        out = bank.attention(index, shape.kv_groups, shape.queries_per_group)
        assert torch.equal(out, layer.o_proj.weight)
        assert torch.equal(bank.mlp(index, shape.ffn), layer.down_proj.weight)
    assert {matrix.dtype for matrix in bank.matrices.values()} == {dtype}
    assert torch.equal(cut(parent, shape, shape.parent, bank)(tokens()).logits, parent(tokens()).logits)


def test_a_bank_entry_depends_on_its_own_choice_alone() -> None:
    parent, shape, statistics, bank = prepared("llama-biased")
    alone = repair_block(parent, shape, statistics, 1, {1: (2,)}, (7,))
    assert set(alone.matrices) == {
        attention_key(1, 2, 1),
        queries_key(1, 1),
        f"{queries_key(1, 1)}.bias",
        mlp_key(1, 7),
    }
    for key, matrix in alone.matrices.items():
        assert torch.equal(matrix, bank.matrices[key]), key
    assert alone.errors == {key: bank.errors[key] for key in alone.errors}


def shared_bank(name: str) -> tuple[PreTrainedModel, Shape, Bank]:
    """A permuted parent and its bank, made once."""
    case = case_of(name)
    return case.permuted, case.shape, case.bank


def test_a_stream_without_room_to_keep_its_states_computes_them_again() -> None:
    parent, shape = permuted_parent("llama")
    roomy, narrow = (Stream(parent, tokens(batch=5), 2, room=room) for room in (2**31, 0))
    for block in (1, 2, 0, 1, shape.blocks, 2):
        for kept, again in ((roomy.before(block), narrow.before(block)),):
            assert torch.equal(torch.cat(kept), torch.cat(again))
    assert roomy.before(1)[0] is roomy.before(1)[0]
    assert len(narrow._states) <= 2


def test_the_input_of_a_module_is_found_without_running_it() -> None:
    parent, _ = permuted_parent("llama")
    mlp = layers_of(parent)[0].mlp
    hook = mlp.down_proj.register_forward_hook(lambda *_: pytest.fail("it ran"))
    x = torch.randn(2, 3, 32)
    assert torch.equal(input_of(mlp.down_proj, mlp, x), mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    hook.remove()
    assert not mlp.down_proj._forward_pre_hooks


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_repair_changes_neither_the_parent_nor_the_bank(name: str) -> None:
    parent, shape, bank = shared_bank(name)
    before = {key: value.clone() for key, value in [*parent.state_dict().items(), *bank.matrices.items()]}
    done: list[int] = []
    for kind in ("narrow", "all at once", "other kind first"):
        architecture = architecture_of_cut(kind, shape)
        dense = Stream(parent, tokens(batch=24))
        subnet = repair_front_to_back(parent, shape, architecture, bank, dense, progress=done.append)
        assert torch.isfinite(subnet(tokens()).logits).all()
        storages = {weight.untyped_storage().data_ptr() for weight in subnet.parameters()}
        assert not storages & {value.untyped_storage().data_ptr() for value in parent.state_dict().values()}
        assert not storages & {value.untyped_storage().data_ptr() for value in bank.matrices.values()}
    assert len(done) == 3 + 2 + 2
    for key, value in [*parent.state_dict().items(), *bank.matrices.items()]:
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in parent.modules())


def random_architecture(shape: Shape, seed: int) -> Architecture:
    """With dropped blocks and skipped parts among the narrower ones."""
    draw = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=draw))

    while True:
        blocks = []
        for source in range(shape.blocks):
            groups = 0 if below(4) == 0 else 1 + below(shape.kv_groups)
            queries = 1 + below(shape.queries_per_group) if groups else 0
            ffn = 0 if below(4) == 0 else 1 + below(shape.ffn)
            if below(5) and (groups or ffn):
                blocks.append(Block(source, groups, queries, ffn))
        if any(block.kv_groups for block in blocks):
            return Architecture(shape.hidden, tuple(blocks))


@pytest.mark.parametrize(
    "name",
    [
        "llama", "llama-biased", "qwen3", "granite", "smollm3", "gpt2", "phi", "phi3", "falcon", "bloom",
    ],
)  # fmt: skip
def test_front_to_back_repair_ends_nearer_to_the_dense_stream_than_one_pass(name: str) -> None:
    parent, shape, _, bank = prepared(name)
    windows = tokens(batch=24)
    dense, stream = behind_last(parent, windows), Stream(parent, windows)
    cuts = [architecture_of_cut(kind, shape) for kind in CUTS]
    for architecture in [*cuts, *(random_architecture(shape, seed) for seed in range(12))]:
        once = behind_last(cut(parent, shape, architecture, bank), windows)
        twice = behind_last(repair_front_to_back(parent, shape, architecture, bank, stream), windows)
        assert (twice - dense).square().mean() <= (once - dense).square().mean(), architecture


@pytest.mark.parametrize("name", ["llama", "llama-biased", "granite"])
def test_the_last_output_matrix_is_the_best_there_is(name: str) -> None:
    parent, shape, _, bank = prepared(name)
    windows = tokens(batch=24)
    architecture = architecture_of_cut("narrow", shape)
    repaired = repair_front_to_back(parent, shape, architecture, bank, Stream(parent, windows))
    dense, last = behind_last(parent, windows), layers_of(repaired)[-1].down_proj
    best = (behind_last(repaired, windows) - dense).square().mean()
    found = last.weight.clone()
    for other in (bank.mlp(2, 7), found * 0.9, found + 0.05 * torch.randn_like(found)):
        last.weight.data = other
        assert (behind_last(repaired, windows) - dense).square().mean() > best


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_repair_in_bfloat16_ends_near_that_in_float32(name: str) -> None:
    parent, shape, bank = shared_bank(name)
    low = copy.deepcopy(parent).to(torch.bfloat16)
    low_bank = Bank({key: value.to(torch.bfloat16) for key, value in bank.matrices.items()}, bank.errors)
    windows, architecture = tokens(batch=24), architecture_of_cut("narrow", shape)
    dense = parent(windows).logits

    def missing(model: PreTrainedModel) -> float:
        return float((model(windows).logits.float() - dense).square().mean() / dense.square().mean())

    whole = missing(repair_front_to_back(parent, shape, architecture, bank, Stream(parent, windows)))
    rounded = repair_front_to_back(low, shape, architecture, low_bank, Stream(low, windows))
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    assert missing(rounded) < 1.2 * whole + 1e-3


@pytest.mark.parametrize(
    "cut_inside", [Architecture(28, (Block(0, 2, 2, 24),)), Architecture(32, (Block(0, 2, 2, 24, 4),))]
)
def test_a_narrower_stream_and_heads_in_part_are_refused_before_any_work(cut_inside: Architecture) -> None:
    parent, shape, bank = shared_bank("llama")
    with pytest.raises(InputError, match="cannot be repaired front to back"):
        repair_front_to_back(parent, shape, cut_inside, bank, Stream(parent, tokens()))
