"""Measured latency of a model on this device: prefill and decode, apart."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from nas.blockwise import fetching


@dataclass(frozen=True)
class Latency:
    """Medians in milliseconds: one forward pass over (batch, context) tokens, and one further token with the
    cache that it left. `prefill_turns` and `decode_turns` are the measurements themselves, in order: those of
    models measured together belong together turn by turn."""

    prefill_ms: float
    decode_ms_per_token: float
    batch: int
    context: int
    prefill_turns: tuple[float, ...]
    decode_turns: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """As plain values for a report."""
        return asdict(self)


@torch.no_grad()
def measure_latency(
    models: list[PreTrainedModel],
    *,
    batch: int = 1,
    context: int = 256,
    tokens: int = 8,
    repeats: int = 7,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Latency]:
    """Latency of several models in turn, A B A B …, so that a drift of the machine's speed meets all alike.

    The first round warms up and is not counted. What it takes to fetch the blocks of a placed model, each
    time they are called, is part of it. `progress` is told of each turn of a model.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(int(model.config.vocab_size) for model in models)
    ids = torch.randint(vocabulary, (batch, context), generator=generator)
    prefill: list[list[float]] = [[] for _ in models]
    decode: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for index, model in enumerate(models):
            with fetching(model) as device:
                first, rest = _once(model, ids.to(device), tokens)
            if turn:
                prefill[index].append(1e3 * first)
                decode[index].append(1e3 * rest)
            progress(1)
    return [
        Latency(median(first), median(rest), batch, context, tuple(first), tuple(rest))
        for first, rest in zip(prefill, decode, strict=True)
    ]


def _once(model: PreTrainedModel, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Seconds of one prefill, and per decoded token."""
    cache = DynamicCache(config=model.config)
    start = _now(ids.device)
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    middle = _now(ids.device)
    for _ in range(tokens):
        logits = model(logits[:, -1:].argmax(-1), past_key_values=cache, use_cache=True).logits
    return middle - start, (_now(ids.device) - middle) / tokens


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def device_name(device: torch.device) -> str:
    """What latencies were measured on, as far as torch and Python can tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"
