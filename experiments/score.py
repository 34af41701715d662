"""What do saved models score on a text, beside their parent?

Perplexity with its protocol, next-token accuracy and divergence from the parent, for any number of
checkpoints that share the parent's tokenizer:

    python -m experiments.score --parent demo --models runs/demo/checkpoint --trust-remote-code
    python -m experiments.score --parent ORGANISATION/MODEL --models runs/a/checkpoint runs/b/checkpoint \\
        --corpus Salesforce/wikitext:wikitext-2-raw-v1 --trust-remote-code

A subnet with different widths in its blocks brings a modelling file of its own, which runs only with
`--trust-remote-code`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from data.corpus import load_corpus
from data.errors import InputError
from data.windows import encode, spread, windows
from experiments.command_line import option, run
from nas.evaluate import evaluate_all
from nas.parent import choose_device, choose_dtype, load_parent
from nas.report import write_json


@dataclass(frozen=True)
class Settings:
    """What is scored on what."""

    parent: str = option("demo", "model to compare with: a Hub id, a local folder or demo", group="input")
    models: tuple[str, ...] = option((), "checkpoints to score, Hub ids or folders", group="input")
    trust_remote_code: bool = option(
        False, "run the modelling files that checkpoints bring with them", group="input"
    )
    corpus: str = option("demo", "text to score on, named as in compress", group="input")
    split: str = option("test", "which part of it", group="input", choices=("train", "validation", "test"))
    seq_len: int = option(256, "tokens in a window", group="input")
    windows: int = option(0, "windows, evenly spaced; 0 takes all", group="input")

    device: str = option("auto", "auto, cpu or cuda", group="run")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16, of all models", group="run")
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
            raise InputError(f"{settings.json} cannot be written ({error}); give another --json") from error
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    parent, tokenizer = load_parent(settings.parent, device, dtype)
    models = {name: load(name, settings.trust_remote_code).to(device, dtype) for name in settings.models}
    for name, model in models.items():
        if model.config.vocab_size != parent.config.vocab_size:
            raise InputError(
                f"{name} has a vocabulary of {model.config.vocab_size}, the parent one of "
                f"{parent.config.vocab_size}; give models with the parent's tokenizer"
            )
    text = windows(encode(tokenizer, load_corpus(settings.corpus).split(settings.split)), settings.seq_len)
    text = spread(text, min(settings.windows or len(text), len(text)))
    with tqdm(total=len(text), desc="scoring", unit="window", leave=False) as bar:
        scores = evaluate_all(
            [parent, *models.values()], text,
            parent=parent, batch_size=settings.batch_size, progress=lambda done: bar.update(done),
        )  # fmt: skip
    print(
        f"{settings.corpus}, {settings.split}: {len(text)} windows of {settings.seq_len} tokens, of "
        f"which the first is not predicted, {scores[0].tokens} predicted tokens, {dtype}"
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


def load(name: str, trust: bool) -> PreTrainedModel:
    """A checkpoint; `InputError` if it cannot be loaded."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=trust)
    except Exception as error:  # whatever a broken folder or a missing network makes the library raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        hint = "check the folder" if trust else "check the folder, or give --trust-remote-code"
        raise InputError(f"the model {name} cannot be loaded ({reason}); {hint}") from error
    return model.eval()


if __name__ == "__main__":
    sys.exit(run(Settings, main))
