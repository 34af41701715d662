"""What published systems do to a module on a `walk`, each as one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nas.calibration import GramSum
from nas.families import Layer
from nas.importance.criterion import ModuleScore
from nas.linear import DAMPING, admm, prefix_solution, ridge, strength
from nas.repair.stream import input_of
from nas.repair.walk import Step, Visit


def reconstruct(damping: float = 1e-3) -> Step:
    """Refit a module, before it is cut, to what the parent's computes from undrifted inputs.

    Greedy Output Approximation (arXiv 2407.19126, alg. 3 and 4): first each projection of the input,
    W1 = argmin E||W1 x - y1||^2 with y1 the parent's projection of its own input, then the output matrix,
    W2 = argmin E||W2 h - y2||^2 on the states h that the new projections give. `damping` pulls both towards
    the present matrices, relative to the mean diagonal of the Gram matrix.
    """

    def step(visit: Visit) -> None:
        gram, drift = GramSum(), GramSum()
        for x, dense in zip(visit.normed, visit.dense_normed, strict=True):
            gram.add(x)
            drift.add(dense, x)
        for linear in visit.inputs:
            # The parent's projection is linear in its input, so E[y1 x^T] = W1 E[x_dense x^T].
            cross = linear.weight.double() @ drift.mean
            _set(linear, ridge(gram.mean, cross, linear.weight, damping))
        gram, cross_sum = GramSum(), GramSum()
        bias = 0.0 if visit.output.bias is None else visit.output.bias.float()
        for h, dense in zip(visit.states(), visit.dense_normed, strict=True):
            gram.add(h)
            cross_sum.add(visit.dense_run(dense).float() - bias, h)
        _set(visit.output, ridge(gram.mean, cross_sum.mean, visit.output.weight, damping))

    return step


def choose(
    score: ModuleScore,
    channels: Callable[[Layer, Tensor], Tensor] | None = None,
    last: Callable[[Visit, Tensor], Sequence[int]] = lambda visit, importance: (),
) -> Step:
    """Put the units of a module into the order that a criterion gives on the module as it is now.

    `channels`, where given, scores an MLP's channels instead, from the MLP and the Gram matrix of its input.
    The KV groups that `last` names, from the visit and the groups' importance (groups,), go behind all
    others.
    """

    def order(values: Tensor) -> Tensor:
        return values.argsort(descending=True, stable=True)

    def step(visit: Visit) -> None:
        weight, shape = visit.output.weight, visit.shape
        if not visit.is_attention and channels is not None:
            gram = GramSum()
            for x in visit.normed:
                gram.add(x)
            visit.reorder(order(channels(visit.layer, gram.mean)))
            return
        gram_of_states = visit.gram()
        if not visit.is_attention:
            visit.reorder(order(score(weight, gram_of_states, 1)))
            return
        width = shape.queries_per_group * shape.head_dim
        inside = []
        for group in range(shape.kv_groups):
            columns = slice(group * width, (group + 1) * width)
            inside.append(order(score(weight[:, columns], gram_of_states[columns, columns], shape.head_dim)))
        importance = score(weight, gram_of_states, width)
        ordered = order(importance).tolist()
        behind = set(last(visit, importance))
        ordered = [each for each in ordered if each not in behind] + [
            each for each in ordered if each in behind
        ]
        visit.reorder(torch.tensor(ordered, device=importance.device), torch.stack(inside))

    return step


def compensate(damping: float = DAMPING, *, admm_steps: int = 0, rho: float = 1.0) -> Step:
    """Put what the cut columns of the output matrix said into the kept ones.

    The reformation of Search for Efficient LLMs (arXiv 2409.17372, sec. 3.4): W_K = W S[:, K] S[K, K]^-1 with
    S the Gram matrix of the module's whole states behind the already reformed predecessors. In closed form,
    or with so many steps of its ADMM (`nas.linear.admm`) with a penalty of `rho` times the mean diagonal of
    S, so that it means the same in every module.
    """

    def step(visit: Visit) -> None:
        gram = visit.gram()
        weight = visit.output.weight.double()
        if admm_steps:
            solved = admm(weight, gram, visit.kept, damping, steps=admm_steps, rho=strength(gram, rho))
        else:
            solved = prefix_solution(weight, gram, visit.kept, damping)
        whole = torch.zeros_like(weight)
        whole[:, visit.kept] = solved
        _set(visit.output, whole)

    return step


def mean_bias(visit: Visit) -> None:
    """Add to the module's bias what the cut columns say on average in the parent (FLAP, arXiv 2312.11983,
    eq. 9): b = W_cut E[h_cut]. A module that the architecture leaves out whole is not visited, and has no
    place for a bias."""
    output = visit.output
    total = torch.zeros(output.in_features, dtype=torch.float64, device=output.weight.device)
    count = 0
    linear = visit.source.output(visit.part)
    for x in visit.dense_normed:
        rows = input_of(linear, visit.dense_run, x).flatten(0, -2)
        total += rows.double().sum(0)
        count += len(rows)
    mean = total / count
    mean[visit.kept] = 0.0
    bias = output.weight.double() @ mean
    if output.bias is not None:
        bias += output.bias.double()
    output.bias = nn.Parameter(bias.to(output.weight.dtype), requires_grad=False)


def _set(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight.data = weight.to(linear.weight.dtype)
