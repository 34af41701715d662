"""Recover a subnet: train a copy of it for some steps, and give it back as a plain model."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import InputError
from nas.evaluate import evaluate
from nas.parent import digest_of
from nas.placement import check_whole
from nas.recovery import METHODS, Recipe
from nas.recovery.losses import objective
from nas.recovery.state import read_state, write_state
from nas.recovery.teacher import Teacher, tokens_digest


@dataclass(frozen=True)
class Step:
    """What was seen when `number` steps were done: the mean training loss of the last of them in nats per
    token (None before the first), and the validation loss where it was measured."""

    number: int
    loss: float | None
    validation: float | None = None


@dataclass(frozen=True)
class Recovered:
    """The recovered model, what training looked like, the seconds it took, and after how many steps the
    weights are: all, or the best by validation."""

    model: PreTrainedModel
    history: tuple[Step, ...]
    seconds: float
    kept_step: int


def recover(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    method: str = "full",
    steps: int,
    recipe: Recipe | None = None,
    teacher: Teacher | None = None,
    validation: Tensor | None = None,
    state: Path | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Recovered:
    """Train a copy of `model` on training `windows` (n, seq_len) for `steps` steps; the model stays as it is.

    `method` is one of `METHODS`. The loss is the cross-entropy or, with a `teacher`, the divergence from it
    (see `nas.recovery.losses`). With `validation` windows (m, seq_len) the loss on them is measured before
    the first step, on the way and at the end, and the best of these weights are kept. Forward passes are in
    bfloat16 on CUDA and as the weights are on the CPU; the result has the model's dtypes, is in evaluation
    mode and asks for no gradients. 0 steps give the same weights.

    All randomness comes from the recipe's seed; the global generators are left as they are. With a `state`
    file a training that was interrupted goes on from there, on the CPU with the very same result.
    `progress` is told of every step done, the ones found in the state file at once.

    Raises `InputError` for numbers that cannot mean anything, for a state file of another training, for a
    method whose library is missing, and where the loss leaves the finite numbers.
    """
    _check(method, steps, windows, validation)
    check_whole(model, "training")
    start, device = perf_counter(), model.device
    recipe = recipe or Recipe()
    rate = recipe.learning_rate or METHODS[method].learning_rate
    if not steps:
        plain = copy.deepcopy(model).eval().requires_grad_(False)
        return Recovered(plain, (Step(0, None, _validate(plain, validation, recipe)),), 0.0, 0)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with _seeded(recipe.seed):
        work = METHODS[method].attach(copy.deepcopy(model), recipe)
    trained = {name: each for name, each in work.named_parameters() if each.requires_grad}
    optimizer = _optimizer(trained, recipe)
    fingerprint = ""
    if state is not None:
        settled = replace(recipe, learning_rate=rate)
        fingerprint = _fingerprint(method, steps, settled, model, windows, validation, teacher)
    best: dict[str, Any] | None
    found = read_state(state, fingerprint)
    if found is None:
        done, spent, before = 0, 0.0, _validate(work, validation, recipe)
        history = [Step(0, None, before)]
        best = None if before is None else {"step": 0, "loss": before, "weights": _weights(trained)}
    else:
        done, spent, best = found["step"], found["seconds"], found["best"]
        history = [Step(*each) for each in found["history"]]
        _put(trained, found["weights"])
        optimizer.load_state_dict(found["optimizer"])
        progress(done)
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * recipe.rate(step, steps)
        with _seeded(recipe.seed, step):
            loss = _backward(work, windows, recipe.rows(step, len(windows)), teacher, recipe, device)
        if not math.isfinite(loss):
            raise InputError(
                f"the training loss is {loss} at step {step + 1} of {steps}; give a learning rate below "
                f"{rate:g}"
            )
        nn.utils.clip_grad_norm_(trained.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        due = done % recipe.validate_every == 0 or done == steps
        measured = _validate(work, validation, recipe) if due else None
        history.append(Step(done, loss, measured))
        if measured is not None and best is not None and measured < best["loss"]:
            best = {"step": done, "loss": measured, "weights": _weights(trained)}
        if state is not None and (done % recipe.save_every == 0 or done == steps):
            now = {
                "step": done,
                "seconds": spent + perf_counter() - start,
                "weights": _weights(trained),
                "optimizer": optimizer.state_dict(),
                "history": [(each.number, each.loss, each.validation) for each in history],
                "best": best,
            }
            write_state(state, fingerprint, now)
        progress(1)
    if best is not None:
        _put(trained, best["weights"])
    result = METHODS[method].detach(work)
    for name, parameter in result.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    return Recovered(
        model=result.eval().requires_grad_(False),
        history=tuple(history),
        seconds=spent + perf_counter() - start,
        kept_step=steps if best is None else best["step"],
    )


def _check(method: str, steps: int, windows: Tensor, validation: Tensor | None) -> None:
    if method not in METHODS:
        raise InputError(f"recovery method {method!r} is not known; give {' or '.join(METHODS)}")
    if steps < 0:
        raise InputError(f"{steps} recovery steps were asked for; give 0 or more")
    for name, each in (("training", windows), ("validation", validation)):
        if each is not None and (each.dim() != 2 or not len(each) or each.shape[1] < 2):
            raise InputError(
                f"the {name} windows of a recovery have the shape {tuple(each.shape)}; give one or more, "
                "each of 2 tokens or more"
            )


def _optimizer(trained: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, whose decay leaves vectors (norms, biases) alone."""
    matrices = [each for each in trained.values() if each.dim() > 1]
    vectors = [each for each in trained.values() if each.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def _backward(
    work: nn.Module,
    windows: Tensor,
    rows: Tensor,
    teacher: Teacher | None,
    recipe: Recipe,
    device: torch.device,
) -> float:
    """Add the gradient of the mean loss over these rows of the windows, and give that loss."""
    work.train()
    total = 0.0
    for part in rows.split(recipe.micro_batch or len(rows)):
        batch = windows[part].to(device)
        reference = None if teacher is None else teacher(part, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = work(input_ids=batch, use_cache=False).logits
        predicted, targets = logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten()
        temperature = 1.0 if teacher is None else teacher.temperature
        loss = objective(predicted, targets, reference, temperature, recipe.alpha) * (len(part) / len(rows))
        loss.backward()
        total += loss.item()
    return total


def _validate(work: nn.Module, validation: Tensor | None, recipe: Recipe) -> float | None:
    """Mean negative log-likelihood on the validation windows, in evaluation mode."""
    if validation is None:
        return None
    return evaluate(work.eval(), validation, batch_size=recipe.micro_batch or recipe.batch_size).nll


def _weights(trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of the trained weights on the CPU."""
    return {name: each.detach().cpu().clone() for name, each in trained.items()}


def _put(trained: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, each in trained.items():
            each.copy_(weights[name])


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Inside, torch draws what the key alone decides; outside, as if nothing had been drawn."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield


def _fingerprint(
    method: str,
    steps: int,
    recipe: Recipe,
    model: PreTrainedModel,
    windows: Tensor,
    validation: Tensor | None,
    teacher: Teacher | None,
) -> str:
    """Sixteen hexadecimal digits over all that a training depends on."""
    parts = {
        "method": method,
        "steps": steps,
        "recipe": asdict(recipe),
        "model": digest_of(model),
        "windows": tokens_digest(windows),
        "validation": None if validation is None else tokens_digest(validation),
        "teacher": None if teacher is None else teacher.digest,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
