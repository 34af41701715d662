"""The model card of a checkpoint that a published system made."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.published.case import Case
from nas.architecture import Architecture
from nas.card import model_card
from nas.export import CODE


def card(case: Case, result: Mapping[str, Any]) -> str:
    """From the case and the record of its result, with scores and an absolute checkpoint."""
    whole = case.cost(case.shape.parent)
    texts = ", ".join(f"{name}: {len(each)} windows" for name, each in case.measures.texts.items())
    scores = {
        f"{corpus}, test perplexity": (value, result["parent"]["perplexities"][corpus])
        for corpus, value in result["perplexities"].items()
    }
    scores |= {
        f"{task}, accuracy": (own["acc"], result["parent"]["tasks"][task]["acc"])
        for task, own in result["tasks"].items()
    }
    return model_card(
        Architecture.from_json(json.dumps(result["architecture"])),
        case.shape,
        parent=case.settings.parent,
        licence="apache-2.0" if case.settings.parent == "demo" else None,
        method=[f"the system {result['system']} of this project", *result["method"]],
        protocol=f"{texts} of {case.settings.seq_len} tokens"
        + "".join(f"; {task.name}: {len(task.items)} questions" for task in case.measures.tasks)
        + f"; {len(case.text.calibration)} calibration windows; seed {case.settings.seed}; "
        f"{case.parent.dtype}; parent {case.digest}; " + " ".join(["python -m", _module(), *sys.argv[1:]]),
        scores=scores,
        costs={name: (own, whole[name]) for name, own in result["costs"].items()},
        code=(Path(result["checkpoint"]) / CODE).exists(),
    )


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "experiments.published.compare"
