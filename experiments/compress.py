"""What is the best smaller model inside this one, under a hard budget?

The main job: rank and permute the parent once, really evaluate architectures, learn from them, prune and
search the space with Optuna, repair the best subnet, save it as a checkpoint and report it beside baselines.

    python -m experiments.compress --parent demo --keep 0.5
    python -m experiments.compress --parent ORGANISATION/MODEL --keep 0.8 --out runs/model-80 \\
        --corpus Salesforce/wikitext:wikitext-2-raw-v1
    python -m experiments.compress --config settings.yaml --seed 1 --out runs/seed-1

The same command again goes on where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from experiments.command_line import check_least, option, run
from experiments.fidelity import HALVING, OfFidelity, check_fidelity, halving, search_words
from experiments.finals import PARENT, Finals
from experiments.latencies import latencies_of
from experiments.results import (
    REPORT,
    STORE,
    TIMES,
    card,
    claim,
    failures_record,
    finished,
    front_record,
    latency_record,
    model_record,
    pairs_record,
    parent_record,
    predictor_record,
    protocol_record,
    seeded,
    space_record,
    typical_size,
    usable,
    versions,
)
from experiments.stages import Stages, say
from experiments.subject import OfSubject, open_parent, pair_setting, prepared_of
from experiments.tables import TABLE
from experiments.workers import OfWorkers, launch
from nas.alone import alone
from nas.baselines import dropped_layers, random_cuts, uniform_cuts
from nas.building import Measure, RecoveredMeter, SubnetMeter, build_pairs, in_full
from nas.cost import CostModel, budget_of, check_limits
from nas.encoding import Encoding
from nas.evaluate import evaluate
from nas.exploration import explore
from nas.export import needs_code, save_checkpoint
from nas.finalists import recovered
from nas.latency_table import Request
from nas.pair_table import PairTable, write_pairs
from nas.pairs import Pair, Pairs
from nas.parent import stored_dtype
from nas.proposals import check_reachable
from nas.recovery import METHODS, Recipe
from nas.recovery.teacher import stored_teacher
from nas.repair import REPAIRS
from nas.report import check_report, terminal_table, write_html, write_json
from nas.sampling import SAMPLERS
from nas.search import SEARCHERS
from nas.storage import shown
from nas.what_if import what_if
from predictors import PREDICTORS

RECOVERY, TOP_K = Recipe(learning_rate=METHODS["full"].learning_rate), 64
"""How pairs are recovered where they are, and the parent's logits that they are taught from."""
FRONT = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5)
"""Other budgets that a report says something of, over the subnet's own block parameters."""


@dataclass(frozen=True)
class Settings(OfSubject, OfWorkers, OfFidelity):
    """All that the main job depends on."""

    final_windows: int = option(
        128, "other validation windows, that the finalists are chosen on", group="input", least=1
    )
    test_windows: int = option(256, "test windows of the final scores; 0 takes all", group="input", least=0)

    keep: float | None = option(
        0.5, "largest fraction of the blocks' parameters; none for no such limit", group="budget"
    )
    max_parameters: int | None = option(
        None, "most parameters in all, embeddings and head included", group="budget"
    )
    max_flops: int | None = option(None, "most FLOPs of one window's forward pass", group="budget")
    max_kv_cache: int | None = option(None, "most bytes of KV cache for one window", group="budget")
    max_latency: float | None = option(
        None, "most milliseconds that a request takes on this device, by the latency table", group="budget"
    )
    latency_batch: int = option(1, "texts in a request", group="latency", least=1)
    latency_context: int = option(
        0, "tokens of each that are read at once; 0 for --seq-len", group="latency", least=0
    )
    latency_tokens: int = option(8, "tokens of each that are then written", group="latency", least=1)
    latency_repeats: int = option(
        5, "times that every choice is measured; 0 for no table", group="latency", least=0
    )
    latency_table: Path | None = option(
        None, "what experiments.measure_latency wrote; measured anew without one", group="latency"
    )

    sampler: str = option("seeded", "how the first pairs are sampled", group="search", choices=SAMPLERS)
    predictor: str = option(
        "xgboost",
        f"one of {', '.join(PREDICTORS)}, or your own by import path package.module:Class",
        group="search",
    )
    searcher: str = option("nsga2", "Optuna's sampler over predictions", group="search", choices=SEARCHERS)
    pairs: int = option(
        200,
        "subnets that the search really evaluates, all rounds together; 12 or more",
        group="search",
        least=12,
    )
    first_pairs: int = option(
        40, "of these, before there is a predictor; 12 or more", group="search", least=12
    )
    rounds: int = option(
        8, "times the predictor is fitted and its best proposals are evaluated", group="search", least=1
    )
    trials: int = option(400, "Optuna trials a round", group="search", least=1)
    finalists: int = option(3, "best subnets that are repaired and compared", group="search", least=1)
    repair: str = option(
        "front_to_back",
        "how finalists and baselines are repaired (mean_bias adds biases, which no budget counts)",
        group="search",
        choices=REPAIRS,
    )
    recovery_steps: int = option(
        0,
        "training steps towards the parent's logits, for each pair's subnet before it is measured and for "
        "finalists and baselines after their repair; a saved checkpoint is trained by experiments.recover",
        group="search",
        least=0,
    )
    random_search: bool = option(
        True, "run random search too, a baseline that costs as many evaluations again", group="search"
    )

    out: Path = option(
        Path("runs/compress"), "folder of the checkpoint, the report and the pairs", group="run"
    )


def main(settings: Settings) -> int:
    """Run the job, alone or as one of several workers, or show its result if it is finished."""
    check(settings)
    claim(settings.out, settings)
    usable(settings.cache)
    if finished(settings.out):
        return 0
    if settings.workers > 1:
        return launch(settings, "experiments.compress", settings.out)
    stages = Stages(settings.out / TIMES)
    rng = np.random.default_rng(settings.seed)

    with stages("load"):
        make = seeded(settings.seed)
        make(settings.predictor)
        opened = open_parent(
            settings, rng, final=settings.final_windows, test=settings.test_windows,
            training=settings.recovery_steps * RECOVERY.batch_size,
            added_biases=settings.repair == "mean_bias",
        )  # fmt: skip
        parent, tokenizer, digest, dtype = opened.parent, opened.tokenizer, opened.digest, opened.dtype
        shape, space, text, device = opened.shape, opened.space, opened.text, opened.device
        stored = stored_dtype(settings.parent, dtype)
        base_config, generation_config = parent.config, parent.generation_config
        recovery: dict[str, Any] = {}
        if settings.recovery_steps:
            recovery["recovery"] = {**asdict(RECOVERY), "steps": settings.recovery_steps, "top_k": TOP_K}
        setting = pair_setting(opened, settings, **recovery)

    with stages("latency"):
        request = Request(
            settings.latency_batch, settings.latency_context or settings.seq_len, settings.latency_tokens
        )
        latency_table = latencies_of(
            parent, shape, space, request, settings.latency_table, settings.latency_repeats, settings.cache
        )
        cost = CostModel(shape, settings.seq_len, dtype.itemsize, latency_table)
        budget = budget_of(cost, settings.keep, **limits_of(settings))
        check_reachable(space, budget)
        location = settings.storage or str(settings.out / STORE)
        pairs = Pairs(location, setting)

    with stages("parent"):
        reference = evaluate(parent, text.pairs, batch_size=settings.batch_size)
        parent_validation = evaluate(parent, text.final, batch_size=settings.batch_size)
        for each in (reference, parent_validation):
            if not np.isfinite(each.nll):
                raise InputError(
                    f"the parent scores a negative log-likelihood of {each.nll}: it is broken, or {dtype} is "
                    "too narrow for it; check the checkpoint, or give --dtype float32"
                )
        say(f"parent: perplexity {parent_validation.perplexity:.3f} on validation text")
        if parent_validation.perplexity >= shape.vocab:
            say(f"that is worse than guessing among {shape.vocab:,} tokens: is it trained, and on such text?")

    with stages("rank and repair"):
        prepared = prepared_of(opened, settings)
        del parent, opened  # from here on the permuted one stands for it

    with stages("pairs and search"):
        meter = SubnetMeter(prepared.parent, shape, prepared.bank, text.pairs, settings.batch_size)
        measure: Measure = meter
        finish = REPAIRS[settings.repair].make
        if settings.recovery_steps:
            top_k = min(TOP_K, shape.vocab)
            teacher = stored_teacher(
                prepared.parent, text.training, top_k, settings.cache, batch_size=settings.batch_size
            )
            measure = RecoveredMeter(
                meter, text.training, settings.recovery_steps, recipe=RECOVERY, teacher=teacher
            )
            finish = recovered(finish, text.training, settings.recovery_steps, RECOVERY, teacher, text.pairs)
        build = in_full(pairs, measure, shape, budget)
        if settings.fidelity == HALVING:
            build = halving(location, setting, pairs, meter, budget, settings.cache)
        encoding = Encoding(cost, prepared.attention_error, prepared.mlp_error)
        explored = explore(
            space,
            budget,
            encoding,
            lambda: make(settings.predictor),
            build,
            SAMPLERS[settings.sampler](space, budget, settings.first_pairs, rng, prepared.hints),
            reference=reference.score,
            total=settings.pairs,
            rounds=settings.rounds,
            trials=settings.trials,
            seed=settings.seed,
            searcher=settings.searcher,
        )

    with stages("baselines"):
        cuts = {
            "uniform": uniform_cuts(space, budget),
            "drop_layers": dropped_layers(space, budget, prepared.hints),
        }
        built = {
            name: build_pairs(pairs, measure, shape, budget, space.widths(rows), name)
            for name, rows in cuts.items()
            if len(rows)  # there may be no uniform cut this small
        }
        random_pairs: list[Pair] = []
        stopped = explored.estimates  # before they were measured in full
        if settings.random_search:
            rows = random_cuts(space, budget, len(explored.pairs) + len(stopped), rng)
            built["random_search"], more = build(space.widths(rows), "random_search")
            random_pairs, stopped = built["random_search"], stopped + more

    note = f"all pairs are there; another worker repairs and reports (logs: {settings.out / 'workers'})"
    with alone(settings.out / REPORT, lambda: say(note)):
        claim(settings.out, settings)
        if finished(settings.out, "finished by another worker"):
            return 0
        finals = Finals(
            prepared, space, text, setting, settings.repair, finish, stored, settings.batch_size, settings.out
        )
        with stages("finalists"):
            contenders = {
                name: finals.choose(name, measured, settings.finalists)
                for name, measured in {"subnet": explored.pairs, **built}.items()
            }

        with stages("evaluate"):
            latencies, tested = finals.latencies(contenders, request), finals.test(contenders)
            records = {
                name: model_record(each, cost, tested[name], latencies[name])
                for name, each in contenders.items()
            }
            predictor = predictor_record(
                settings.predictor, make, explored.pairs, random_pairs, encoding, budget, reference.score,
                explored.estimates,
            )  # fmt: skip

        every = {pair.architecture: pair for pair in (*explored.pairs, *random_pairs)}
        table = PairTable(
            space, replace(cost, latency=None), prepared.hints, setting, reference.score,
            (typical_size(explored.pairs, cost),), tuple(every.values()),
        )  # fmt: skip
        with stages("other budgets"):
            sizes = np.array(FRONT) * records["subnet"]["costs"]["block_parameters"]
            within = [float(size) for size in sizes if size < cost(shape.parent)["block_parameters"]]
            others = what_if(table, explored.predict, "block_parameters", within, seed=settings.seed)

        with stages("save"):
            best = contenders["subnet"]
            records["subnet"]["checkpoint"] = "checkpoint"
            report = {
                "command": shown(" ".join(["python -m experiments.compress", *sys.argv[1:]])),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "parent": parent_record(settings.parent, digest, cost),
                "setting": {"digest": setting.digest, "fields": setting.fields},
                "settings": {**asdict(settings), "storage": shown(settings.storage or "") or None},
                "budget": {"limits": budget.limits, "parent_costs": cost(shape.parent)},
                "latency_table": latency_record(latency_table),
                "subnet": records.pop("subnet"),
                "parent_scores": {
                    "pairs": reference.record(),
                    "validation": parent_validation.record(),
                    "test": tested[PARENT].record(),
                    "latency": latencies[PARENT].record(),
                },
                "baselines": {"uniform": None, "random_search": None, **records},
                "predictor": predictor,
                "search": {"rounds": [asdict(item) for item in explored.rounds]},
                "pruning": space_record(space, explored.space, explored.dropped),
                "front": front_record(others, cost),
                "pairs": pairs_record([*explored.pairs, *random_pairs], cost),
                "failures": failures_record(pairs.failures),
                "stages": stages.seconds,
                "protocol": protocol_record(
                    text, settings.seq_len, dtype, stored, device, settings.recovery_steps
                )
                | {"search": search_words(explored.pairs, random_pairs, stopped, text.pairs)},
                "versions": versions(),
                "seed": settings.seed,
            }
            check_report(report)
            code = needs_code(best.model, base_config, shape, best.architecture)
            save_checkpoint(
                best.model,
                base_config,
                shape,
                best.architecture,
                settings.out / "checkpoint",
                tokenizer=tokenizer,
                generation_config=generation_config,
                card=card(report, best.architecture, shape, code),
                dtype=stored,
            )
            write_pairs(table, settings.out / TABLE)
            write_html(report, settings.out / "report.html")
            write_json(report, settings.out / REPORT)  # last: its presence says that the run is finished

        print(terminal_table(report))
        say(
            f"\ncheckpoint {settings.out / 'checkpoint'} in {str(stored).removeprefix('torch.')}, "
            f"report {settings.out / 'report.html'}"
        )
    return 0


def check(settings: Settings) -> None:
    """Refuse numbers that cannot mean anything, before any work."""
    check_least(settings)
    for name in ("first_pairs", "finalists"):
        if getattr(settings, name) > settings.pairs:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} is {getattr(settings, name)} and --pairs {settings.pairs}; give no more than these"
            )
    check_limits(settings.keep, **limits_of(settings))
    check_fidelity(settings.fidelity, settings.recovery_steps)
    if settings.parent_on != "device" and settings.recovery_steps:
        raise InputError(
            f"--recovery-steps {settings.recovery_steps} trains whole models, and with --parent-on "
            f"{settings.parent_on} they are on the device block by block; give 0, or --parent-on device"
        )
    if settings.parent_on != "device" and settings.latency_repeats and settings.latency_table is None:
        raise InputError(
            f"with --parent-on {settings.parent_on} the time of a choice would be that of fetching weights; "
            "give --latency-repeats 0, or a --latency-table"
        )
    if settings.max_latency is not None and not (settings.latency_repeats or settings.latency_table):
        raise InputError("--max-latency needs a latency table; give --latency-repeats 1 or more, or a table")


def limits_of(settings: Settings) -> dict[str, float | None]:
    """Limits by the cost that they limit, `--keep` apart."""
    return {
        "parameters": settings.max_parameters,
        "flops": settings.max_flops,
        "kv_cache_bytes": settings.max_kv_cache,
        "latency_ms": settings.max_latency,
    }


if __name__ == "__main__":
    sys.exit(run(Settings, main))
