"""The parent as a teacher: its next-token distribution on training windows, computed anew or stored once.

Subnets by the hundred are taught from the same windows: the top-k log-probabilities, kept on disk, spare each
of them the parent's forward passes. Stored are, for each predicted token, the k most likely tokens (int32),
their log-probabilities at the teacher's temperature (float16) and the logarithm of what is left to all others
together (float32): 6 k + 4 bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import InputError
from nas.alone import alone
from nas.blockwise import logits
from nas.parent import digest_of
from nas.recovery.losses import Reference, divergence
from nas.tensor_files import read_tensors, write_tensors

FORMAT = 1
"""Raised whenever distributions are stored differently, so that old files are not found."""


class Teacher(Protocol):
    """Distributions of the next token at a temperature; equal digests, equal distributions."""

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""

    @property
    def digest(self) -> str:
        """Of all that the distributions depend on besides the windows."""

    def __call__(self, rows: Tensor, batch: Tensor) -> Reference:
        """The distributions behind every token but the last of each window, windows one after the other.

        `batch` (n, seq_len) holds the windows of the numbers `rows` (n,); the result is on its device.
        """


@dataclass(frozen=True)
class LiveTeacher:
    """The parent itself, on the device it is on: exact, at the price of a forward pass a step."""

    model: PreTrainedModel
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    @property
    def digest(self) -> str:
        """Of the parent and the temperature."""
        return f"{digest_of(self.model)} {self.temperature!r}"

    @torch.no_grad()
    def __call__(self, rows: Tensor, batch: Tensor) -> Reference:
        """Over the whole vocabulary."""
        return Reference(_log_p(self.model, batch, self.temperature).flatten(0, 1).to(batch.device))


@dataclass(frozen=True)
class StoredTeacher:
    """Top-k log-probabilities on `windows` (n, seq_len), memory-mapped: `log_p` and `indices`
    (n, seq_len - 1, k) and `log_rest` (n, seq_len - 1)."""

    windows: Tensor
    log_p: Tensor
    indices: Tensor
    log_rest: Tensor
    temperature: float
    digest: str

    def __call__(self, rows: Tensor, batch: Tensor) -> Reference:
        """Over the k tokens and the rest, scaled so that together they are 1 again after rounding.

        Raises `InputError` for windows that are not the stored ones.
        """
        if int(rows.max()) >= len(self.windows) or not torch.equal(self.windows[rows].long(), batch.cpu()):
            raise InputError(
                f"the stored logits belong to {len(self.windows)} other windows; store them for these windows"
            )
        found = (each[rows].flatten(0, 1) for each in (self.log_p, self.indices, self.log_rest))
        return _scaled(batch.device, *found)

    def divergence(self, logits: Tensor, window: int, first: int) -> Tensor:
        """KL in nats, summed over positions of a window from the `first` on, from logits (m, vocab); an
        `evaluate.Divergence` at temperature 1."""
        some = (
            each[window, first : first + len(logits)] for each in (self.log_p, self.indices, self.log_rest)
        )
        return divergence(logits / self.temperature, _scaled(logits.device, *some)) * len(logits)


@torch.no_grad()
def stored_teacher(
    parent: PreTrainedModel,
    windows: Tensor,
    top_k: int,
    cache: Path,
    *,
    temperature: float = 1.0,
    batch_size: int = 8,
    digest: str | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> StoredTeacher:
    """The parent's `top_k` most likely next tokens on `windows` (n, seq_len), from `cache` if they are there.

    The file's name is the digest of parent, windows, k and temperature; the parent's own `digest`, which
    takes a reading of all weights, is computed unless it is given. `progress` is told how many windows
    are done. Raises `InputError` for a k that the vocabulary does not have.
    """
    _check_temperature(temperature)
    vocabulary = int(parent.config.vocab_size)
    if not 1 <= top_k <= vocabulary:
        raise InputError(f"the top {top_k} logits were asked for; give 1 to {vocabulary}, the vocabulary")
    key = [digest or digest_of(parent), tokens_digest(windows), top_k, temperature, FORMAT]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache / f"logits-{name}.safetensors"
    with alone(path):
        stored = read_tensors(path)
        if stored is None:
            parts = []
            for found in logits(parent, windows, batch_size):
                for window in found:  # one at a time: in float32 a batch takes several times its own memory
                    parts.append(_top((window[None, :-1].float() / temperature).log_softmax(-1), top_k))
                progress(len(found))
                del found, window
            log_p, indices, log_rest = (torch.cat(column) for column in zip(*parts, strict=True))
            _write(path, {"log_p": log_p, "indices": indices, "log_rest": log_rest, "windows": windows.int()})
            stored = read_tensors(path)
            if stored is None:
                raise InputError(
                    f"the logits just stored as {path} cannot be read; give another cache folder"
                )
    return StoredTeacher(**stored, temperature=temperature, digest=name)


def tokens_digest(windows: Tensor) -> str:
    """Sixteen hexadecimal digits over token ids and how they are cut into windows."""
    seen = hashlib.sha256(str(tuple(windows.shape)).encode())
    seen.update(windows.long().cpu().contiguous().numpy().data)
    return seen.hexdigest()[:16]


def _scaled(device: torch.device, log_p: Tensor, indices: Tensor, log_rest: Tensor) -> Reference:
    """What is stored of n positions, (n, k), (n, k) and (n,), as one distribution each."""
    log_p, log_rest = log_p.to(device).float(), log_rest.to(device)
    whole = torch.cat([log_p, log_rest[:, None]], dim=-1).logsumexp(-1)
    return Reference(log_p - whole[:, None], indices.to(device).long(), log_rest - whole)


def _log_p(model: PreTrainedModel, batch: Tensor, temperature: float) -> Tensor:
    """(n, seq_len - 1, vocab) in float32."""
    logits = model(batch.to(model.device), use_cache=False).logits[:, :-1]
    return (logits.float() / temperature).log_softmax(-1)


def _top(log_p: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest, their indices, and what is left, of log-probabilities (n, seq_len - 1, vocab)."""
    values, indices = log_p.topk(k)
    log_rest = log_p.scatter(-1, indices, -torch.inf).logsumexp(-1)
    return values.half().cpu(), indices.int().cpu(), log_rest.cpu()


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise InputError(f"the temperature of a distillation is {temperature}; give a finite one above 0")


def _write(path: Path, stored: dict[str, Tensor]) -> None:
    try:
        write_tensors(path, stored)
    except OSError as error:
        raise InputError(f"the logits cannot be stored as {path} ({error}); give another folder") from error
