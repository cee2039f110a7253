"""The program from outside: bad input ends with code 2, a clear error, and nothing written."""

import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from ray.tune.error import TuneError

import run_search
from alrq_core.files import write_json
from tests.tiny import save_bert
from tests.waiting import HANGS_SECONDS
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.record import study_content

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "run_search.py"), *arguments]
    environment = os.environ | variables
    return subprocess.run(
        script, capture_output=True, text=True, timeout=HANGS_SECONDS, cwd=cwd, env=environment
    )


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the input is found without Ray, which starts in the meantime."""
    monkeypatch.setattr("tune.on_ray.cluster.ray_started", lambda *_: nullcontext())


def code(*arguments: str) -> int:
    """Return the program's exit code, run in this process."""
    try:
        return run_search.main(arguments)
    except SystemExit as exit_:
        assert isinstance(exit_.code, int)
        return exit_.code


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    process = run("--dry-run", "--max-memory", "30MB", cwd=tmp_path)

    assert process.returncode == 0, process.stderr
    assert "36 target modules of minilm" in process.stdout
    assert "7.04 MB" in process.stdout
    assert "48.08 MB" in process.stdout
    assert "10^53.9 allocations" in process.stdout
    assert process.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text-pair-column", "b"), "pairs of sentences can't be learnt"),
        (("--space", "joined"), "`--space` must be one of joint"),
        (("--space", "matrix", "--max-steps", "4"), "must be at least 5 with AdaLoRA, got 4 for B"),
        (("--space", "B-Ada", "--lora-init", "eva"), "`--lora-init` must be default with AdaLoRA"),
        (("--lora-init", "random"), "`--lora-init` must be one of default, residual, eva"),
        (("--execution", "fast"), "`--execution` must be one of packed, dequantized, got 'fast'"),
        (("--quant-backend", "awq"), "`--quant-backend` must be one of auto, cuda-4bit"),
        (("--quant-backend", "cuda-4bit", "--device", "cpu"), "cuda-4bit needs cuda, got a"),
        (("--device", "tpu"), "`--device` must be one of auto, cpu, cuda, mps, got 'tpu'"),
        (("--space", "B-Q4", "--quant-backend", "none"), "got 4 for bert.encoder.layer.0"),
        (("--group-size", "48"), "`--group-size` must be one of 32, 64, 128, 256, got 48"),
        (("--group-size", "some"), "`--group-size` must be whole numbers with commas between"),
        (("--four-bit", "int4"), "`--four-bit` must be one of nf4-double, nf4, fp4"),
        (("--task", "sst3"), "`--task` must be one of rotten_tomatoes"),
        (("--model", "/nowhere/at/all"), "`--model` must be minilm, smollm2, a local folder"),
        (("--searcher", "best"), "`--searcher` must be one of alrq"),
        (("--scheduler", "best"), "`--scheduler` must be one of front-asha"),
        (("--budget", "0"), "`--budget` must be a whole number of at least 1, got 0"),
        (("--budget", "-4"), "`--budget` must be a whole number of at least 1, got -4"),
        (("--budget", "many"), "`--budget` must be a whole number, got 'many'"),
        (
            ("--bits", "2,7"),
            "`--bits` must be some of 2, 3, 4, 8, 16 in --space joint with",
        ),
        (("--ranks", "few"), "`--ranks` must be whole numbers with commas between, got 'few'"),
        (("--space", "B-FP", "--ranks", "8"), "`--ranks` must go with a searched space, got"),
        (
            ("--device-memory", "50MB"),
            "`--device-memory` must leave each of",
        ),
        (("--max-memory", "1MB"), "must be at least 7.04 MB"),
        (("--max-memory", "big"), "`--max-memory` must be a positive number with a unit"),
        (("--data", "absent.csv", "--text-column", "a", "--label-column", "b"), "must exist"),
        (("--resume", "."), "`--resume` must be the folder of a study"),
        (("--learning-rate", "-1"), "`--learning-rate` must lie between 0 and 1"),
        (("--trial", "t001"), "`--trial` goes with --export, got it alone"),
        (("--as", "transformers"), "`--as` goes with --export, got it alone"),
        (("--export", "s"), "`--export` must come with --trial and --to (and with"),
        (("--export", "s", "--trial", "t", "--to", "d"), "must be the folder of a study"),
        (("--name", "a/b"), "`--name` must be the name of a folder"),
        (("--name", "n" * 300), "`--name` must have at most 150 bytes, got 300 characters"),
        (("--output-dir", "o" * 300), "(File name too long). Choose another one."),
        (("--resume", "r" * 300), "`--resume` must be the folder of a study"),
        (("--export", "e" * 300, "--trial", "t", "--to", "d"), "must be the folder of a study"),
        (("--export", "s", "--trial", "t", "--to", "t" * 300), "`--to` must be a folder that can"),
        (("--output-dir", "/proc/results"), "`--output-dir` must be a folder that can be written"),
    ],
)
def test_bad_input_is_named_with_its_rule(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert code(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_mistake_answers_without_a_traceback_or_a_trace(tmp_path: Path) -> None:
    process = run("--budget", "0", cwd=tmp_path)

    assert process.returncode == 2
    assert process.stderr.startswith("run_search: `--budget` must be")
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_output_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("a file")

    assert code() == 2
    message = "`--output-dir` must be a folder that can be written, got 'results'"
    assert message in capsys.readouterr().err
    assert (tmp_path / "results").read_text() == "a file"


def small(model: Path, data: Path, output: Path, *more: str) -> tuple[str, ...]:
    """Return the flags of a study with a tiny model, which is prepared in a moment."""
    columns = ("--text-column", "review", "--label-column", "verdict")
    sizes = ("--budget", "2", "--max-steps", "8", "--batch-size", "8", "--max-length", "16")
    places = ("--data", str(data), "--output-dir", str(output), "--name", "s")
    return ("--model", str(model), *columns, *sizes, *places, *more)


@pytest.fixture
def flags(bert_folder: Path, reviews: Path, tmp_path: Path) -> tuple[str, ...]:
    return small(bert_folder, reviews, tmp_path / "out")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def only_line(text: str) -> str:
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


def test_a_target_below_a_file_is_refused_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("a file")

    assert code("--export", "s", "--trial", "t001", "--to", "notes.txt/model") == 2
    message = only_line(capsys.readouterr().err)
    assert "`--to` must be a folder that can be written, got 'notes.txt/model'" in message
    assert "notes.txt is a file" in message


@pytest.mark.parametrize("flag", ["--data", "--model"])
def test_a_path_that_is_too_long_for_the_disk_is_named(
    flags: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code(*flags, flag, "d" * 300 + ".csv") == 2
    message = only_line(capsys.readouterr().err)
    assert message.startswith("run_search: `") and "d" * 300 in message


def newer_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"] = {"type": "Morphemes", "vocab": {}}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text('"bert"'),
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert", "hidden'),
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "later-than-this"}'),
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        newer_tokenizer,
    ],
    ids=["list", "text", "cut", "bytes", "unknown", "tokenizer-list", "newer-tokenizer"],
)
def test_a_model_that_the_libraries_can_not_read_is_named_by_its_flag(
    spoil: Callable[[Path], Any],
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = save_bert(tmp_path / "bert")
    spoil(model)

    assert code(*small(model, reviews, tmp_path / "out")) == 2
    assert only_line(capsys.readouterr().err).startswith("run_search: `--model` must ")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_a_study_in_one_line_that_says_how_to_go_on(
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ray Tune wraps the error in one of its own, whose message is the whole traceback."""

    def fill(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise TuneError("Traceback (most recent call last):\n  of 94 lines")  # noqa: B904

    monkeypatch.setattr("tune.on_ray.run.run_study", fill)

    assert code(*flags) == 1
    message = only_line(capsys.readouterr().err)
    study = tmp_path / "out/studies/s"
    assert message.startswith(f"run_search: `{study}` must have space left, got OSError: No space")
    assert f"Go on with: python run_search.py --resume {study} --budget 2" in message


@pytest.mark.parametrize("place", ["a study", "übung"])
def test_the_way_on_can_be_pasted_into_a_shell(
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    monkeypatch.setattr("tune.on_ray.run.run_study", raising(KeyboardInterrupt()))

    assert code(*flags, "--output-dir", str(tmp_path / place)) == 130
    message = only_line(capsys.readouterr().err)
    assert f"--resume '{tmp_path / place / 'studies/s'}' --budget 2" in message


def test_a_damaged_log_is_named_with_its_line(
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begin(prepared: Any, *_: object) -> None:
        write_json(prepared.config.folder / "study.json", study_content(prepared) | {"runs": []})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tune.on_ray.run.run_study", begin)
        assert code(*flags) == 130
    study = tmp_path / "out/studies/s"
    log = EventLog(study / LOG_NAME)
    log.append(Started(time=1.0, budget=2))
    log.close()
    with log.path.open("ab") as file:
        file.write(b"\xff garbage\n{}\n")
    before = log.path.read_bytes()
    capsys.readouterr()

    assert code("--resume", str(study)) == 2
    message = only_line(capsys.readouterr().err)
    assert f"`{log.path}` must hold one event a line, got line 2 that is none" in message
    assert "Restore the line from a copy, or start a new study." in message
    assert log.path.read_bytes() == before


def test_ctrl_c_before_the_study_begins_is_no_mistake(
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tune.study.prepare.read", raising(KeyboardInterrupt()))

    assert code(*flags) == 130
    assert only_line(capsys.readouterr().err) == "Interrupted. No study was begun.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda _: {}["absent"],
        lambda _: int("many"),
        lambda _: json.loads("{"),
        raising(AssertionError("ours")),
    ],
    ids=["key", "number", "library", "assertion"],
)
def test_a_bug_keeps_its_traceback_and_says_where_it_goes(
    wrong: Callable[..., Any],
    flags: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tune.report.describe.describe_plan", wrong)

    assert code(*flags, "--dry-run") == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "run_search: this is a bug, not a mistake of yours. Report it in" in said


def test_debug_shows_where_a_mistake_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("--budget", "0", "--debug") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.splitlines()[-1].startswith("run_search: `--budget` must be a whole number")


def test_a_plain_locale_shows_letters_or_their_escapes(
    bert_folder: Path, reviews: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(bert_folder, tmp_path / "Modell ü\u2713")
    data = shutil.copy(reviews, tmp_path / "Prüfung 1.csv")
    flags = small(model, Path(data), tmp_path / "out", "--dry-run")
    process = run(*flags, cwd=tmp_path, LC_ALL="C")

    assert process.returncode == 0, process.stderr
    assert "Modell \\xfc\\u2713" in process.stdout or "Modell ü\u2713" in process.stdout
    assert process.stderr == ""


@pytest.fixture
def called_by_its_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/alrq"])
    yield


def test_the_installed_script_calls_itself_by_its_name(
    called_by_its_script: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code("--budget", "many") == 2
    said = capsys.readouterr().err
    assert said.startswith("alrq: argument --budget") and "See alrq --help." in said
    assert code("--budget", "0") == 2
    assert capsys.readouterr().err.startswith("alrq: `--budget` must be")
    assert code("--help") == 0
    assert capsys.readouterr().out.startswith("usage: alrq [-h]")


def test_the_script_that_is_installed_is_this_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["alrq"].partition(":")

    assert getattr(importlib.import_module(module), name) is run_search.main
