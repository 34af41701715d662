"""What do saved models score on a text, beside their parent?

Perplexity with its protocol, next-token accuracy and divergence from the parent, for any number of
checkpoints that share the parent's tokenizer:

    python -m experiments.score --parent demo --models runs/demo/checkpoint --trust-remote-code
    python -m experiments.score --parent ORGANISATION/MODEL --models runs/a/checkpoint runs/b/checkpoint \\
        --corpus Salesforce/wikitext:wikitext-2-raw-v1 --trust-remote-code

    python -m experiments.score --parent demo --models runs/demo/subnet.gguf

A .gguf file (`experiments.export`) is run by llama.cpp on the same tokens; that takes the extra `llama-cpp`.
Models bigger than one GPU are spread over all of them by `--device-map auto`.

A subnet with different widths in its blocks brings a modelling file of its own, which runs only with
`--trust-remote-code`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from data.corpus import ALL, TEXTS, load_text
from data.errors import InputError
from data.stdlib import SPLITS
from data.windows import encode, spread, windows
from experiments.command_line import option, run
from nas.engines.llama_cpp import LlamaCpp
from nas.evaluate import evaluate_all
from nas.parent import (
    DTYPES,
    check_seq_len,
    choose_device,
    choose_dtype,
    load_checkpoint,
    load_parent,
    load_tokenizer,
    place_of,
    saying_what_failed,
)
from nas.report import write_json

MAPS = ("auto", "balanced", "sequential")
"""How accelerate spreads a model over devices."""


@dataclass(frozen=True)
class Settings:
    """What is scored on what."""

    parent: str = option("demo", "model to compare with: a Hub id, a local folder or demo", group="input")
    models: tuple[str, ...] = option(
        (), "checkpoints to score, Hub ids or folders, and .gguf files, run by llama.cpp", group="input"
    )
    trust_remote_code: bool = option(
        False, "run the modelling files that checkpoints bring with them", group="input"
    )
    corpus: str = option("demo", f"text to score on: {TEXTS}", group="input")
    split: str = option(
        "test", "which part of it; all is a whole file, or every file of a folder",
        group="input", choices=(*SPLITS, ALL),
    )  # fmt: skip
    seq_len: int = option(256, "tokens in a window", group="input")
    windows: int = option(0, "windows, evenly spaced; 0 takes all", group="input")

    device: str = option("auto", "auto, cpu, cuda or cuda:N", group="run")
    device_map: str | None = option(
        None, "spread every model over all devices, as accelerate does it: auto, balanced or sequential",
        group="run",
    )  # fmt: skip
    dtype: str = option("auto", "what all models are computed in", group="run", choices=DTYPES)
    batch_size: int = option(8, "windows in a forward pass", group="run")
    json: Path | None = option(None, "file to write the scores to as well", group="run")


def main(settings: Settings) -> None:
    """Load, score side by side, print."""
    if settings.windows < 0 or settings.batch_size < 1 or settings.seq_len < 2:
        raise InputError(
            f"--windows is {settings.windows}, --batch-size {settings.batch_size} and --seq-len "
            f"{settings.seq_len}; give at least 0, 1 and 2"
        )
    if settings.json is not None:
        try:
            settings.json.parent.mkdir(parents=True, exist_ok=True)
            settings.json.touch()
        except OSError as error:
            raise InputError(
                f"{settings.json} cannot be written ({error.strerror}); give another --json"
            ) from error
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    trust = settings.trust_remote_code
    if settings.device_map is None:
        parent, tokenizer = load_parent(settings.parent, device, dtype)
        models: dict[str, Any] = {
            name: LlamaCpp(name, settings.seq_len, device=device)
            if is_gguf(name)
            else load(name, trust).to(device, dtype)
            for name in settings.models
        }
    else:
        check_map(settings.device_map)
        over = {"device_map": settings.device_map, "dtype": dtype}
        parent, tokenizer = load(settings.parent, False, **over), load_tokenizer(settings.parent)
        models = {
            name: LlamaCpp(name, settings.seq_len, device=device)
            if is_gguf(name)
            else load(name, trust, **over)
            for name in settings.models
        }
    check_seq_len(parent, settings.seq_len)
    for name, model in models.items():
        if model.config.vocab_size != parent.config.vocab_size:
            raise InputError(
                f"{name} has a vocabulary of {model.config.vocab_size}, the parent one of "
                f"{parent.config.vocab_size}; give models with the parent's tokenizer"
            )
    words, source = load_text(settings.corpus, settings.split, tokenizer)
    every = windows(encode(tokenizer, words), settings.seq_len)
    text = spread(every, min(settings.windows or len(every), len(every)))
    with tqdm(total=len(text), desc="scoring", unit="window", leave=False) as bar:
        scores = evaluate_all(
            [parent, *models.values()], text,
            parent=parent, batch_size=settings.batch_size, progress=lambda done: bar.update(done),
        )  # fmt: skip
    print(
        f"{settings.corpus}, {settings.split} ({source}): {len(text)} of {len(every)} windows of "
        f"{settings.seq_len} tokens, of which the first is not predicted, {scores[0].tokens} predicted "
        f"tokens, {dtype}" + ", .gguf files as llama.cpp computes them" * any(map(is_gguf, models))
    )
    names = [settings.parent, *models]
    wide = max(map(len, names))
    print(f"{'':{wide}}  parameters  perplexity  x parent  accuracy  KL(parent || model)")
    for name, model, score in zip(names, [parent, *models.values()], scores, strict=True):
        times = np.exp(score.nll - scores[0].nll)
        print(
            f"{name:{wide}}  {model.num_parameters():10,}  {score.perplexity:10.3f}  {times:8.4f}  "
            f"{score.accuracy:8.4f}  {score.kl:19.4f}"
        )
    if settings.json is not None:
        record = {name: score.record() for name, score in zip(names, scores, strict=True)}
        write_json(record, settings.json)


def is_gguf(name: str) -> bool:
    """Whether a name means a file of llama.cpp's."""
    return name.endswith(".gguf") and Path(name).is_file()


def check_map(name: str) -> None:
    """Raise `InputError` unless models can be spread over devices in this way."""
    if name not in MAPS:
        raise InputError(f"--device-map is {name!r}; give {', '.join(MAPS)}, or leave it out")
    if find_spec("accelerate") is None:
        raise InputError("--device-map needs accelerate: pip install accelerate, or leave it out")


def load(name: str, trust: bool, **given: Any) -> PreTrainedModel:
    """A checkpoint, loaded with what is `given` besides; `InputError` if it cannot be."""
    place = place_of(name)
    with saying_what_failed(f"the model {name}"):
        brings_code = "auto_map" in PreTrainedConfig.get_config_dict(place)[0]
        if not brings_code or trust:
            return load_checkpoint(place, trust=trust, **given)
    raise InputError(
        f"the model {name} brings code of its own, which runs only with --trust-remote-code; look at it, and "
        "give that"
    )


if __name__ == "__main__":
    sys.exit(run(Settings, main))
