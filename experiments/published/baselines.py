"""Published pruners and plain baselines, from the same parts as the systems."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from experiments.published.case import Case, Common
from experiments.published.outcome import Outcome
from experiments.published.protection import protected as spare
from experiments.text import calibrated_on
from nas.block_importance import BLOCK_CRITERIA, without
from nas.families import blocks_of, count
from nas.greedy_drop import drop_greedily
from nas.importance import CRITERIA
from nas.importance.wanda import wanda as wanda_score
from nas.oneshot import ends, global_threshold, same_share
from nas.prepare import prepare
from nas.ranking import permute, rank, ranking_of
from nas.repair.sequential import repair_front_to_back
from nas.repair.steps import choose, mean_bias
from nas.repair.stream import Stream
from nas.repair.walk import walk
from nas.shape import architecture_of
from nas.space import default_space
from nas.subnet import cut

Baseline = Callable[[Case, float, Common], Outcome]


def llm_pruner(criterion: str, protected: bool) -> Baseline:
    """LLM-Pruner (arXiv 2305.11627): Taylor importance of coupled structures, the same share in every block,
    the ends left alone if `protected`; no repair."""

    def prune(case: Case, keep: float, settings: Common) -> Outcome:
        spared = spare(case, 0.125 if protected else 0.0)
        architecture = architecture_of(same_share(case.budget(keep), spared), case.shape)
        ordered = permute(case.parent, case.shape, rank(case.evidence, CRITERIA[criterion]))
        return Outcome(
            cut(ordered, case.shape, architecture, own=True),
            architecture,
            [f"units ranked by {criterion}", f"blocks {spared or 'none'} protected", "no repair"],
        )

    return prune


def flap(case: Case, keep: float, settings: Common) -> Outcome:
    """FLAP (arXiv 2312.11983), AL-AM with bias: one threshold on standardised fluctuations over all blocks
    and both kinds of module, and the mean of what is cut as a bias; the budget counts the biases."""
    scores = [CRITERIA["fluctuation"](case.evidence, block) for block in range(case.shape.blocks)]
    biases = 2 * case.shape.blocks * case.shape.hidden / count(blocks_of(case.parent))
    architecture = architecture_of(global_threshold(scores, case.budget(keep - biases)), case.shape)
    ordered = permute(case.parent, case.shape, ranking_of(scores))
    model = walk(ordered, case.shape, architecture, _stream(case, ordered), [mean_bias])
    return Outcome(model, architecture, ["one global threshold on fluctuations", "mean bias"])


def wanda_sp(case: Case, keep: float, settings: Common) -> Outcome:
    """Wanda-sp (as in FLAP's comparison): weight magnitude times input norm, the same share in every block,
    block by block on what the pruned ones before pass on; no repair."""
    architecture = architecture_of(same_share(case.budget(keep)), case.shape)
    model = walk(case.parent, case.shape, architecture, _stream(case, case.parent), [choose(wanda_score)])
    return Outcome(model, architecture, ["units ranked by Wanda-sp, front to back", "no repair"])


def sleb(case: Case, keep: float, settings: Common) -> Outcome:
    """SLEB (arXiv 2402.09025): whole blocks dropped one by one by the loss without them, the first and the
    last protected; as many as come nearest to the fraction."""
    count = round((1 - keep) * case.shape.blocks)
    gone = drop_greedily(
        case.parent, case.shape, case.text.calibration, count, ends(case.shape, 1, 1),
        batch_size=settings.batch_size,
    )  # fmt: skip
    return _without(case, gone, "dropped greedily by the loss without them")


def shortgpt(case: Case, keep: float, settings: Common) -> Outcome:
    """ShortGPT (arXiv 2403.03853): the blocks of least influence dropped at once; as many as come nearest to
    the fraction."""
    count = min(round((1 - keep) * case.shape.blocks), case.shape.blocks - 1)
    influence = BLOCK_CRITERIA["influence"](case.evidence)
    gone = sorted(range(case.shape.blocks), key=lambda block: influence[block])[:count]
    return _without(case, gone, "of least influence dropped at once")


def uniform(case: Case, keep: float, settings: Common) -> Outcome:
    """The same share in every block with this project's own ranking and repair: its search has to beat it."""
    space = default_space(case.shape)
    inputs = calibrated_on(case.text, case.digest, settings.seed, case.parent.dtype)
    prepared = prepare(
        case.parent, case.shape, space, case.text.calibration, "elimination", settings.cache, inputs,
        batch_size=settings.batch_size,
    )  # fmt: skip
    row = space.indices(same_share(case.budget(keep))[None])
    architecture = architecture_of(space.widths(row)[0], case.shape)
    dense = _stream(case, prepared.parent)
    model = repair_front_to_back(prepared.parent, case.shape, architecture, prepared.bank, dense)
    return Outcome(model, architecture, ["units ranked by elimination", "repaired front to back"])


def _stream(case: Case, parent: PreTrainedModel) -> Stream:
    return Stream(parent, case.text.calibration, case.settings.batch_size)


def _without(case: Case, gone: list[int], how: str) -> Outcome:
    architecture = without(case.shape, gone)
    model = cut(case.parent, case.shape, architecture, own=True)
    return Outcome(model, architecture, [f"blocks {how}", "no repair"], {"dropped": gone})


BASELINES: dict[str, Baseline] = {
    "llm_pruner": llm_pruner("taylor_element1", protected=True),
    "llm_pruner_element2": llm_pruner("taylor_element2", protected=True),
    "llm_pruner_vector": llm_pruner("taylor_vector", protected=True),
    "llm_pruner_unprotected": llm_pruner("taylor_element1", protected=False),
    "flap": flap,
    "wanda_sp": wanda_sp,
    "sleb": sleb,
    "shortgpt": shortgpt,
    "uniform": uniform,
}
"""By the names of `compare`."""
