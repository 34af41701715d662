"""Bad input to the main job is one sentence and exit code 2, and nothing is lost by it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MptConfig, MptForCausalLM, PreTrainedModel

from experiments import compress
from tests.experiments.toy_job import WORDS, everything_in, job, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def finished(toy: Path) -> Path:
    """The folder of a run that nothing disturbed."""
    assert job(toy, toy / "run") == 0
    return toy / "run"


def broken(toy: Path, folder: Path, spoil: Callable[[PreTrainedModel], object]) -> Path:
    """The toy's parent with something spoilt."""
    shutil.copytree(toy / "parent", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        spoil(model)
    model.save_pretrained(folder)
    return folder


def other_family(folder: Path) -> Path:
    MptForCausalLM(MptConfig(n_layers=1, d_model=8, n_heads=2, vocab_size=WORDS)).save_pretrained(folder)
    return folder


def text(path: Path, lines: int) -> Path:
    path.write_text("w1 w2 w3\n" * lines)
    return path


def is_nan(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan


def is_huge(model: PreTrainedModel) -> None:
    model.model.norm.weight.fill_(1e38)
    model.lm_head.weight.mul_(1e6)


def knows_one_word_as_nan(model: PreTrainedModel) -> None:
    model.model.embed_tokens.weight[WORDS - 1] = torch.nan


# What is wrong -> the options that say it, from the toy and an empty folder; and words of the one sentence.
BAD: dict[str, tuple[Callable[[Path, Path], dict[str, object]], str]] = {
    "unknown parent": (lambda toy, at: {"parent": "nowhere"}, "the parent nowhere cannot be loaded"),
    "a parent without a name": (lambda toy, at: {"parent": ""}, "there is no model folder"),
    "a corpus without a name": (lambda toy, at: {"corpus": ""}, "no file or folder ''"),
    "a parent that is not there": (lambda toy, at: {"parent": at / "gone"}, "no model folder"),
    "a folder without a model": (lambda toy, at: {"parent": toy / "corpus"}, "cannot be loaded"),
    "unknown family": (lambda toy, at: {"parent": other_family(at / "mpt")}, "'mpt' is not supported"),
    "nan in the weights": (
        lambda toy, at: {"parent": broken(toy, at / "nan", is_nan)},
        "hold NaN or infinity",
    ),
    "nan in one word": (
        lambda toy, at: {"parent": broken(toy, at / "nan", knows_one_word_as_nan), "pair_windows": 1},
        "1 weights of ",
    ),
    "weights that overflow": (
        lambda toy, at: {"parent": broken(toy, at / "big", is_huge)},
        "log-likelihood of",
    ),
    "the tokenizer of another": (
        lambda toy, at: {"parent": broken(toy, at / "few", lambda model: model.resize_token_embeddings(30))},
        "gives the id 39, and its model ends at 29",
    ),
    "missing corpus": (lambda toy, at: {"corpus": at / "gone.txt"}, "no file or folder"),
    "empty corpus": (lambda toy, at: {"corpus": text(at / "empty.txt", 0)}, "empty"),
    "windows longer than the parent": (
        lambda toy, at: {"seq_len": 65},
        "--seq-len is 65, and the parent was made for 64 positions",
    ),
    "too short": (lambda toy, at: {"corpus": text(at / "short.txt", 20)}, "fewer than one window of 24"),
    "keep nothing": (lambda toy, at: {"keep": 0}, "--keep is 0"),
    "keep more than all": (lambda toy, at: {"keep": 1.5}, "--keep is 1.5"),
    "keep no number": (lambda toy, at: {"keep": "half"}, "--keep: 'half' is not a number"),
    "keep next to nothing": (lambda toy, at: {"keep": 0.01}, "--keep 0.01 is too small: give 0."),
    "two limits too small": (
        lambda toy, at: {"max_parameters": 100, "max_kv_cache": 1},
        "--max-parameters 100 is too small: give ",
    ),
    "no budget": (lambda toy, at: {"keep": "none"}, "needs at least one limit"),
    "negative budget": (lambda toy, at: {"max_flops": -5}, "leaves no model"),
    "too few pairs": (lambda toy, at: {"pairs": 2}, "--pairs is 2; give 12 or more"),
    "more first pairs than pairs": (
        lambda toy, at: {"first_pairs": 17},
        "--first-pairs is 17 and --pairs 16",
    ),
    "more finalists than pairs": (lambda toy, at: {"finalists": 17}, "--finalists is 17 and --pairs 16"),
    "unknown predictor": (lambda toy, at: {"predictor": "oracle"}, "oracle"),
    "a predictor that is not there": (lambda toy, at: {"predictor": "no.such:Thing"}, "no.such"),
    "unknown sampler": (lambda toy, at: {"sampler": "psychic"}, "--sampler: 'psychic' is not one of"),
    "unknown ranking": (lambda toy, at: {"ranking": "psychic"}, "--ranking: 'psychic' is not one of"),
    "unknown device": (lambda toy, at: {"device": "abacus"}, "abacus"),
    "unknown dtype": (lambda toy, at: {"dtype": "int1"}, "int1"),
    "a file in the way of out": (
        lambda toy, at: {"out": text(at / "file", 1)},
        "is a file; give another --out",
    ),
    "a file in the way of the cache": (lambda toy, at: {"cache": text(at / "file", 1)}, "the folder"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_bad_input_is_one_sentence_and_two(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    options, words = BAD[wrong]
    given = {"out": tmp_path / "run", **options(toy, tmp_path)}
    monkeypatch.setattr(compress, "explore", lambda *_, **__: pytest.fail("a search began"))
    capsys.readouterr()
    assert job(toy, **given) == 2
    assert_one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "run" / "checkpoint").exists()


def assert_one_sentence(said: str, words: str) -> None:
    *before, last = said.splitlines()
    assert last.startswith("error: ")
    assert words in last
    assert not [line for line in before if "error" in line.lower() or "Traceback" in line]


def test_a_mistake_does_not_claim_the_folder(toy: Path, tmp_path: Path) -> None:
    for wrong in ({"corpus": "gone.txt"}, {"keep": 0.01}, {"parent": "nowhere"}, {"predictor": "oracle"}):
        assert job(toy, **{"out": tmp_path / "run", **wrong}) == 2
    assert job(toy, tmp_path / "run") == 0


@pytest.mark.parametrize("option", [{"keep": 0.5}, {"seed": 1}, {"ranking": "magnitude"}, {"pairs": 20}])
def test_a_folder_of_another_setting_is_refused_and_left_alone(
    finished: Path, toy: Path, capsys: pytest.CaptureFixture[str], option: dict[str, object]
) -> None:
    before = everything_in(finished)
    capsys.readouterr()
    assert job(toy, finished, **option) == 2
    flag = "--" + next(iter(option))
    assert_one_sentence(capsys.readouterr().err, f"belongs to a run with {flag} ")
    assert everything_in(finished) == before


@pytest.mark.parametrize("name", ["settings.json", "pairs.journal"])
@pytest.mark.parametrize("content", ["", "{", "[]\n", "\0\1\2\n"])
def test_damaged_files_are_refused_and_left_alone(
    finished: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    if (name, content) == ("pairs.journal", ""):
        return  # an empty store is a new one
    out = tmp_path / "run"
    out.mkdir()
    for each in ("settings.json", "pairs.journal"):
        shutil.copy(finished / each, out / each)
    (out / name).write_text(content)
    before = everything_in(out)
    capsys.readouterr()
    assert job(toy, out) == 2
    assert_one_sentence(capsys.readouterr().err, "run")
    assert {path: body for path, body in everything_in(out).items() if not path.endswith("s.json")} == {
        path: body for path, body in before.items() if not path.endswith("s.json")
    }
    assert (out / name).read_text() == content
