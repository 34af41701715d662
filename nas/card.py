"""The model card of a subnet: what was cut, how, how good it is, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from nas.architecture import Architecture
from nas.shape import Shape

Pair = tuple[float, float]
"""One figure of the subnet and the same of its parent."""


def model_card(
    architecture: Architecture,
    shape: Shape,
    *,
    parent: str,
    licence: str | None,
    method: Sequence[str],
    protocol: str,
    scores: Mapping[str, Pair],
    costs: Mapping[str, Pair],
    code: bool,
) -> str:
    """README.md in the Hub's form.

    `parent` and `licence` as the Hub names them (None: unknown), `method` one line for each step taken,
    `protocol` what every score was measured on, `code` whether loading takes the checkpoint's own code
    (`nas.export.needs_code`).
    """
    head = {
        "base_model": parent,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "neural-architecture-search", "secateur"],
    }
    if licence is not None:
        head["license"] = licence
    option = ", trust_remote_code=True" if code else ""
    terms = (
        f"`{licence}`, its parent's" if licence else "its parent's, which is not recorded here: look it up"
    )
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value)}" for name, value in head.items()),
            "---",
            "",
            f"# A subnet of {parent}",
            "",
            f"{len(architecture.blocks)} of {shape.blocks} decoder blocks and {architecture.hidden} of "
            f"{shape.hidden} hidden channels, dense, cut out by Secateur (architecture "
            f"`{architecture.digest}`).",
            "",
            "## Load it",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{option})',
            f"tokenizer = AutoTokenizer.from_pretrained(folder{option})",
            "```",
            "",
            _about_code(code),
            "",
            "## How good it is, and what it costs",
            "",
            *_table("", ("subnet", "parent", "ratio"), {**scores, **costs}),
            "",
            f"Measured on: {protocol}",
            "",
            "## How it was made",
            "",
            *(f"{number}. {line}" for number, line in enumerate(method, 1)),
            "",
            "## What is left of each block",
            "",
            f"Each of the parent's {shape.blocks} blocks has {shape.kv_groups} KV groups, "
            f"{shape.kv_groups * shape.queries_per_group} query heads of {shape.head_dim} channels and "
            f"{shape.ffn} {shape.mlp_units}.",
            "",
            f"| block | parent's block | KV groups | query heads | channels a head | {shape.mlp_units} |",
            "|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {index} | {block.source} | {block.kv_groups} | {block.heads} "
                f"| {block.head_width or shape.head_dim} | {block.ffn} |"
                for index, block in enumerate(architecture.blocks)
            ),
            "",
            "## Licence",
            "",
            f"The weights are derived from the parent's; their licence is {terms}.",
            "",
        ]
    )


def _about_code(code: bool) -> str:
    if code:
        return (
            "The blocks differ in width, which transformers (5.14 or newer) stores but does not build yet: "
            "`modeling_subnet.py`, a file of code in this folder, does."
        )
    return "A plain checkpoint: every engine that serves its model type can load it."


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Pair]) -> list[str]:
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, (own, parents) in rows.items():
        ratio = f"{own / parents:.3f}" if parents else ""
        lines.append(f"| {name.replace('_', ' ')} | {_figure(own)} | {_figure(parents)} | {ratio} |")
    return lines


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
