"""The end of the main job: finalists are repaired, the best of each contender is chosen, and all is measured.

Repairing and scoring take minutes each on a large parent. So every score is kept in a folder under all that
it depends on: killed here and run again, the job repairs only those models that it still has to measure or to
save, and ends with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from platform import node
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.results import versions
from experiments.text import Text
from nas.architecture import Architecture
from nas.evaluate import Scores, evaluate_all
from nas.finalists import Contender, repair_and_choose
from nas.latency import Latency, device_name, measure_latency
from nas.latency_table import Request
from nas.pairs import Pair, Setting
from nas.placement import device_of
from nas.prepare import Prepared
from nas.recovery.teacher import tokens_digest
from nas.remembered import Remembered
from nas.repair import Make
from nas.repair.stream import Stream
from nas.space import SearchSpace

FOLDER, FORMAT = "finals", 1
"""Where scores are kept in the output folder; a number that is raised whenever they are made differently."""
PARENT = "parent"
"""What the parent is called among contenders."""


@dataclass(frozen=True)
class Finals:
    """Repairs with `repair`, which `repair_name` and `setting` say all about, rounds weights to `stored`, and
    measures; scores are kept in `out`."""

    prepared: Prepared
    space: SearchSpace
    text: Text
    setting: Setting
    repair_name: str
    repair: Make
    stored: torch.dtype
    batch_size: int
    out: Path

    def choose(self, name: str, pairs: Sequence[Pair], count: int) -> Contender:
        """The best of `count` finalists among `pairs`, on the final validation windows."""

        def known(architecture: Architecture, compute: Callable[[], Scores]) -> Scores:
            return self._scores(compute, **self._of(architecture, self.text.final))

        return repair_and_choose(
            self.prepared, self.space, pairs, self._dense, self.text.final, finalists=count,
            batch_size=self.batch_size, name=name, repair=self.repair, stored=self.stored, known=known,
        )  # fmt: skip

    def test(self, contenders: Mapping[str, Contender]) -> dict[str, Scores]:
        """Scores of the parent and of all contenders on the test windows, beside the parent's logits."""
        asked = {PARENT: self._of(None, self.text.test, beside=PARENT)} | {
            name: self._of(each.architecture, self.text.test, beside=PARENT)
            for name, each in contenders.items()
        }
        found = {name: self._scores.find(**inputs) for name, inputs in asked.items()}
        missing = [name for name, scores in found.items() if scores is None]
        if missing:
            models = [self._model(name, contenders) for name in missing]
            new = evaluate_all(
                models, self.text.test, parent=self.prepared.parent, batch_size=self.batch_size
            )
            for name, scores in zip(missing, new, strict=True):
                found[name] = self._scores.keep(scores, **asked[name])
        return {name: scores for name, scores in found.items() if scores is not None}

    def latencies(self, contenders: Mapping[str, Contender], request: Request) -> dict[str, Latency]:
        """Of the parent and of all contenders, measured in turn; only such as were measured together are
        compared."""
        names = [PARENT, *contenders]
        device = device_of(self.prepared.parent)
        together = {
            "models": [each.architecture.to_json() for each in contenders.values()],
            "request": asdict(request), "machine": [node(), device_name(device)],
        }  # fmt: skip
        kept = Remembered(self._scores.folder, Latency, {**self._scores.inputs, **together})
        found = [latency for i in range(len(names)) if (latency := kept.find(number=i)) is not None]
        if len(found) < len(names):
            models = [self._model(name, contenders) for name in names]
            found = measure_latency(models, **asdict(request))
            for number, latency in enumerate(found):
                kept.keep(latency, number=number)
        return dict(zip(names, found, strict=True))

    def _model(self, name: str, contenders: Mapping[str, Contender]) -> PreTrainedModel:
        return self.prepared.parent if name == PARENT else contenders[name].model

    def _of(
        self, architecture: Architecture | None, windows: Tensor, beside: str | None = None
    ) -> dict[str, Any]:
        """Inputs of scores on these windows; without an architecture the parent's, as it is."""
        shape = None if architecture is None else architecture.to_json()
        return {"architecture": shape, "windows": tokens_digest(windows), "beside": beside}

    @cached_property
    def _dense(self) -> Stream:
        return Stream(self.prepared.parent, self.text.calibration, self.batch_size)

    @cached_property
    def _scores(self) -> Remembered[Scores]:
        """Scores under all that they depend on besides architecture and windows."""
        text, device = self.text, device_of(self.prepared.parent)
        windows = {"calibration": text.calibration, "pairs": text.pairs, "training": text.training}
        inputs = {
            "format": FORMAT, "setting": dict(self.setting.fields), "knobs": dict(self.space.knobs),
            "repair": self.repair_name, "stored": str(self.stored), "batch_size": self.batch_size,
            "tokens": {name: tokens_digest(each) for name, each in windows.items()},
            "device": device_name(device), "versions": versions(),
        }  # fmt: skip
        return Remembered(self.out / FOLDER, Scores, inputs)
