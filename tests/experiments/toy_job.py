"""A toy to run the main job on: a parent that has learnt a little, its corpus, small settings."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.windows import encode, windows
from experiments import compress
from experiments.command_line import run

WORDS, SEQ_LEN, PAIRS, KEEP = 40, 24, 16, 0.6
SMALL = {
    "seq-len": SEQ_LEN, "calibration-windows": 16, "pair-windows": 4, "final-windows": 6, "test-windows": 6,
    "keep": KEEP, "pairs": PAIRS, "first-pairs": 12, "rounds": 2, "trials": 40, "predictor": "ridge",
    "finalists": 1,
}  # fmt: skip


def make_toy(folder: Path, blocks: int = 3) -> Path:
    """A parent in a folder, trained a little on the sentences of the corpus beside it."""
    draw = random.Random(0)
    (folder / "corpus").mkdir()
    for name, count in (("train", 4000), ("valid", 300), ("test", 300)):
        words = [0]
        for _ in range(count):  # each word has three likely successors
            words.append((words[-1] * 7 + draw.choice((1, 1, 2, 11))) % WORDS)
        (folder / "corpus" / f"{name}.txt").write_text(" ".join(f"w{word}" for word in words))
    vocabulary = {f"w{word}": word for word in range(WORDS)} | {"[UNK]": WORDS}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS + 1, hidden_size=32, intermediate_size=24, num_hidden_layers=blocks, head_dim=8,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None,
            eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    texts = windows(encode(fast, (folder / "corpus" / "train.txt").read_text()), SEQ_LEN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        batch = texts[torch.randint(len(texts), (16,))]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    for part in (model, fast):
        part.save_pretrained(folder / "parent")
    return folder


def arguments(toy: Path, out: Path, **options: object) -> list[str]:
    """The command line of the toy's job; an option that is None is left out."""
    given = {"parent": toy / "parent", "corpus": toy / "corpus", "cache": toy / "cache", "out": out}
    given |= SMALL | {name.replace("_", "-"): value for name, value in options.items()}
    pairs = ((f"--{name}", str(value)) for name, value in given.items() if value is not None)
    return [word for pair in pairs for word in pair]


def job(toy: Path, out: Path, **options: object) -> int:
    return run(compress.Settings, compress.main, arguments(toy, out, **options))


def everything_in(folder: Path) -> dict[str, bytes]:
    """The content of every file under a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
