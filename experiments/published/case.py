"""What every published system starts from: the common settings, a parent on a text, and what is reported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from data.corpus import load_corpus
from data.errors import InputError
from data.tasks import TASKS, read_task
from data.windows import encode, spread, windows
from experiments.command_line import check_least, option
from experiments.published.measures import Measures
from experiments.text import Text, read_text
from nas.architecture import Architecture
from nas.cost import Budget, CostModel, budget_of
from nas.evidence import Evidence
from nas.families import shape_of
from nas.parent import check_seq_len, choose_device, choose_dtype, digest_of, load_parent
from nas.recovery import METHODS
from nas.recovery.lora import import_peft
from nas.shape import Shape


@dataclass(frozen=True)
class Common:
    """Settings that all systems share, so that they are compared at equal size, data and evaluation."""

    parent: str = option("demo", "model to compress: a Hub id, a local folder or demo", group="input")
    corpus: str = option(
        "demo",
        "text to calibrate on (train), search on (validation) and report on (test), as in compress",
        group="input",
    )
    more_corpora: tuple[str, ...] = option((), "further texts whose test split is reported on", group="input")
    tasks: tuple[str, ...] = option(
        (), f"multiple-choice tasks to report accuracy on: {', '.join(TASKS)}", group="input", metavar="NAME"
    )
    task_folder: Path | None = option(None, "folder of their files; from the Hub without one", group="input")
    task_items: int = option(
        0,
        "questions of each, the first ones (of MMLU over all subjects); 0 takes all",
        group="input",
        least=0,
    )
    seq_len: int = option(256, "tokens in a window", group="input", least=2)
    calibration_windows: int = option(
        128, "training windows for criteria and repairs", group="input", least=1
    )
    search_windows: int = option(32, "validation windows that a search measures on", group="input", least=1)
    final_windows: int = option(
        128, "other validation windows, that results are chosen on", group="input", least=1
    )
    test_windows: int = option(256, "test windows of the final scores; 0 takes all", group="input", least=0)
    keep: tuple[float, ...] = option(
        (0.8, 0.6, 0.5), "fractions of the blocks' parameters to keep", group="budget"
    )
    recovery: str | None = option(
        None, "also train each checkpoint towards its parent's logits: full, or lora for adapters alone",
        group="recovery", choices=METHODS,
    )  # fmt: skip
    recovery_steps: int = option(200, "steps of that, of --batch-size windows", group="recovery", least=1)

    device: str = option("auto", "auto, cpu or cuda", group="run")
    dtype: str = option("auto", "auto (bfloat16 on CUDA, else float32), float32 or bfloat16", group="run")
    batch_size: int = option(8, "windows in a forward pass", group="run", least=1)
    seed: int = option(0, "of everything that is drawn", group="run", least=0)
    out: Path = option(Path("runs/published"), "folder of checkpoints and results", group="run")
    cache: Path = option(Path("runs/cache"), "folder of tokens and orders that runs share", group="run")


@dataclass(frozen=True)
class Case:
    """A parent with its text, the evidence on it, and what it scores; read only."""

    settings: Common
    parent: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    digest: str
    shape: Shape
    cost: CostModel
    text: Text
    measures: Measures

    @cached_property
    def evidence(self) -> Evidence:
        """On the calibration windows."""
        return Evidence(
            self.parent, self.shape, self.text.calibration, self.settings.batch_size, self.settings.seed
        )

    @cached_property
    def parent_scores(self) -> dict[str, Any]:
        """What is reported, of the parent."""
        return self.measures.of(self.parent, self.tokenizer)

    def budget(self, keep: float) -> Budget:
        """At most this fraction of the blocks' parameters."""
        return budget_of(self.cost, keep)

    def kept(self, architecture: Architecture) -> float:
        """The fraction of the blocks' parameters that an architecture keeps."""
        whole = self.cost(self.shape.parent)["block_parameters"]
        return self.cost(architecture)["block_parameters"] / whole


def open_case(settings: Common) -> Case:
    """Load what the settings name. Raises `InputError` for whatever cannot be."""
    if not settings.keep:
        raise InputError("--keep is empty; give one fraction or more")
    for keep in settings.keep:
        if not 0 < keep <= 1:
            raise InputError(f"--keep is {keep}; give fractions above 0 and at most 1")
    check_least(settings)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        settings.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error}; give another --out or --cache") from error
    if settings.recovery == "lora":
        import_peft()
    device = choose_device(settings.device)
    parent, tokenizer = load_parent(settings.parent, device, choose_dtype(settings.dtype, device))
    check_seq_len(parent, settings.seq_len)
    shape = shape_of(parent)
    text = read_text(
        settings.corpus, tokenizer, shape.vocab, settings.seq_len, np.random.default_rng(settings.seed),
        settings.cache, calibration=settings.calibration_windows, pairs=settings.search_windows,
        final=settings.final_windows, test=settings.test_windows,
        training=settings.recovery_steps * settings.batch_size if settings.recovery else 0,
    )  # fmt: skip
    texts = {text.name: text.test}
    for name in settings.more_corpora:
        found = load_corpus(name, tokenizer)
        split = windows(encode(tokenizer, found.split("test"), settings.cache), settings.seq_len)
        texts[found.name] = spread(split, min(settings.test_windows or len(split), len(split)))
    tasks = tuple(
        read_task(name, settings.task_folder, limit=settings.task_items)
        for name in dict.fromkeys(settings.tasks)
    )
    return Case(
        settings, parent, tokenizer, parent.config, digest_of(parent), shape,
        CostModel(shape, settings.seq_len, parent.dtype.itemsize), text,
        Measures(texts, tasks, settings.batch_size),
    )  # fmt: skip
