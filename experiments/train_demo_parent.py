"""Which small parent can anyone rebuild and prune without a download? Trains the one kept in `data/demo/`.

A byte-level BPE tokenizer and a LLaMA-type model are trained on the source text of Python's standard library
(`data/stdlib.py`), on one CPU core, within the given minutes. A run that was killed is resumed by the same
command.

    python -m experiments.train_demo_parent --minutes 36 --out data/demo
"""

import json
import math
import platform
import shutil
import tempfile
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from data.errors import InputError
from data.stdlib import SPLITS, stdlib_documents
from data.windows import encode, spread, windows
from experiments.command_line import option
from experiments.command_line import run as run_script
from nas.recovery.state import read_state, write_state

END = "<|endoftext|>"


@dataclass(frozen=True)
class Settings:
    """Everything the result depends on, beside the Python release whose library is read."""

    out: Path = option(Path("data/demo"), "folder of the checkpoint")
    work: Path = option(
        Path(tempfile.gettempdir()) / "train-demo-parent",
        "folder of the run in progress, from which it resumes",
    )
    measure_only: bool = option(False, "train nothing: measure the checkpoint in OUT and renew its figures")

    minutes: float = option(36.0, "the run ends after so many minutes of training", group="training")
    steps: int = option(20_000, "or after so many steps, whichever is first", group="training")
    batch: int = option(16, "windows a step", group="training")
    window: int = option(256, "tokens a window", group="training")
    learning_rate: float = option(3e-3, "the highest", group="training")
    final_fraction: float = option(0.02, "of the learning rate, at the end of the cosine", group="training")
    warmup_steps: int = option(100, "over which the learning rate rises", group="training")
    weight_decay: float = option(0.1, "of matrices", group="training")
    clip: float = option(1.0, "norm of the gradient at most", group="training")
    precision: Literal["float32", "bfloat16"] = option(
        "bfloat16", "of products in training", group="training"
    )
    seed: int = option(0, "of initial weights and windows", group="training")

    vocab: int = option(4096, "entries of the tokenizer", group="model")
    hidden: int = option(192, "width", group="model")
    layers: int = option(6, "blocks", group="model")
    heads: int = option(6, "query heads a block", group="model")
    kv_heads: int = option(3, "KV groups a block", group="model")
    head_dim: int = option(32, "width of a head", group="model")
    ffn: int = option(512, "FFN channels a block", group="model")
    positions: int = option(512, "longest input in tokens", group="model")


def train_tokenizer(texts: list[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab` entries whose only special token, id 0, is never added by itself."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def new_model(settings: Settings) -> LlamaForCausalLM:
    """The untrained parent in float32; the initial weights depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=settings.vocab,
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=settings.positions,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config).float()


@torch.no_grad()
def mean_loss(model: nn.Module, held_out: Tensor, batch: int = 16) -> float:
    """Mean negative log-likelihood per predicted token (nats) of windows `(n, window)`, each by itself."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in held_out.split(batch)]
    return sum(losses) / len(held_out)


def recipe(settings: Settings) -> dict[str, Any]:
    """The settings by which the weights come about: all but where they lie."""
    return {
        name: value for name, value in asdict(settings).items() if name not in ("out", "work", "measure_only")
    }


def rate(settings: Settings, step: int, done: float) -> float:
    """Learning rate: linear warm-up over steps, then a cosine over the fraction of the run that is done."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    fraction = settings.final_fraction + (1 - settings.final_fraction) * cosine
    return settings.learning_rate * fraction * min(1.0, (step + 1) / settings.warmup_steps)


class Run:
    """A run that can be stopped at any moment: model, optimizer, steps done, seconds spent, loss curve."""

    def __init__(self, settings: Settings, tokens: NDArray[np.int32]) -> None:
        self.settings, self.tokens = settings, tokens
        self.model = new_model(settings)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
        )
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float]] = []
        self.before = math.nan

    def done(self) -> float:
        """Fraction of the run behind us, by steps or by time, whichever is further."""
        return max(self.step / self.settings.steps, self.seconds / (60 * self.settings.minutes))

    def advance(self) -> float:
        """One optimizer step on random windows; the draw depends on the seed and the step alone."""
        begun = time.monotonic()
        rng = np.random.default_rng([self.settings.seed, self.step])
        starts = rng.integers(0, len(self.tokens) - self.settings.window, size=self.settings.batch)
        rows = np.stack([self.tokens[start : start + self.settings.window] for start in starts])
        batch = torch.from_numpy(rows.astype(np.int64))
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.settings, self.step, self.done())
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            loss = self.model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.monotonic() - begun
        return loss.item()

    def save(self, path: Path) -> None:
        """Write all of the run to `path` in one move."""
        state = {name: getattr(self, name) for name in ("step", "seconds", "curve", "before")}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"settings": recipe(self.settings)}
        write_state(path, "demo parent", state)

    def load(self, path: Path) -> None:
        """Go on where `save` left off; InputError where that was a run of other settings."""
        state = read_state(path, "demo parent") or {}
        other = [name for name, value in recipe(self.settings).items() if state["settings"][name] != value]
        if other:
            raise InputError(
                f"{path} is a run with another {', '.join(other)}: delete it, or give another --work folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("step", "seconds", "curve", "before"):
            setattr(self, name, state[name])


def train(settings: Settings, tokens: dict[str, NDArray[np.int32]]) -> Run:
    """Train until the steps or the minutes are over, saving the run every minute to the work folder."""
    run = Run(settings, tokens["train"])
    settings.work.mkdir(parents=True, exist_ok=True)
    path = settings.work / "run.safetensors"
    watched = spread(windows(tokens["validation"], settings.window), 64)
    if path.exists():
        run.load(path)
        print(f"resumed at step {run.step} after {run.seconds / 60:.1f} min")
    else:
        run.before = mean_loss(run.model, watched)
        print(f"validation loss before {run.before:.3f}, of a uniform guess {math.log(settings.vocab):.3f}")
    saved, recent = time.monotonic(), []
    while run.done() < 1.0:
        recent.append(run.advance())
        if len(recent) == 50:
            run.curve.append((run.step, round(sum(recent) / len(recent), 4)))
            left = run.seconds / run.done() - run.seconds
            loss = run.curve[-1][1]
            print(
                f"step {run.step:6d}  loss {loss:.3f}  {run.seconds / 60:5.1f} min, {left / 60:.1f} left",
                flush=True,
            )
            recent = []
        if run.step % 500 == 0:
            loss = mean_loss(run.model, watched)
            print(f"step {run.step:6d}  validation loss {loss:.3f} on {len(watched)} windows", flush=True)
        if time.monotonic() - saved > 60:
            run.save(path)
            saved = time.monotonic()
    run.save(path)
    return run


def write_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The checkpoint as bfloat16 safetensors with its tokenizer, loadable by transformers 4 and 5."""
    out.mkdir(parents=True, exist_ok=True)
    deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    config_path = out / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def halve(model: LlamaForCausalLM, rng: np.random.Generator) -> LlamaForCausalLM:
    """A copy whose random half of the heads and of the FFN channels, in every block, is zeroed."""
    half = deepcopy(model)
    heads, width = model.config.num_attention_heads, model.config.head_dim
    for block in half.model.layers:
        dropped_heads = torch.from_numpy(rng.permutation(heads)[: heads // 2])
        channels = block.mlp.down_proj.in_features
        dropped_channels = torch.from_numpy(rng.permutation(channels)[: channels // 2])
        with torch.no_grad():
            block.self_attn.o_proj.weight.view(-1, heads, width)[:, dropped_heads] = 0.0
            block.mlp.down_proj.weight[:, dropped_channels] = 0.0
    return half


def measure(settings: Settings, tokens: dict[str, NDArray[np.int32]]) -> dict[str, Any]:
    """Perplexities of the checkpoint in `out`, its bfloat16 weights in float32 arithmetic.

    `validation_halved` are those of five draws of `halve`: what is left when half of every block goes.
    """
    model = LlamaForCausalLM.from_pretrained(settings.out, dtype=torch.float32)
    held_out = {split: windows(tokens[split], settings.window) for split in ("validation", "test")}
    few = spread(held_out["validation"], min(128, len(held_out["validation"])))
    halved = [mean_loss(halve(model, np.random.default_rng(seed)), few) for seed in range(5)]
    return {
        "window": settings.window,
        **{split: round(math.exp(mean_loss(model, part)), 3) for split, part in held_out.items()},
        "windows": {split: len(part) for split, part in held_out.items()},
        "validation_128_windows": round(math.exp(mean_loss(model, few)), 3),
        "validation_128_windows_halved": [round(math.exp(loss), 1) for loss in halved],
    }


def record(settings: Settings, run: Run, tokens: dict[str, NDArray[np.int32]]) -> dict[str, Any]:
    """What `training.json` says beside the perplexities."""
    thin = max(1, len(run.curve) // 40)
    return {
        "data": {
            "corpus": "demo: source text of the Python standard library",
            "python": platform.python_version(),
            "modules": {split: len(stdlib_documents(split)) for split in SPLITS},
            "characters": {split: sum(map(len, stdlib_documents(split))) for split in SPLITS},
            "tokens": {split: len(ids) for split, ids in tokens.items()},
        },
        "command": f"python -m experiments.train_demo_parent --minutes {settings.minutes:g}",
        "settings": recipe(settings),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.step,
        "train_tokens_seen": run.step * settings.batch * settings.window,
        "seconds": round(run.seconds, 1),
        "torch": torch.__version__.split("+")[0],
        "train_loss": run.curve[::thin],
        "validation_loss_before": round(run.before, 4),
    }


def main(settings: Settings) -> None:
    """Train, write the checkpoint and its record, measure."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    summary = settings.out / "training.json"
    texts = {split: "\n\n".join(stdlib_documents(split)) for split in SPLITS}
    if settings.measure_only:
        if not summary.exists():
            raise InputError(f"{settings.out} holds no training.json: train first, without --measure-only")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.out)
        tokens = {split: encode(tokenizer, text) for split, text in texts.items()}
        report = json.loads(summary.read_text())
    else:
        tokenizer = train_tokenizer(stdlib_documents("train"), settings.vocab)
        tokens = {split: encode(tokenizer, text, settings.work) for split, text in texts.items()}
        run = train(settings, tokens)
        write_checkpoint(run.model, tokenizer, settings.out)
        report = record(settings, run, tokens)
    report["perplexity"] = measure(settings, tokens)
    summary.write_text(json.dumps(report, indent=1) + "\n")
    if not settings.measure_only:
        shutil.rmtree(settings.work)
    print(json.dumps(report["perplexity"]))


if __name__ == "__main__":
    raise SystemExit(run_script(Settings, main))
