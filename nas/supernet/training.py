"""Train the weights that all subnets share: passes are through slices, gradients go to the whole.

The knowledge distilled in place is the distribution over the vocabulary at every position, KL(whole || sub),
mean over tokens. The scripts of arXiv 2410.06479 have a term that normalises over the tokens instead, a mean
that grows with the length of the text, and a sandwich that ignores its distillation loss.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from data.errors import InputError
from nas.adapters import adapt, merge
from nas.recovery.losses import Reference, divergence
from nas.recovery.state import read_state, write_state
from nas.shape import Shape
from nas.subnet import cut
from nas.supernet.grids import Grid
from nas.supernet.strategies import STRATEGIES, Pass, Sandwich

SAVE_EVERY = 20
"""Steps between two states on the disk."""


@dataclass(frozen=True)
class TrainingRecipe:
    """The numbers of a training.

    A step takes `batch_size` windows through the passes of its `strategy`. The rate rises linearly to
    `learning_rate` over the fraction `warmup` of the steps and falls to 0 as a cosine; None is 1e-4, and 1e-3
    with adapters: after 60 steps of 4 windows the whole of a parent of 8 M parameters was 1.6 % above its
    perplexity at 1e-4, and 6.9 % at 3e-4. `rank` 0 trains all weights; above it, adapters of this rank alone
    are trained, with `alpha` and `dropout`, and merged at the end; `ends` gives embeddings and head one, too.
    There is no weight decay: it would shrink what no sampled subnet used.
    """

    strategy: str = "sandwich-kd"
    sandwich: Sandwich = field(default_factory=Sandwich)
    batch_size: int = 4
    learning_rate: float | None = None
    warmup: float = 0.1
    clip: float = 1.0
    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.05
    ends: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(
                f"training strategy {self.strategy!r} is not known; give {', '.join(STRATEGIES)}"
            )
        if self.batch_size < 1 or self.sandwich.random < 0 or self.rank < 0:
            raise InputError(
                f"a training takes {self.batch_size} windows a step, {self.sandwich.random} random "
                f"subnets and adapters of rank {self.rank}; give 1, 0 and 0 or more"
            )
        if not 0 <= self.warmup <= 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"a training's warm-up is {self.warmup} and its dropout {self.dropout}; give 0 to 1"
            )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        highest = self.learning_rate or (1e-3 if self.rank else 1e-4)
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return highest * (step + 1) / rising
        return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class Trained:
    """A trained super-network, plain and without gradients, and each step's mean loss of all passes and of
    the first pass, in nats per token."""

    model: PreTrainedModel
    history: tuple[tuple[float, float], ...]


def train(
    model: PreTrainedModel,
    shape: Shape,
    grid: Grid,
    windows: Tensor,
    steps: int,
    recipe: TrainingRecipe,
    progress: Callable[[int], object] = lambda done: None,
    *,
    state: Path | None = None,
    fingerprint: str = "",
) -> Trained:
    """Train a copy of a super-network of this shape for `steps` on training `windows` (n, seq_len).

    Weights are float32 in between, for a bfloat16 weight takes no step as small as training's. All randomness
    comes from the recipe's seed; the global generators are left as they are. 0 steps change nothing. With
    a `state` file a training that was interrupted goes on from there, if its `fingerprint` (of all that it
    depends on) is the same; on the CPU with the very same result. Raises `InputError` for the file of another
    training, and where the loss leaves the finite numbers.
    """
    if steps < 0:
        raise InputError(f"{steps} training steps were asked for; give 0 or more")
    work = copy.deepcopy(model).eval().requires_grad_(False)
    if not steps:
        return Trained(work, ())
    dtype = model.dtype
    work.float()
    generator = torch.Generator().manual_seed(recipe.seed)
    if recipe.rank:
        trained = adapt(
            work, recipe.rank, recipe.alpha, recipe.dropout, ends=recipe.ends, generator=generator
        )
    else:
        trained = list(work.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    rng = np.random.default_rng(recipe.seed)
    order: list[int] = []
    history: list[tuple[float, float]] = []
    before = read_state(state, fingerprint)
    if before is not None:
        with torch.no_grad():
            for weight, kept in zip(trained, before["weights"], strict=True):
                weight.copy_(kept)
        optimizer.load_state_dict(before["optimizer"])
        rng.bit_generator.state = json.loads(before["rng"])
        order, history = before["order"], [(own, whole) for own, whole in before["history"]]
        progress(len(history))
    work.train()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(recipe.seed)  # of dropout
        if before is not None:
            torch.set_rng_state(before["dropout"])
        for step in range(len(history), steps):
            while len(order) < recipe.batch_size:
                order += rng.permutation(len(windows)).tolist()
            rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
            batch = windows[rows].to(work.device)
            far = step / max(1, steps - 1)
            passes = STRATEGIES[recipe.strategy](grid, far, step, recipe.sandwich, rng)
            losses = backward(work, shape, passes, batch)
            if not all(map(math.isfinite, losses)):
                raise InputError(
                    f"a loss of step {step + 1} of {steps} is not finite; give a --learning-rate below "
                    f"{recipe.rate(step, steps):g}"
                )
            history.append((sum(losses) / len(losses), losses[0]))
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, steps)
            nn.utils.clip_grad_norm_([each for each in trained if each.grad is not None], recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if state is not None and (step + 1) % SAVE_EVERY == 0:
                now = {
                    "weights": [weight.detach().cpu() for weight in trained],
                    "optimizer": optimizer.state_dict(),
                    "rng": json.dumps(rng.bit_generator.state),
                    "dropout": torch.get_rng_state(),
                    "order": order,
                    "history": history,
                }
                write_state(state, fingerprint, now)
            progress(1)
    return Trained(merge(work).to(dtype).eval().requires_grad_(False), tuple(history))


def backward(model: PreTrainedModel, shape: Shape, passes: list[Pass], batch: Tensor) -> list[float]:
    """Add the gradients of the passes' mean loss over a batch (n, seq_len) to those of the model's weights
    that ask for them; each pass's loss in nats per token. A distilled pass comes after one of the whole."""
    losses = []
    whole: Tensor | None = None
    for each in passes:
        part = model if each.architecture is None else cut(model, shape, each.architecture, gradients=True)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=batch.device.type == "cuda"):
            logits = part(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        logits = logits.float()
        if each.distilled:
            if whole is None:
                raise ValueError("a distilled pass needs one of the whole super-network before it")
            loss = divergence(logits, Reference(whole.log_softmax(-1)))
        else:
            loss = functional.cross_entropy(logits, batch[:, 1:].flatten())
        if each.architecture is None:
            whole = logits.detach()
        (loss / len(passes)).backward()
        losses.append(loss.item())
    return losses
