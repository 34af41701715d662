"""What is reported of every model alike: perplexity on test texts and accuracy on multiple-choice tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.tasks import Task
from nas.evaluate import evaluate
from nas.tasks import score_items


@dataclass(frozen=True)
class Measures:
    """Windows (n, seq_len) of each test text by name, the first is the one that was also searched on; tasks;
    and the windows in a forward pass."""

    texts: Mapping[str, Tensor]
    tasks: tuple[Task, ...]
    batch_size: int

    @property
    def record(self) -> dict[str, Any]:
        """What is measured, with digests of the tokens and questions."""
        return {
            "texts": {
                name: {"windows": len(each), "tokens": each.shape[1], "digest": digest_of_windows(each)}
                for name, each in self.texts.items()
            },
            "tasks": {
                task.name: {"questions": len(task.items), "digest": task.digest} for task in self.tasks
            },
        }

    def of(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """`perplexities` by text, and by task what the built-in scorer counts."""
        found: dict[str, Any] = {"perplexities": {}, "tasks": {}}
        steps = [*self.texts, *(task.name for task in self.tasks)]
        with tqdm(total=len(steps), desc="scores", unit="test", leave=False) as bar:
            for name, windows in self.texts.items():
                nll = evaluate(model, windows, batch_size=self.batch_size).nll
                found["perplexities"][name] = float(np.exp(nll))
                bar.update()
            for task in self.tasks:
                scores = score_items(model, tokenizer, task.items, batch_size=2 * self.batch_size)
                found["tasks"][task.name] = scores.record()
                bar.update()
        return found


def digest_of_windows(windows: Tensor) -> str:
    """Sixteen hexadecimal digits over the token ids."""
    return hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16]
