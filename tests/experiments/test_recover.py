"""Recovering a saved checkpoint: a better one of the same form, its record, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments import ranking_flips, recover, score
from experiments.command_line import run
from nas.architecture import Architecture, Block
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.recovery import training
from nas.subnet import cut
from tests.experiments.toy_job import SEQ_LEN, everything_in, job, make_toy

# The toy's parent has 3 blocks of 2 KV groups with 2 queries each and 24 channels.
CUTS = {
    "mixed": ((0, 1, 2, 10), (1, 2, 1, 0), (2, 2, 2, 16)),
    "plain": ((0, 1, 2, 16), (2, 1, 2, 16)),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a checkpoint of each cut, not repaired at all, so that there is much to recover."""
    folder = make_toy(tmp_path_factory.mktemp("toy"))
    parent = AutoModelForCausalLM.from_pretrained(folder / "parent", dtype=torch.float32)
    shape = shape_of(parent)
    for name, blocks in CUTS.items():
        architecture = Architecture(shape.hidden, tuple(Block(*block) for block in blocks))
        subnet = cut(parent, shape, architecture)
        save_checkpoint(subnet, parent.config, shape, architecture, folder / name, card="# A subnet\n")
    return folder


def recovered(toy: Path, out: Path, *more: str, kind: str = "mixed") -> int:
    given = {
        "model": toy / kind, "parent": toy / "parent", "corpus": toy / "corpus", "cache": toy / "cache",
        "out": out, "seq-len": SEQ_LEN, "steps": 12, "learning-rate": 0.003, "check-every": 4,
        "choice-windows": 4, "final-windows": 6, "test-windows": 6,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return run(recover.Settings, recover.main, [*words, "--trust-remote-code", *more])


def record_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "recovery.json").read_text())
    return found


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("more", [(), ("--distill",), ("--distill", "--top-k", "8", "--method", "lora")])
def test_a_checkpoint_is_recovered_into_one_of_the_same_form(
    toy: Path, tmp_path: Path, kind: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if "lora" in more:
        pytest.importorskip("peft", reason="LoRA needs the optional extra secateur[lora]")
    before = everything_in(toy / kind)
    assert recovered(toy, tmp_path, *more, kind=kind) == 0
    assert everything_in(toy / kind) == before
    shown = capsys.readouterr().out
    assert "12 steps of 8" in shown
    record = record_in(tmp_path)
    for split in ("validation", "test"):
        each = {name: record["scores"][name][split] for name in ("parent", "before", "after")}
        aim = "kl" if "--distill" in more else "nll"
        assert each["after"][aim] < each["before"][aim]
        assert f"{each['after']['perplexity']:.3f}" in shown
    assert record["parameters"]["after"] == record["parameters"]["before"]
    assert [step["number"] for step in record["history"]] == list(range(13))
    assert all(step["loss"] is not None for step in record["history"][1:])
    new, old = tmp_path / "checkpoint", toy / kind
    assert {path.name for path in old.iterdir()} <= {path.name for path in new.iterdir()}
    assert json.loads((new / "architecture.json").read_text())["digest"] == record["architecture"]
    ours, theirs = (json.loads((each / "config.json").read_text()) for each in (new, old))
    assert ours == theirs
    card = (new / "README.md").read_text()
    assert card.startswith("# A subnet\n\n## Recovery\n")
    assert not (tmp_path / recover.STATE).exists()


def test_what_is_saved_scores_what_the_record_says(toy: Path, tmp_path: Path) -> None:
    assert recovered(toy, tmp_path, "--distill") == 0
    out = tmp_path / "scores.json"
    given = ["--parent", str(toy / "parent"), "--corpus", str(toy / "corpus"), "--seq-len", str(SEQ_LEN)]
    given += ["--models", str(tmp_path / "checkpoint"), "--trust-remote-code", "--windows", "6"]
    assert run(score.Settings, score.main, [*given, "--json", str(out)]) == 0
    found = json.loads(out.read_text())[str(tmp_path / "checkpoint")]
    assert found == record_in(tmp_path)["scores"]["after"]["test"]


def test_conversations_are_recovered_on_by_the_parents_template(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "parent", tmp_path / "parent")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "parent")
    tokenizer.chat_template = "{% for m in messages %} w7 {{ m.content }} w11{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "parent")
    words = (toy / "corpus" / "train.txt").read_text().split()
    with (tmp_path / "chat.jsonl").open("w") as file:
        for at in range(0, 3600, 24):
            asked, answered = " ".join(words[at : at + 8]), " ".join(words[at + 8 : at + 24])
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"messages": turns}) + "\n")
    given = ("--parent", str(tmp_path / "parent"), "--corpus", f"{tmp_path / 'chat.jsonl'}#messages")
    assert recovered(toy, tmp_path / "out", *given) == 0
    record = record_in(tmp_path / "out")
    assert "of 150 templated conversations" in record["protocol"]["corpus"]
    before, after = (record["scores"][name]["test"]["nll"] for name in ("before", "after"))
    assert after < before


def test_a_recovered_checkpoint_can_be_recovered_again(toy: Path, tmp_path: Path) -> None:
    assert recovered(toy, tmp_path / "once") == 0
    assert recovered(toy, tmp_path / "twice", "--model", str(tmp_path / "once" / "checkpoint")) == 0
    first, second = (record_in(tmp_path / name)["scores"] for name in ("once", "twice"))
    assert second["before"] == first["after"]


@pytest.mark.slow
def test_an_interrupted_recovery_goes_on(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recovered(toy, tmp_path / "whole", "--steps", "60") == 0
    backward, seen = training._backward, []

    def counted(*given: Any) -> float:
        if len(seen) == 55:
            raise KeyboardInterrupt
        seen.append(1)
        return backward(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_backward", counted)
        assert recovered(toy, tmp_path / "run", "--steps", "60") == 130
    assert "resumes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint").exists()
    with monkeypatch.context() as patch:
        seen = [1] * 45  # ten steps are left behind the state of step 50
        patch.setattr(training, "_backward", counted)
        assert recovered(toy, tmp_path / "run", "--steps", "60") == 0
    one, other = (record_in(tmp_path / name) for name in ("run", "whole"))
    for name in ("scores", "history", "kept_step"):
        assert one[name] == other[name]


def test_bad_input_is_one_sentence(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (toy / "plain").iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    record = json.loads((damaged / "architecture.json").read_text())
    record["architecture"]["blocks"][0]["ffn"] = 8
    (damaged / "architecture.json").write_text(json.dumps(record))
    other = tmp_path / "other"
    other.mkdir()
    record["parent_shape"]["ffn"] = 9
    (other / "architecture.json").write_text(json.dumps(record))
    for more, sentence in (
        (["--method", "lora"], "pip install 'secateur[lora]'"),
        (["--model", str(toy / "parent")], "give the folder of a checkpoint that this project saved"),
        (["--model", str(damaged)], "it is damaged"),
        (["--model", str(other)], "with ffn 9, not 24"),
        (["--no-trust-remote-code"], "runs only with --trust-remote-code"),
        (["--top-k", "8"], "give both or neither"),
        (["--distill", "--top-k", "1000"], "give 1 to 41"),
        (["--distill", "--temperature", "0"], "temperature"),
        (["--steps", "-1"], "--steps is -1"),
        (["--learning-rate", "0"], "learning_rate is 0"),
        (["--alpha", "2"], "give 0 to 1"),
        (["--out", str(toy / "parent" / "config.json")], "cannot be used"),
    ):
        assert recovered(toy, tmp_path / "run", *more) == 2, more
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error
        assert error.strip().splitlines()[-1].startswith("error: ")
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    assert recovered(toy, tmp_path / "run", "--model", str(tmp_path / "run" / "checkpoint")) == 2
    assert "would replace" in capsys.readouterr().err


def flips(toy: Path, out: Path, *more: str) -> int:
    given = {
        "parent": toy / "parent", "corpus": toy / "corpus", "cache": toy / "cache", "out": out,
        "seq-len": SEQ_LEN, "calibration-windows": 16, "pair-windows": 4, "other-windows": 4,
        "architectures": 6, "keep": 0.6, "top-k": 8,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return run(ranking_flips.Settings, ranking_flips.main, [*words, "--steps", "2", "5", *more])


def test_ranking_flips_compares_the_orders_and_trains_nothing_twice(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flips(toy, tmp_path) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / ranking_flips.RESULT).read_text())
    assert len(record["scores"]) == 6
    assert record["scores"].keys() == record["widths"].keys()
    none, few, more = record["comparison"]
    assert [row["steps"] for row in record["comparison"]] == [0, 2, 5]
    assert none["tau"] == pytest.approx(1)
    assert none["rank_of_best_before"] == 1
    assert none["regret_of_best_before"] == 0
    assert few["mean_damage"] != more["mean_damage"]
    assert f"{more['mean_damage']:.4f}" in shown
    monkeypatch.setattr(ranking_flips, "recover", lambda *_, **__: pytest.fail("trained again"))
    assert flips(toy, tmp_path) == 0
    assert capsys.readouterr().out == shown
    assert flips(toy, tmp_path, "--keep", "0.5") == 2
    assert "give another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_pairs_may_be_scored_after_recovery(toy: Path, tmp_path: Path) -> None:
    small = {"pairs": 12, "rounds": 1}
    assert job(toy, tmp_path / "plain", **small) == 0
    assert job(toy, tmp_path / "run", **small, recovery_steps=3) == 0
    plain, report = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("plain", "run"))
    assert "recovery" not in plain["setting"]["fields"]
    assert report["setting"]["fields"]["recovery"]["steps"] == 3
    assert report["setting"]["digest"] != plain["setting"]["digest"]
    assert "3 steps of recovery" in report["protocol"]["pairs"]
    first, second = ({pair["digest"]: pair["score"] for pair in each["pairs"]} for each in (plain, report))
    both = first.keys() & second.keys()
    assert both  # the structured starts
    assert all(first[digest] != second[digest] for digest in both)
