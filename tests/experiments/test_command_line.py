"""What a person may type, what a file may say, and how every kind of ending looks."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest

from data.errors import InputError
from experiments.command_line import option, parse, required, run

NAMES = {"xgboost": 1, "ridge": 2}
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    parent: str = option("demo", "a Hub id or a local folder", group="input")
    keep: float = option(0.5, "fraction of the blocks to keep, 100 % is 1", group="budget")
    max_flops: int | None = option(None, "most FLOPs a token", group="budget")
    sizes: tuple[float, ...] = option((0.8, 0.5), "several fractions")
    sampler: Literal["uniform", "stratified"] = option("stratified", "how pairs are drawn")
    predictor: str = option("xgboost", "who predicts", choices=NAMES)
    resume: bool = option(True, "go on with what is there")
    out: Path = option(Path("runs/x"), "folder of the results")
    plain: int = 3


def test_defaults_are_the_dataclass_own() -> None:
    assert parse(Settings, []) == Settings()


def test_every_type_is_read() -> None:
    words = (
        "--parent org/name --keep 0.25 --max-flops 2e9 --sizes 1 .5 0.3 --sampler uniform --predictor ridge "
        "--no-resume --out here --plain=-4"
    )
    assert asdict(parse(Settings, words.split())) == {
        "parent": "org/name",
        "keep": 0.25,
        "max_flops": 2_000_000_000,
        "sizes": (1.0, 0.5, 0.3),
        "sampler": "uniform",
        "predictor": "ridge",
        "resume": False,
        "out": Path("here"),
        "plain": -4,
    }


def test_none_can_be_said_and_a_tuple_can_be_empty() -> None:
    settings = parse(Settings, ["--max-flops", "none", "--sizes"])
    assert settings.max_flops is None
    assert settings.sizes == ()


@pytest.mark.parametrize("name", ["settings.yaml", "settings.json"])
def test_a_file_sets_the_same_names_and_the_command_line_wins(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(
        '{"keep": 0.3, "max-flops": "1e6", "sizes": [1, 0.5], "resume": false, "sampler": "uniform"}'
    )
    settings = parse(Settings, ["--config", str(file), "--keep", "0.7"])
    assert settings == Settings(
        keep=0.7, max_flops=1_000_000, sizes=(1.0, 0.5), resume=False, sampler="uniform"
    )


def test_yaml_spells_numbers_as_people_do(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("keep: 5e-1\nmax_flops: 2e6\nplain: 1_000\nsizes: [1]\n")
    settings = parse(Settings, ["--config", str(file)])
    assert (settings.keep, settings.max_flops, settings.plain) == (0.5, 2_000_000, 1000)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kep", "1"], "unknown option --kep; did you mean --keep?"),
        (["--kee=1"], "unknown option --kee; did you mean --keep?"),
        (["--qqq"], "unknown option --qqq; --help lists what is."),
        (["stray"], "'stray' belongs to no option."),
        (["--keep"], "--keep: expected one argument."),
        (["--keep", "half"], "--keep: 'half' is not a number."),
        (["--keep", "nan"], "--keep: 'nan' is not a number."),
        (["--keep", "inf"], "--keep: 'inf' is not a number."),
        (["--max-flops", "2.5"], "--max-flops: '2.5' is not a whole number."),
        (["--max-flops", "1e999"], "--max-flops: '1e999' is not a whole number."),
        (["--sizes", "0.8,0.5"], "--sizes: '0.8,0.5' is not a number."),
        (
            ["--predictor", "xgbost"],
            "--predictor: 'xgbost' is not one of xgboost, ridge; did you mean xgboost?",
        ),
        (["--sampler", "x"], "--sampler: 'x' is not one of uniform, stratified; --help lists what is."),
        (["--config", "missing.yaml"], "--config: missing.yaml cannot be read: No such file or directory."),
    ],
)
def test_bad_words_get_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Settings, lambda settings: None, words) == 2
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("keap: 1", "unknown setting 'keap'; did you mean keep?"),
        ("keep: high", "keep: 'high' is not a number."),
        ("keep: true", "keep: True is not a number."),
        ("keep: [1, 2]", "keep: [1, 2] is not a number."),
        ("keep: null", "keep: None is not a number."),
        ("sizes: 1", "sizes: 1 is not a list."),
        ("parent: yes", "parent: True is not text."),
        ("resume: 2", "resume: 2 is not true or false."),
        ("sampler: grid", "sampler: 'grid' is not one of uniform, stratified; --help lists what is."),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        parse(Settings, ["--config", str(file)])
    assert str(error.value) == f"{file}: {sentence}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: b: c\n", "is neither YAML nor JSON (line 1)."),
        (b"- 1\n", "should hold lines of `name: value`."),
        (b"", "should hold lines of `name: value`."),
        (b"\xff\xfe\x00", "is not a text file."),
    ],
)
def test_files_of_another_kind_get_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        parse(Settings, ["--config", str(file)])
    assert str(error.value) == f"--config: {file} {words}"


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        run(Settings, lambda settings: None, ["--help"], "Why?\n\n    python -m it --keep 1\n")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for words in (
        "Why?\n\ninput:",
        "--keep X",
        "fraction of the blocks to keep, 100 % is 1 [default: 0.5]",
        "{uniform,stratified}",
        "--resume, --no-resume",
        "[default: 0.8 0.5]",
        "example:\n    python -m it --keep 1",
    ):
        assert words in shown


def test_a_required_option_is_asked_for_by_name(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Needs:
        keep: float = option(0.5, "fraction")
        checkpoint: str = required("folder of the subnet")

    with pytest.raises(InputError, match="^--checkpoint is required: folder of the subnet.$"):
        parse(Needs, [])
    assert parse(Needs, ["--checkpoint", "x"]) == Needs(checkpoint="x")


def test_a_positional_option_is_given_without_its_name(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Asked:
        folder: Path = required("folder of the subnet", positional=True)
        count: int = option(1, "how many")

    for words in (["here", "--count", "2"], ["--count", "2", "here"]):
        assert parse(Asked, words) == Asked(folder=Path("here"), count=2)
    (tmp_path / "settings.yaml").write_text("folder: there\n")
    assert parse(Asked, ["--config", str(tmp_path / "settings.yaml")]).folder == Path("there")
    with pytest.raises(InputError, match="^FOLDER is required: folder of the subnet.$"):
        parse(Asked, [])
    with pytest.raises(InputError, match="'more' belongs to no option"):
        parse(Asked, ["here", "more"])


def test_a_type_that_no_word_spells_is_the_scripts_fault() -> None:
    @dataclass(frozen=True)
    class Wrong:
        mapping: dict[str, int] | None = option(None, "cannot be typed")

    with pytest.raises(TypeError, match="cannot hold the setting mapping"):
        parse(Wrong, [])


def raising(error: BaseException) -> Callable[[Settings], None]:
    def main(settings: Settings) -> None:
        raise error

    return main


def test_input_errors_are_one_line_and_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings, raising(InputError("keep 3 is above\n1.")), []) == 2
    assert capsys.readouterr().err == "error: keep 3 is above 1.\n"


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Settings, raising(KeyboardInterrupt()), []) == 130
    assert "running the same command again resumes" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("bug"), BrokenPipeError("somebody else's pipe")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(Settings, raising(error), [])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (1, 1), ({"score": 2}, 0), (True, 0)])
def test_the_code_is_what_main_returns(returned: object, code: int) -> None:
    assert run(Settings, lambda settings: returned, []) == code


def test_a_closed_output_ends_without_traceback() -> None:
    script = (
        "from dataclasses import dataclass\n"
        "from experiments.command_line import run\n"
        "@dataclass(frozen=True)\n"
        "class S:\n    n: int = 100000\n"
        "raise SystemExit(run(S, lambda s: [print('line', i) for i in range(s.n)], []))\n"
    )
    command = [sys.executable, "-c", script]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr.strip().startswith("stopped:")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
