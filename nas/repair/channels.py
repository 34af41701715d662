"""Refit what FFN channels carry: the projections into and out of a cut MLP, by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.calibration import GramSum
from nas.families import MLP, Layer
from nas.linear import conjugate_gradients, damped, ridge, strength
from nas.placement import Keep

LENGTHS = (1.0, 0.5, 0.25)
"""Shares of a step that are tried in turn until one does not raise the error."""


def refit_channels(
    layer: Layer,
    inputs: Sequence[Tensor],
    residual: Sequence[Tensor],
    *,
    damping: float,
    output_damping: float,
    sweeps: int = 4,
    steps: int = 4,
    keep: Keep = list,
) -> None:
    """Refit gate_proj and up_proj, then down_proj, of an MLP in place, `sweeps` times.

    Where channels were cut, those that stay had better read other directions of x than they did. The MLP
    W h, h = act(G x) * U x, is linear in U and nearly so in a small change of G (Gauss-Newton):

        dh = J (dU, dG) x,   J (dU, dG) x = act(G x) * dU x + act'(G x) * U x * dG x

    (without a gate h = act(U x), and J dU x = act'(U x) * dU x), so that min over (dU, dG) of
    E||r - W dh||^2 + sum_c lambda_c ||(dU, dG)_c||^2, with r what the MLP leaves of its target, is a
    least-squares problem in 2 * kept * hidden unknowns. A few steps of conjugate
    gradients come close to its solution and regularise by stopping early; each sweep takes them on its own
    share of the batches. lambda_c is `damping` times what the row's factor and output weights pass on of the
    input's mean power. The change is shortened, or dropped, while it raises the true error on all batches.
    Then W is refitted to the new channels, pulled towards the present one by `output_damping`. Up to the
    rounding of weights, no part of this raises the error on these inputs.

    `inputs` are the normed inputs in batches (batch, seq_len, hidden), `residual` the target minus the MLP's
    present output without its bias, batch by batch. Takes the memory of one to two times the MLP's
    activations, two streams in float32, and a dozen matrices like gate and up together in float64; how the
    activations and streams are kept, `keep` says.
    """
    inputs_of, down = layer.inputs(MLP)[::-1], layer.down_proj  # up_proj first
    flat = keep(x.flatten(0, -2) for x in inputs)  # (tokens, hidden) each
    left = keep(part.flatten(0, -2).float() for part in residual)
    wanted = keep(part + _output(down, layer.channels(x)) for part, x in zip(left, flat, strict=True))
    for sweep in range(sweeps):
        share = slice(sweep, None, sweeps) if len(flat) >= sweeps else slice(None)
        factors = [_factors(layer, x) for x in flat[share]]
        change = _step(down.weight.float(), flat[share], factors, left[share], damping, steps)
        before, present = _squares(left), [linear.weight.data for linear in inputs_of]
        for length in (*LENGTHS, 0.0):
            if length:
                _move(inputs_of, present, length * change)
            else:
                for linear, weight in zip(inputs_of, present, strict=True):
                    linear.weight.data = weight
            hidden = keep(layer.channels(x) for x in flat)
            left = keep(goal - _output(down, h) for goal, h in zip(wanted, hidden, strict=True))
            if _squares(left) <= before:
                break
        gram, cross = GramSum(), GramSum()
        for h, goal in zip(hidden, wanted, strict=True):
            gram.add(h)
            cross.add(goal, h)
        fitted = ridge(gram.take(), cross.take(), down.weight.double(), output_damping)
        down.weight.data = fitted.to(down.weight.dtype)
        left = keep(goal - _output(down, h) for goal, h in zip(wanted, hidden, strict=True))


def _output(down: nn.Linear, hidden: Tensor) -> Tensor:
    """An MLP's output without its bias, in float32."""
    return hidden.float() @ down.weight.float().T


def _squares(parts: Sequence[Tensor]) -> float:
    return sum(float(part.double().square().sum()) for part in parts)


def _move(linears: Sequence[nn.Linear], present: Sequence[Tensor], change: Tensor) -> None:
    """Set weights to the present ones plus their parts of a change (all rows, hidden)."""
    for linear, weight, part in zip(linears, present, change.chunk(len(linears)), strict=True):
        linear.weight.data = (weight.double() + part).to(weight.dtype)


@torch.enable_grad()
def _factors(layer: Layer, x: Tensor) -> tuple[Tensor, ...]:
    """The diagonals of J for the rows of up_proj and, where there is one, of gate_proj, (tokens, P) each."""
    act = layer.mlp.get_submodule(layer.layout.activation)
    opening = layer.inputs(MLP)[0](x).detach().requires_grad_()
    opened = act(opening)
    (slope,) = torch.autograd.grad(opened.sum(), opening)
    if not layer.gated:
        return (slope,)
    return opened.detach(), slope * layer.up_proj(x).detach()


def _step(
    weight: Tensor,
    inputs: Sequence[Tensor],
    factors: Sequence[tuple[Tensor, ...]],
    residual: Sequence[Tensor],
    damping: float,
    steps: int,
) -> Tensor:
    """The change (2 P, hidden) of up_proj over that of gate_proj, or (P, hidden), see `refit_channels`.

    `weight` (hidden, P), `inputs` (tokens, hidden), `factors` the diagonals of J for each, (tokens, P),
    `residual` (tokens, hidden).
    """
    projections = len(factors[0])
    gram, pulled = GramSum(), GramSum()
    power = torch.zeros(projections * weight.shape[1], dtype=torch.float64, device=weight.device)
    for x, both, rest in zip(inputs, factors, residual, strict=True):
        back = rest.float() @ weight
        gram.add(x)
        pulled.add(torch.cat([back * factor.float() for factor in both], dim=1), x)  # J^T W^T r
        power += torch.cat([factor.double().square().sum(0) for factor in both])
    passed = weight.double().square().sum(0).repeat(projections) * power / gram.count
    passed = passed.clamp_min(1e-9 * float(passed.max()) or 1.0)[:, None]
    mean = gram.take()
    pull = strength(mean, damping)
    inverse = torch.linalg.inv(damped(mean, damping))
    del mean

    def normal(change: Tensor) -> Tensor:
        """J^T W^T W J of a change, and its damping."""
        product, parts = GramSum(), change.float().chunk(projections)
        for x, diagonals in zip(inputs, factors, strict=True):
            lines = [(x.float() @ part.T) * factor for part, factor in zip(parts, diagonals, strict=True)]
            back = (sum(lines[1:], lines[0]) @ weight.T) @ weight  # of dh
            product.add(torch.cat([back * factor for factor in diagonals], dim=1), x)
        return product.take().add_(pull * passed * change)

    return conjugate_gradients(normal, lambda v: (v / passed) @ inverse, pulled.take(), steps=steps)
