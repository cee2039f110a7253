"""The program from outside: bad input ends with code 2, a clear error, and nothing written."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import run_search

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "run_search.py"), *arguments]
    return subprocess.run(script, capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the input is found without Ray, which starts in the meantime."""
    monkeypatch.setattr("tune.on_ray.cluster.ray_started", lambda _: nullcontext())


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
    assert "10.12 MB" in process.stdout
    assert "48.08 MB" in process.stdout
    assert "10^53.7 allocations" in process.stdout
    assert process.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--space", "joined"), "`--space` must be one of joint"),
        (("--space", "matrix", "--max-steps", "4"), "must be at least 5 with AdaLoRA, got 4 for B"),
        (("--space", "B-Ada", "--lora-init", "eva"), "`--lora-init` must be default with AdaLoRA"),
        (("--lora-init", "random"), "`--lora-init` must be one of default, residual, eva"),
        (("--execution", "fast"), "`--execution` must be one of packed, dequantized, got 'fast'"),
        (("--quant-backend", "gptq"), "`--quant-backend` must be one of auto, cuda-4bit"),
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
        (("--max-memory", "1MB"), "must be at least 10.12 MB"),
        (("--max-memory", "big"), "`--max-memory` must be a positive number with a unit"),
        (("--data", "absent.csv", "--text-column", "a", "--label-column", "b"), "must exist"),
        (("--resume", "."), "`--resume` must be the folder of a study"),
        (("--learning-rate", "-1"), "`--learning-rate` must lie between 0 and 1"),
        (("--trial", "t001"), "`--trial` goes with --export, got it alone"),
        (("--export", "s"), "`--export` must come with --trial and --to (and with"),
        (("--export", "s", "--trial", "t", "--to", "d"), "must be the folder of a study"),
        (("--name", "a/b"), "`--name` must be the name of a folder"),
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
