"""Values and output columns refitted together: exact replay, and never a larger calibration error."""

import pytest
import torch

from nas.architecture import Architecture, Block
from nas.families import ATTENTION, family_of, layers_of
from nas.linear import factorise
from nas.repair.stream import Stream, input_of
from nas.repair.values import attended, attention_call, refit_values
from nas.subnet import cut
from tests.nas.tiny_models import PARENTS, config_of, permuted_parent, tokens


def problem(queries: int, seed: int = 0, rows: int = 400) -> tuple[torch.Tensor, ...]:
    """Attended inputs (rows, Q, 12), targets (rows, 9) and a start O (Q, 9, 3), V (3, 12)."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    z = normal(rows, queries, 12) @ normal(12, 12)
    y = z.flatten(1) @ normal(queries * 12, 9) + normal(rows, 9)
    return z, y, normal(queries, 9, 3), normal(3, 12)


def error(
    z: torch.Tensor, y: torch.Tensor, out: torch.Tensor, value: torch.Tensor, weight: float = 1.0
) -> float:
    return weight * float((y - torch.einsum("tqn,qmn->tm", z, out @ value)).square().sum(1).mean())


@pytest.mark.parametrize("queries", [1, 3])
def test_no_sweep_of_the_factorisation_raises_its_error(queries: int) -> None:
    z, y, out, value = problem(queries)
    grams = torch.einsum("tpi,tqj->pqij", z, z) / len(z)
    crosses = torch.einsum("tm,tpn->pmn", y, z) / len(z)
    errors = [error(z, y, out, value)]
    for sweeps in (1, 2, 4, 8, 16):
        errors.append(error(z, y, *factorise(grams, crosses, out, value, sweeps=sweeps)))
    assert errors == sorted(errors, reverse=True)


def test_with_one_query_the_factorisation_converges_to_reduced_rank_regression() -> None:
    z, y, out, value = problem(1)
    flat = z[:, 0]
    full = torch.linalg.lstsq(flat, y).solution.T  # (9, 12)
    fitted = flat @ full.T
    basis = torch.linalg.eigh(fitted.T @ fitted)[1][:, -3:]
    best = error(z, y, basis[None], basis.T @ full)
    grams = torch.einsum("tpi,tqj->pqij", z, z) / len(z)
    crosses = torch.einsum("tm,tpn->pmn", y, z) / len(z)
    assert error(z, y, *factorise(grams, crosses, out, value, sweeps=200)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in PARENTS if family_of(config_of(name)).by_interface])
def test_the_attended_inputs_replay_the_attention(name: str) -> None:
    parent, shape = permuted_parent(name)
    stream = Stream(parent, tokens(), 2)
    layer, arguments = layers_of(parent)[0], stream.arguments[0]
    x = layer.norm(ATTENTION, stream.before(0)[0])
    attention = layer.attention
    dim, queries = shape.head_dim, shape.queries_per_group
    call = attention_call(attention, arguments, x)
    total = 0.0 if layer.o_proj.bias is None else layer.o_proj.bias
    for group in range(shape.kv_groups):
        z = attended(layer, call, x, group)
        value = layer.v_proj.weight[group * dim : (group + 1) * dim]
        if layer.v_proj.bias is not None:
            value = torch.cat([value, layer.v_proj.bias[group * dim : (group + 1) * dim, None]], dim=1)
        columns = slice(group * dim * queries, (group + 1) * dim * queries)
        total = total + (z @ value.T).flatten(2) @ layer.o_proj.weight[:, columns].T
    torch.testing.assert_close(total, layer.attend(x, arguments), rtol=1e-4, atol=1e-4)
    assert parent.config._attn_implementation != "secateur_capture"


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama-mha",
        "llama-biased",
        "qwen3",
        "gemma2",
        "mistral-window",
        "gpt2",
        "phi3",
        "opt",
        "gpt_neox",
    ],
)
def test_refitting_values_lowers_the_error_it_minimises_and_says_what_is_left(name: str) -> None:
    parent, shape = permuted_parent(name)
    blocks = tuple(Block(i, 1, shape.queries_per_group, shape.ffn) for i in range(shape.blocks))
    subnet = cut(parent, shape, Architecture(shape.hidden, blocks), own=True)
    stream = Stream(parent, tokens(length=12, batch=24), 8)
    layer, source, arguments = layers_of(subnet)[0], layers_of(parent)[0], stream.arguments[0]
    inputs = [source.norm(ATTENTION, h) for h in stream.before(0)]
    wanted = [source.attend(x, arguments) for x in inputs]

    def missing() -> list[torch.Tensor]:
        outputs = (layer.attend(x, arguments) for x in inputs)
        return [goal - out for goal, out in zip(wanted, outputs, strict=True)]

    before = missing()
    left = refit_values(layer, arguments, inputs, before, damping=1e-3)
    after = missing()
    assert sum(float(r.square().sum()) for r in after) < sum(float(r.square().sum()) for r in before)
    torch.testing.assert_close(torch.cat(left), torch.cat(after), rtol=1e-3, atol=1e-3)


def test_the_input_of_a_module_is_caught_without_running_it() -> None:
    inner, outer = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    x = torch.ones(1, 3)
    caught = input_of(outer, torch.nn.Sequential(inner, outer), x)
    torch.testing.assert_close(caught, inner(x))
