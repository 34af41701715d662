"""What ranking, repairing and scoring a large parent takes in memory, by where its weights are.

A LLaMA with random weights is written to a folder, block by block: only its size is tested. Each mode
(`--parent-on`) then is a process of its own that loads it, calibrates, ranks, permutes, fills the repair
bank, repairs one subnet of half the size front to back and scores it. Memory is the most above what was held
before loading: on the CPU anonymous pages, in which mapped files have no part, looked at every five
milliseconds; on CUDA what torch has allocated there, and anonymous pages of the host beside it. On the CPU,
where a checkpoint of the same dtype is mapped anyway, the mode `device` copies the weights, as another device
would. Needs Linux.

    python -m benchmarks.offload --blocks 4
    python -m benchmarks.offload --hidden 4096 --ffn 11008 --kv-heads 32 --blocks 32 --modes disk \\
        --windows 32 --seq-len 1024 --folder FOLDER
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks._setup import show
from benchmarks.memory import alone, anonymous, held
from experiments.command_line import option, run
from experiments.subject import placement_for
from nas.architecture import Architecture, Block
from nas.evaluate import evaluate
from nas.families import shape_of
from nas.importance import CRITERIA
from nas.parent import choose_device, load_parent
from nas.placement import PLACES
from nas.prepare import prepare
from nas.repair.sequential import repair_front_to_back
from nas.repair.stream import Stream
from nas.space import default_space
from nas.tensor_files import write_tensors


@dataclass(frozen=True)
class Settings:
    """The parent's size, and what is done with it."""

    hidden: int = option(2048, "width of the stream", group="parent")
    blocks: int = option(16, "decoder blocks", group="parent")
    heads: int = option(32, "query heads", group="parent")
    kv_heads: int = option(8, "key-value heads", group="parent")
    ffn: int = option(5632, "FFN channels", group="parent")
    vocab: int = option(32000, "tokens of the vocabulary", group="parent")

    modes: tuple[str, ...] = option(PLACES, "where the parent is, one after the other", group="run")
    ranking: str = option("output_energy", "importance criterion", group="run", choices=CRITERIA)
    ffn_choices: int = option(8, "least number of FFN widths in the space", group="run")
    windows: int = option(4, "calibration windows", group="run")
    seq_len: int = option(128, "tokens in a window", group="run")
    batch_size: int = option(2, "windows in a forward pass", group="run")
    threads: int = option(2, "threads of torch", group="run")
    device: str = option("auto", "auto, cpu or cuda", group="run")
    folder: Path | None = option(None, "where the files go, and are left; else a temporary one", group="run")


@dataclass(frozen=True)
class Used:
    """Seconds of one stage, and the most bytes held on the device and, beside it, by the process."""

    seconds: float
    device: float
    host: float


def main(settings: Settings) -> None:
    """Write the parent, measure every mode, print."""
    made = nullcontext(str(settings.folder)) if settings.folder else tempfile.TemporaryDirectory()
    with made as folder:
        settings = replace(settings, folder=Path(folder))
        block, whole = alone(write_parent, settings)  # type: ignore[arg-type]
        cuda = choose_device(settings.device).type == "cuda"
        print(
            f"LLaMA of {whole / 2e9:.2f} B weights in bfloat16: {settings.blocks} blocks of "
            f"{block / 2**20:.0f} MiB, {whole / 2**20:.0f} MiB in all; {settings.windows} windows of "
            f"{settings.seq_len} tokens in batches of {settings.batch_size}, {settings.ranking}, "
            f"{choose_device(settings.device)}"
        )
        rows = [
            ["parent on", "stage", "seconds", "most held, MiB", "in blocks", "of the parent", "host, MiB"]
        ]
        scores = {}
        for mode in settings.modes:
            used, scores[mode], disk = alone(measured, replace(settings, modes=(mode,)))  # type: ignore[arg-type]
            for stage, each in used.items():
                size = each.device if cuda else each.host
                rows.append(
                    [
                        mode, stage, f"{each.seconds:.0f}", f"{size / 2**20:.0f}", f"{size / block:.1f}",
                        f"{size / whole:.2f}", f"{each.host / 2**20:.0f}" if cuda else "",
                    ]
                )  # fmt: skip
            rows.append(
                [mode, "files in the cache", "", f"{disk / 2**20:.0f}", "", f"{disk / whole:.2f}", ""]
            )
        show("Memory by where the parent is", rows)
        print("scores of the repaired subnet, nats: " + ", ".join(f"{m} {s:.9f}" for m, s in scores.items()))


def write_parent(settings: Settings) -> tuple[float, float]:
    """A checkpoint of random weights, a file a block; bytes of a block and of all."""
    assert settings.folder is not None
    folder = settings.folder / "parent"
    config = LlamaConfig(
        vocab_size=settings.vocab, hidden_size=settings.hidden, intermediate_size=settings.ffn,
        num_hidden_layers=settings.blocks, num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads, dtype="bfloat16", pad_token_id=None, tie_word_embeddings=False,
        max_position_embeddings=4096, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    draw, wide = torch.Generator().manual_seed(0), settings.hidden
    inner, kv = wide, wide // settings.heads * settings.kv_heads
    shapes = {
        "self_attn.q_proj": (inner, wide), "self_attn.k_proj": (kv, wide), "self_attn.v_proj": (kv, wide),
        "self_attn.o_proj": (wide, inner), "mlp.gate_proj": (settings.ffn, wide),
        "mlp.up_proj": (settings.ffn, wide), "mlp.down_proj": (wide, settings.ffn),
        "input_layernorm": (wide,), "post_attention_layernorm": (wide,),
    }  # fmt: skip
    ends = {
        "model.embed_tokens": (settings.vocab, wide),
        "model.norm": (wide,),
        "lm_head": (settings.vocab, wide),
    }

    def drawn(shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.randn(shape, generator=draw, dtype=torch.float32).div_(shape[1] ** 0.5).bfloat16()

    index, total, sizes = {}, 0, []
    for number in range(settings.blocks + 1):
        layer = f"model.layers.{number}."
        names = {layer + k: v for k, v in shapes.items()} if number < settings.blocks else ends
        tensors = {f"{name}.weight": drawn(shape) for name, shape in names.items()}
        file = f"model-{number + 1:05}-of-{settings.blocks + 1:05}.safetensors"
        if not (folder / file).is_file():
            write_tensors(folder / file, tensors, {"format": "pt"})
        sizes.append(sum(t.numel() * t.itemsize for t in tensors.values()))
        index |= dict.fromkeys(tensors, file)
        total += sizes[-1]
    config.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    return float(sizes[0]), float(total)


def measured(settings: Settings) -> tuple[dict[str, Used], float, float]:
    """What each stage used, the repaired subnet's loss, and the bytes in the cache."""
    assert settings.folder is not None
    torch.set_num_threads(settings.threads)
    device, (mode,) = choose_device(settings.device), settings.modes
    cache = settings.folder / f"cache-{mode}-{os.getpid()}"
    used: dict[str, Used] = {}
    host = torch.device("cpu")
    start = held(device), held(host)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        gc.collect()
        begun = perf_counter()
        if device != host:
            torch.cuda.reset_peak_memory_stats(device)
        with anonymous(0.005) as beside:
            yield
        most = beside.peak if device == host else float(torch.cuda.max_memory_allocated(device))
        used[name] = Used(perf_counter() - begun, most - start[0], beside.peak - start[1])
        print(f"{mode}, {name}: {used[name].seconds:.0f} s, {used[name].device / 2**20:.0f} MiB", flush=True)

    with stage("load"):
        parent, _ = load_parent(
            str(settings.folder / "parent"),
            device,
            torch.bfloat16,
            placement=placement_for(mode, device, cache),
        )
        if mode == "device" and device == host:
            for weight in parent.parameters():
                weight.data = weight.data.clone()
    shape = shape_of(parent)
    space = default_space(shape, settings.ffn_choices)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(settings.vocab, (settings.windows, settings.seq_len), generator=draw)
    with stage("calibrate, rank, fill the bank"):
        prepared = prepare(
            parent, shape, space, ids, settings.ranking, cache, {}, batch_size=settings.batch_size, quiet=True
        )
    disk = float(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()))
    del parent
    half = space.knobs["0.ffn"][len(space.knobs["0.ffn"]) // 2]
    groups = max(1, shape.kv_groups // 2)
    architecture = Architecture(
        shape.hidden,
        tuple(Block(b, groups, shape.queries_per_group, half) for b in range(shape.blocks)),
    )
    with stage("repair front to back"):
        dense = Stream(prepared.parent, ids, settings.batch_size)
        subnet = repair_front_to_back(prepared.parent, shape, architecture, prepared.bank, dense)
        del dense
    with stage("score the subnet"):
        score = evaluate(subnet, ids, batch_size=settings.batch_size).nll
    return used, score, disk


if __name__ == "__main__":
    sys.exit(run(Settings, main))
