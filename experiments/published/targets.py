"""Several numbers of one subnet at once: what a multi-target predictor learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from data.corpus import load_corpus
from data.tasks import Item, read_task
from data.windows import encode, spread, windows
from experiments.published.case import Case
from experiments.published.measures import digest_of_windows
from nas.evaluate import evaluate
from nas.tasks import score_items


@dataclass(frozen=True)
class Targets:
    """Measurements by name, larger is better each, and `fields`, which say what they depend on."""

    measures: Mapping[str, Callable[[PreTrainedModel], float]]
    fields: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """In order; the first is the pair's score."""
        return list(self.measures)

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """All of one model."""
        return {name: measure(model) for name, measure in self.measures.items()}


def make_targets(case: Case, second_corpus: str, tasks: Sequence[str], task_items: int) -> Targets:
    """Negative log-perplexity on the case's validation windows and on as many of a second text, and accuracy
    on so many items of the tasks' validation splits. Raises `InputError` for what cannot be read."""
    size = case.settings.batch_size
    texts = {"log_perplexity": case.text.pairs}
    fields: dict[str, Any] = {"corpus": case.text.name, "windows": len(case.text.pairs)}
    if second_corpus:
        found = load_corpus(second_corpus, case.tokenizer)
        ids = encode(case.tokenizer, found.split("validation"), case.settings.cache)
        second = windows(ids, case.settings.seq_len)
        texts["second_log_perplexity"] = spread(second, min(len(case.text.pairs), len(second)))
        fields["second_corpus"] = [found.name, digest_of_windows(texts["second_log_perplexity"])]

    def score(seen: Tensor, model: PreTrainedModel) -> float:
        return evaluate(model, seen, batch_size=size).score

    measures: dict[str, Callable[[PreTrainedModel], float]] = {
        name: partial(score, seen) for name, seen in texts.items()
    }
    for name in dict.fromkeys(tasks):
        task = read_task(name, case.settings.task_folder, split="validation", limit=task_items)
        fields[name] = task.digest

        def accuracy(model: PreTrainedModel, items: Sequence[Item] = task.items) -> float:
            return score_items(model, case.tokenizer, items, batch_size=2 * size).acc

        measures[name] = accuracy
    return Targets(measures, fields)
