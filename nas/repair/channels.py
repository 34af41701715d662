"""Refit what FFN channels carry: up-projections and output columns of a cut MLP, by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.calibration import GramSum
from nas.linear import conjugate_gradients, damped, ridge, strength


def refit_channels(
    mlp: nn.Module,
    inputs: Sequence[Tensor],
    residual: Sequence[Tensor],
    *,
    damping: float,
    output_damping: float,
    steps: int = 4,
) -> None:
    """Refit up_proj, then down_proj, of a gated MLP in place.

    With the gates s = act(G x) and the output matrix W fixed, the MLP W (s * U x) is linear in U: min over
    dU of E||r - W (s * dU x)||^2 + sum_c lambda_c ||dU_c||^2, with r what the MLP leaves of its target, is a
    least-squares problem. Where channels were cut, those that stay had better read other directions of x
    than they did. The normal equations couple all channels, kept * hidden unknowns; a few steps of conjugate
    gradients come close to their solution and regularise by stopping early. lambda_c is `damping` times what
    the channel's gate and output weights pass on of the input's mean power. Then W is refitted to the new
    channels, pulled towards the present one by `output_damping`.

    `inputs` are the normed inputs in batches (batch, seq_len, hidden), `residual` the target minus the MLP's
    present output without its bias, batch by batch. Takes the memory of the MLP's hidden activations.
    """
    up, down = mlp.up_proj, mlp.down_proj
    weight = down.weight.float()  # (hidden, P)
    gates = [mlp.act_fn(mlp.gate_proj(x)).flatten(0, -2).float() for x in inputs]  # (tokens, P) each
    flat = [x.flatten(0, -2).float() for x in inputs]
    hidden = [gate * up(x).flatten(0, -2).float() for gate, x in zip(gates, inputs, strict=True)]
    left = [rest.flatten(0, -2).float() for rest in residual]
    wanted = [rest + h @ weight.T for rest, h in zip(left, hidden, strict=True)]
    del hidden

    gram, seen = GramSum(), GramSum()
    for x, gate, rest in zip(flat, gates, left, strict=True):
        gram.add(x)
        seen.add((rest @ weight) * gate, x)
    power = torch.stack([gate.double().square().sum(0) for gate in gates]).sum(0) / gram.count
    passed = weight.double().square().sum(0) * power  # (P,)
    passed = passed.clamp_min(1e-9 * float(passed.max()) or 1.0)[:, None]
    pull = strength(gram.mean, damping)
    inverse = torch.linalg.inv(damped(gram.mean, damping))
    narrow = weight.shape[1] < 2 * weight.shape[0]
    through = weight.T @ weight if narrow else None  # W^T W, where that is the smaller way

    def normal(change: Tensor) -> Tensor:
        product, single = GramSum(), change.float()
        for x, gate in zip(flat, gates, strict=True):
            moved = (x @ single.T) * gate
            back = moved @ through if through is not None else (moved @ weight.T) @ weight
            product.add(back * gate, x)
        return product.mean + pull * passed * change

    change = conjugate_gradients(normal, lambda v: (v / passed) @ inverse, seen.mean, steps=steps)
    up.weight.data = (up.weight.double() + change).to(up.weight.dtype)

    gram, cross = GramSum(), GramSum()
    for x, gate, goal in zip(inputs, gates, wanted, strict=True):
        h = gate * up(x).flatten(0, -2).float()
        gram.add(h)
        cross.add(goal, h)
    fitted = ridge(gram.mean, cross.mean, down.weight.double(), output_damping)
    down.weight.data = fitted.to(down.weight.dtype)
