"""What does a short training make of a subnet?

Recovers a checkpoint that this project saved, on training text: all weights of its blocks or LoRA adapters
that are merged at the end, by cross-entropy or towards the parent's logits. The weights that are best on some
validation windows are kept, saved as a checkpoint of the same form, and scored on others beside the parent
and the model as it was.

    python -m experiments.recover --model runs/demo/checkpoint --parent demo --corpus demo --distill \\
        --trust-remote-code --out runs/recovered
    python -m experiments.recover --model runs/model-80/checkpoint --parent ORGANISATION/MODEL \\
        --corpus alpaca-cleaned --method lora --steps 500 --trust-remote-code

Conversations are trained on as a whole, questions too. The same command again goes on where it was
interrupted. LoRA needs peft: pip install 'secateur[lora]'.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from data.corpus import TEXTS
from data.errors import InputError
from data.json_text import from_json
from experiments.command_line import check_least, option, required, run
from experiments.results import usable, versions
from experiments.score import load
from experiments.stages import Stages, say
from experiments.text import Text, read_text
from nas.architecture import Architecture
from nas.evaluate import Scores, evaluate_all
from nas.export import RECORD, save_again
from nas.families import layers_of, plain, shape_of, width_of
from nas.finalists import round_weights
from nas.parent import check_seq_len, choose_device, choose_dtype, digest_of, load_parent
from nas.recovery import METHODS, Recipe
from nas.recovery.lora import import_peft
from nas.recovery.teacher import LiveTeacher, Teacher, stored_teacher
from nas.recovery.training import recover
from nas.report import write_json
from nas.shape import Shape

STATE = "training.safetensors"


@dataclass(frozen=True)
class Settings:
    """All that a recovery depends on."""

    model: Path = required("checkpoint to recover, a folder that this project saved", group="input")
    parent: str = option("demo", "what it was cut out of: a Hub id, a local folder or demo", group="input")
    trust_remote_code: bool = option(
        False, "run the modelling file that the checkpoint brings with it", group="input"
    )
    corpus: str = option(
        "demo",
        f"text or conversations to train (train), choose (validation) and report on (test): {TEXTS}",
        group="input",
    )
    seq_len: int = option(256, "tokens in a window", group="input", least=2)
    training_windows: int = option(
        0,
        "training windows, passed over as often as it takes; 0 takes as many as all steps see",
        group="input",
        least=0,
    )
    choice_windows: int = option(
        32, "validation windows that the best weights are chosen on", group="input", least=1
    )
    final_windows: int = option(128, "other validation windows, for the scores", group="input", least=1)
    test_windows: int = option(256, "test windows of the scores; 0 takes all", group="input", least=0)

    method: str = option("full", "which weights are trained", group="training", choices=METHODS)
    distill: bool = option(
        False, "train towards the parent's logits instead of the text's tokens", group="training"
    )
    top_k: int = option(
        0,
        "store the parent's so many most likely tokens once, under --cache, and train towards them; 0 asks "
        "the parent anew in every step, for all tokens",
        group="training",
        least=0,
    )
    temperature: float = option(1.0, "of the distillation", group="training")
    alpha: float = option(0.0, "share of cross-entropy beside the distillation, 0 to 1", group="training")
    steps: int = option(200, "optimiser steps", group="training", least=0)
    batch_size: int = option(8, "windows in a step", group="training")
    micro_batch: int | None = option(None, "windows in a forward pass; none: all of a step", group="training")
    learning_rate: float | None = option(
        None,
        "the highest; none: "
        + ", ".join(f"{each.learning_rate:g} for {name}" for name, each in METHODS.items()),
        group="training",
    )
    embeddings: bool = option(
        False, "train embeddings, final norm and head too, with --method full", group="training"
    )
    rank: int = option(8, "of LoRA's adapters", group="training")
    check_every: int = option(50, "steps between two looks at the validation windows", group="training")

    device: str = option("auto", "auto, cpu or cuda", group="run")
    dtype: str = option("auto", "auto (bfloat16 on CUDA, else float32), float32 or bfloat16", group="run")
    seed: int = option(0, "of the training windows and their order", group="run")
    out: Path = option(Path("runs/recover"), "folder of the checkpoint and the record", group="run")
    cache: Path = option(Path("runs/cache"), "folder of tokens and logits that runs share", group="run")


def main(settings: Settings) -> None:
    """Load, train, score, save, print."""
    recipe = check(settings)
    usable(settings.cache)
    stages = Stages()
    with stages("load"):
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        parent, tokenizer = load_parent(settings.parent, device, dtype)
        check_seq_len(parent, settings.seq_len)
        shape = shape_of(parent)
        architecture = read_architecture(settings.model, shape)
        subnet = plain(load(str(settings.model), settings.trust_remote_code))
        check_widths(subnet, architecture)
        stored = subnet.dtype
        subnet = subnet.to(device, dtype)
        text = read_text(
            settings.corpus, tokenizer, shape.vocab, settings.seq_len, np.random.default_rng(settings.seed),
            settings.cache, calibration=1, pairs=settings.choice_windows, final=settings.final_windows,
            test=settings.test_windows,
            training=settings.training_windows or settings.steps * settings.batch_size,
        )  # fmt: skip
    with stages("teacher"):
        teacher = teacher_of(settings, parent, text)
    with (
        stages("training"),
        tqdm(total=settings.steps, desc="recovery", unit="step", leave=False) as bar,
    ):
        recovered = recover(
            subnet, text.training, method=settings.method, steps=settings.steps, recipe=recipe,
            teacher=teacher, validation=text.pairs, state=settings.out / STATE,
            progress=lambda done: bar.update(done),
        )  # fmt: skip
    round_weights(recovered.model, stored)  # what is scored is what is saved
    with stages("evaluate"):
        models = {"parent": parent, "before": subnet, "after": recovered.model}
        scores: dict[str, dict[str, Scores]] = {name: {} for name in models}
        for split, windows in (("validation", text.final), ("test", text.test)):
            found = evaluate_all(
                list(models.values()), windows, parent=parent, batch_size=settings.batch_size
            )
            for name, score in zip(models, found, strict=True):
                scores[name][split] = score
    with stages("save"):
        record = {
            "command": " ".join(["python -m experiments.recover", *sys.argv[1:]]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": asdict(settings),
            "architecture": architecture.digest,
            "parent": {"name": settings.parent, "digest": digest_of(parent)},
            "parameters": {name: model.num_parameters() for name, model in models.items()},
            "scores": {
                name: {split: score.record() for split, score in each.items()}
                for name, each in scores.items()
            },
            "history": [asdict(step) for step in recovered.history],
            "kept_step": recovered.kept_step,
            "training_seconds": recovered.seconds,
            "stages": stages.seconds,
            "protocol": protocol(settings, text, str(dtype), str(device)),
            "versions": versions(),
        }
        folder = save_again(recovered.model, settings.model, settings.out / "checkpoint")
        (folder / "README.md").write_text(card(settings, record), encoding="utf-8")
        write_json(record, settings.out / "recovery.json")
        (settings.out / STATE).unlink(missing_ok=True)
    print(table(record))
    say(f"\ncheckpoint {settings.out / 'checkpoint'}, record {settings.out / 'recovery.json'}")


def check(settings: Settings) -> Recipe:
    """The recipe that the settings spell; `InputError` for what cannot mean anything, before any work."""
    check_least(settings)
    if settings.steps == settings.training_windows == 0:
        raise InputError("0 steps see 0 training windows; give --steps 1 or more")
    if settings.top_k and not settings.distill:
        raise InputError(
            f"--top-k {settings.top_k} is for --distill, which is not given; give both or neither"
        )
    if (settings.out / "checkpoint").resolve() == settings.model.resolve():
        raise InputError(f"--out {settings.out} would replace --model {settings.model}; give another --out")
    if settings.method == "lora":
        import_peft()
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the output folder {settings.out} cannot be used ({error}); give another"
        ) from error
    return Recipe(
        batch_size=settings.batch_size,
        micro_batch=settings.micro_batch,
        learning_rate=settings.learning_rate,
        alpha=settings.alpha,
        embeddings=settings.embeddings,
        rank=settings.rank,
        seed=settings.seed,
        validate_every=settings.check_every,
    )


def read_architecture(folder: Path, shape: Shape) -> Architecture:
    """What a checkpoint of this project is; `InputError` if it is none, or not one of this parent's."""
    path = folder / RECORD
    try:
        record = from_json(path.read_text(encoding="utf-8"))
        architecture = Architecture.from_json(json.dumps(record["architecture"]))
        theirs = asdict(Shape(**record["parent_shape"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}); give the folder of a checkpoint that this "
            "project saved"
        ) from error
    mine = asdict(shape)
    other = sorted(name for name in mine if theirs.get(name) != mine[name] and name != "outside")
    if other:  # outside its blocks a checkpoint may have more: a rotation unties the head
        name = other[0]
        raise InputError(
            f"{folder} was cut out of a parent with {name} {theirs.get(name)!r}, not {mine[name]!r}; give "
            "that --parent"
        )
    return architecture


def check_widths(subnet: PreTrainedModel, architecture: Architecture) -> None:
    """Raises `InputError` where the checkpoint's weights are not of its record's architecture."""
    layers = layers_of(subnet)
    wanted = [block.ffn for block in architecture.blocks]
    if len(layers) != len(wanted) or any(
        width_of(layer) != ffn for layer, ffn in zip(layers, wanted, strict=True) if ffn
    ):
        raise InputError(
            f"the weights of the checkpoint do not have the widths of its {RECORD}; it is damaged"
        )


def teacher_of(settings: Settings, parent: PreTrainedModel, text: Text) -> Teacher | None:
    """What the subnet is trained towards; none is the text alone."""
    if not settings.distill:
        return None
    if not settings.top_k:
        return LiveTeacher(parent, settings.temperature)
    with tqdm(total=len(text.training), desc="parent's logits", unit="window", leave=False) as bar:
        return stored_teacher(
            parent, text.training, settings.top_k, settings.cache, temperature=settings.temperature,
            batch_size=settings.batch_size, progress=lambda done: bar.update(done),
        )  # fmt: skip


def protocol(settings: Settings, text: Text, dtype: str, device: str) -> dict[str, str]:
    """How every number came about."""
    loss = "cross-entropy"
    if settings.distill:
        tokens = f"top {settings.top_k} tokens and the rest" if settings.top_k else "all tokens"
        loss = f"KL(parent || model) over {tokens} at temperature {settings.temperature:g}"
        loss += f", {settings.alpha:g} of the loss cross-entropy" * (settings.alpha > 0)
    return {
        "corpus": f"{text.name}: {text.source}",
        "window": f"{settings.seq_len} tokens, the first of each is not predicted",
        "training": f"{settings.steps} steps of {settings.batch_size} out of {len(text.training)} "
        f"training windows, {settings.method}, {loss}",
        "choice": f"{len(text.pairs)} validation windows, looked at every {settings.check_every} steps",
        "validation": f"{len(text.final)} other validation windows",
        "test": f"{len(text.test)} test windows; KL is KL(parent || model)",
        "dtype": dtype,
        "device": device,
    }


def card(settings: Settings, record: dict[str, Any]) -> str:
    """The model's card with a section on its recovery."""
    before = settings.model / "README.md"
    words = before.read_text(encoding="utf-8").rstrip() + "\n\n" if before.is_file() else ""
    scores = "; ".join(
        f"{split} perplexity {record['scores']['before'][split]['perplexity']:.3f} before, "
        f"{record['scores']['after'][split]['perplexity']:.3f} after, "
        f"{record['scores']['parent'][split]['perplexity']:.3f} of the parent"
        for split in ("validation", "test")
    )
    told = record["protocol"]
    return (
        f"{words}## Recovery\n\nThe weights were trained after the cut: {told['training']}; the best of "
        f"{told['choice']} are those after step {record['kept_step']}. {scores} ({told['validation']}, "
        f"{told['test']}, {told['window']}, {told['dtype']}).\n"
    )


def table(record: dict[str, Any]) -> str:
    """Parent, before and after, one line each."""
    scores, told = record["scores"], record["protocol"]
    lines = [
        f"{told['training']}; kept step {record['kept_step']}, {record['training_seconds']:.0f} s",
        f"{'':8}  parameters  perplexity  perplexity  x parent  accuracy  KL(parent ||",
        f"{'':8}              validation        test    (test)    (test)  model) (test)",
    ]
    for name, each in scores.items():
        test = each["test"]
        times = math.exp(test["nll"] - scores["parent"]["test"]["nll"])
        lines.append(
            f"{name:8}  {record['parameters'][name]:10,}  {each['validation']['perplexity']:10.3f}  "
            f"{test['perplexity']:10.3f}  {times:8.4f}  {test['accuracy']:8.4f}  {test['kl']:14.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(Settings, main))
