"""What others made is read and never run: no pickle, no evaluated text, no code without the flag."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from experiments.score import load
from experiments.tasks import load_both
from nas.parent import DEMO, load_parent, load_tokenizer, read_config
from tests.test_house import PACKAGES, ROOT, files

RUNNING_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Modules that run what they read."""
RUNNING_CALLS = {
    "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.full_load",
    "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle", "from_string",
}  # fmt: skip
ALLOWED = {
    ("predictors/contract.py", "pickle"),  # in memory: whether a predictor can be sent to a process
    ("nas/export.py", "exec"),  # this project's own modelling code, before it is saved
    # What the same process, or the run that it goes on with, has saved.
    ("nas/laws/saving.py", "AutoModelForCausalLM.from_pretrained with trust_remote_code=True"),
    ("experiments/published/main_job.py", "load_checkpoint with trust=True"),
    ("experiments/published/outcome.py", "load_checkpoint with trust=True"),
}


def dangers(path: str, source: str) -> set[tuple[str, str]]:
    """(file, what) for everything in a module by which data could come to run."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found |= {name.split(".")[0] for name in names} & RUNNING_MODULES
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
        method = called.rpartition(".")[2]
        if called in RUNNING_CALLS or method in ("to_pickle", "read_pickle", "from_string"):
            found.add(called)
        if called == "torch.load" and given.get("weights_only") != "True":
            found.add("torch.load")
        if called in ("np.load", "np.save", "np.savez") and given.get("allow_pickle") != "False":
            found.add(called)
        if called == "torch.save" or given.get("shell") == "True":
            found.add(called)
        for word in {"trust_remote_code", "trust"} & given.keys():
            if given[word] not in ("False", "trust"):
                found.add(f"{called} with {word}={given[word]}")
        if method == "Environment" and given.get("autoescape") != "True":
            found.add(f"{called} without autoescape")
    return {(path, what) for what in found}


def test_nothing_that_is_read_can_run() -> None:
    found = set().union(
        *(dangers(path, (ROOT / path).read_text(encoding="utf-8")) for path in files(*PACKAGES))
    )
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("from joblib import load", "joblib"),
        ("import pickle as p", "pickle"),
        ("import torch\ntorch.load(x)", "torch.load"),
        ("import torch\ntorch.load(x, weights_only=False)", "torch.load"),
        ("import numpy as np\nnp.load(x, allow_pickle=True)", "np.load"),
        ("import yaml\nyaml.load(x, Loader=y)", "yaml.load"),
        ("frame.to_pickle(x)", "frame.to_pickle"),
        ("A.from_pretrained(x, trust_remote_code=True)", "A.from_pretrained with trust_remote_code=True"),
        ("jinja2.Environment()", "jinja2.Environment without autoescape"),
    ],
)
def test_what_could_run_is_found(source: str, what: str) -> None:
    assert dangers("a.py", source) == {("a.py", what)}


@pytest.mark.parametrize("kind", ["llama", "of_its_own"])
def test_code_of_a_model_runs_with_the_flag_alone(kind: str, tmp_path: Path) -> None:
    """Whether its type is one that transformers knows or not."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(DEMO, folder)
    settings = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": kind, "auto_map": classes}))
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words["auto_map"] = {"AutoTokenizer": ["own.Own", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    name = str(folder)
    for read in (
        lambda: read_config(name),
        lambda: load_parent(name, torch.device("cpu"), torch.float32),
        lambda: load_tokenizer(name),
        lambda: load(name, False),
        lambda: load_both(name, False),
    ):
        try:
            read()
        except InputError as error:
            assert "\n" not in str(error)
        assert not ran.exists()
    with pytest.raises(InputError):
        load(name, True)
    assert ran.exists()
