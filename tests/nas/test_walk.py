"""The walk cuts what a plain cut cuts, and each published step does to a module what its paper says."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, dynamic_module_utils

from nas.architecture import Architecture
from nas.export import save_checkpoint
from nas.families import layers_of, shape_of
from nas.importance.elimination import elimination
from nas.importance.output_energy import output_energy
from nas.importance.second_moment import product_form
from nas.linear import admm, prefix_solution
from nas.ranking import head_columns
from nas.repair.steps import choose, compensate, mean_bias, reconstruct
from nas.repair.stream import Stream
from nas.repair.walk import Visit, walk
from nas.shape import Shape
from nas.subnet import cut
from tests.nas.tiny_models import CUTS, DENSE, architecture_of_cut, permuted_parent, tiny_parent, tokens

WINDOWS = tokens(length=12, batch=10)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tokens(seed=5)).logits
    return result


@pytest.mark.parametrize("what", CUTS)
@pytest.mark.parametrize("name", DENSE)
def test_without_steps_a_walk_is_a_cut(name: str, what: str) -> None:
    parent, shape = permuted_parent(name)
    architecture = architecture_of_cut(what, shape)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    walked = walk(parent, shape, architecture, Stream(parent, WINDOWS), [])
    assert torch.equal(logits(walked), logits(cut(parent, shape, architecture)))
    assert all(torch.equal(value, before[key]) for key, value in parent.state_dict().items())


def steps_seen(name: str, architecture: Architecture, shape: Shape) -> list[Visit]:
    parent, _ = permuted_parent(name)
    seen: list[Visit] = []
    walk(parent, shape, architecture, Stream(parent, WINDOWS), [seen.append])
    return seen


def error(out: nn.Linear, states: list[Tensor], wanted: list[Tensor]) -> float:
    bias = 0.0 if out.bias is None else out.bias
    return sum(
        float((h @ out.weight.T + bias - goal).double().square().sum())
        for h, goal in zip(states, wanted, strict=True)
    )


@pytest.mark.parametrize("name", DENSE)
def test_compensation_never_raises_the_error_it_minimises(name: str) -> None:
    parent, shape = permuted_parent(name)
    errors: list[float] = []

    def measure(visit: Visit) -> None:
        states = visit.states()
        bias = 0.0 if visit.output.bias is None else visit.output.bias
        wanted = [h @ visit.output.weight.T + bias for h in states]
        whole = visit.output.weight.data
        visit.output.weight.data = torch.zeros_like(whole)
        visit.output.weight.data[:, visit.kept] = whole[:, visit.kept]
        errors.append(error(visit.output, states, wanted))
        visit.output.weight.data = whole
        compensate(1e-6)(visit)
        errors.append(error(visit.output, states, wanted))

    walk(parent, shape, architecture_of_cut("narrow", shape), Stream(parent, WINDOWS), [measure])
    assert len(errors) == 4 * shape.blocks
    assert all(
        after <= before * (1 + 1e-4) + 1e-6 for before, after in zip(errors[::2], errors[1::2], strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
def test_admm_converges_to_the_closed_form(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 12, generator=draw, dtype=torch.float64)
    weight = torch.randn(5, 12, generator=draw, dtype=torch.float64)
    gram, kept = x.T @ x / 60, torch.tensor([0, 2, 3, 7, 9])
    closed = prefix_solution(weight, gram, kept)
    distance = [float((admm(weight, gram, kept, steps=n) - closed).norm()) for n in (0, 5, 30, 200)]
    assert distance == sorted(distance, reverse=True)
    assert distance[2] < 0.05 * distance[0]
    assert distance[3] < 1e-6 * distance[0]


def test_admm_as_a_step_comes_to_what_the_closed_form_does() -> None:
    parent, shape = permuted_parent("llama")
    architecture = architecture_of_cut("narrow", shape)
    closed = walk(parent, shape, architecture, Stream(parent, WINDOWS), [compensate()])
    iterated = walk(parent, shape, architecture, Stream(parent, WINDOWS), [compensate(admm_steps=400)])
    torch.testing.assert_close(logits(iterated), logits(closed), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DENSE)
def test_where_nothing_has_drifted_reconstruction_changes_nothing(name: str) -> None:
    parent, shape = permuted_parent(name)
    walked = walk(parent, shape, shape.parent, Stream(parent, WINDOWS), [reconstruct()])
    torch.testing.assert_close(logits(walked), logits(parent), rtol=1e-3, atol=2e-3)


def test_reconstruction_brings_a_drifted_module_nearer_to_the_parent() -> None:
    parent, shape = permuted_parent("llama")
    architecture = architecture_of_cut("shallow", shape)  # block 0 is gone, so block 1 is drifted
    errors: list[float] = []

    def measure(visit: Visit) -> None:
        wanted = [visit.dense_run(x) for x in visit.dense_normed]
        errors.append(error(visit.output, visit.states(), wanted))
        reconstruct(1e-4)(visit)
        errors.append(error(visit.output, visit.states(), wanted))

    walk(parent, shape, architecture, Stream(parent, WINDOWS), [measure])
    assert len(errors) == 8
    assert all(after < 0.9 * before for before, after in zip(errors[::2], errors[1::2], strict=True))


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2"])
def test_a_mean_bias_gives_a_module_its_mean_output_back(name: str) -> None:
    parent, shape = permuted_parent(name)
    architecture = architecture_of_cut("narrow", shape)
    walked = walk(parent, shape, architecture, Stream(parent, WINDOWS), [mean_bias])
    visit = steps_seen(name, architecture, shape)[0]
    layer = layers_of(walked)[0]
    with torch.no_grad():
        mine = torch.cat([layer.attend(x, visit.arguments) for x in visit.normed]).mean((0, 1))
        theirs = torch.cat([visit.dense_run(x) for x in visit.dense_normed]).mean((0, 1))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", [output_energy, elimination])
def test_a_choice_keeps_the_units_that_the_criterion_puts_first(score: object) -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    architecture = architecture_of_cut("narrow", shape)
    chosen: list[Tensor] = []

    def note(visit: Visit) -> None:
        if not chosen:
            gram, out = visit.gram(), visit.output.weight
            width = shape.queries_per_group * shape.head_dim
            groups = score(out, gram, width).argsort(descending=True)  # type: ignore[operator]
            queries = torch.stack(
                [
                    score(  # type: ignore[operator]
                        out[:, g * width : (g + 1) * width],
                        gram[g * width : (g + 1) * width, g * width : (g + 1) * width],
                        shape.head_dim,
                    ).argsort(descending=True)
                    for g in range(shape.kv_groups)
                ]
            )
            chosen.append(head_columns(shape, groups, queries)[0])

    walked = walk(parent, shape, architecture, Stream(parent, WINDOWS), [note, choose(score)])  # type: ignore[arg-type]
    kept = layers_of(walked)[0].o_proj.weight
    assert torch.equal(kept, layers_of(parent)[0].o_proj.weight[:, chosen[0]][:, : kept.shape[1]])


def test_channels_can_be_chosen_by_the_whole_mlp() -> None:
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    grams: list[Tensor] = []

    def note(visit: Visit) -> None:
        if not visit.is_attention:
            x = torch.cat([each.flatten(0, 1) for each in visit.normed]).double()
            grams.append(x.T @ x / len(x))

    architecture = architecture_of_cut("uniform", shape)
    walked = walk(
        parent,
        shape,
        architecture,
        Stream(parent, WINDOWS),
        [note, choose(output_energy, channels=product_form)],
    )
    mlp = layers_of(parent)[0]
    first = product_form(mlp, grams[0]).argsort(descending=True)[: architecture.blocks[0].ffn]
    kept = layers_of(walked)[0].up_proj.weight
    assert torch.equal(kept, mlp.up_proj.weight[first])


def test_untouched_blocks_are_cut_without_steps() -> None:
    parent, shape = permuted_parent("llama")
    architecture = architecture_of_cut("narrow", shape)
    walked = walk(
        parent, shape, architecture, Stream(parent, WINDOWS), [compensate()], untouched=frozenset({0, 1, 2})
    )
    assert torch.equal(logits(walked), logits(cut(parent, shape, architecture)))


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("what", ["uniform", "all at once"])
def test_output_matrices_that_were_given_a_bias_keep_it_on_disk(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Code that checkpoints carry is run from a cache in the home folder: here from another.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    parent, shape = permuted_parent(name)
    architecture = architecture_of_cut(what, shape)
    subnet = walk(parent, shape, architecture, Stream(parent, WINDOWS), [mean_bias])
    save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / "subnet")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "subnet", trust_remote_code=True)
    assert torch.equal(logits(loaded), logits(subnet))
    assert not torch.equal(logits(loaded), logits(cut(parent, shape, architecture)))
