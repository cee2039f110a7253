"""What ended the program is told in one line where its user can mend it, else as our bug."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from safetensors import SafetensorError

from tune.mistakes import RULES, Attempt, tell

BUG = "this is a bug, not a mistake of yours"


def raised(error: BaseException, *modules: str) -> BaseException:
    """Return an error as it is caught after it was raised in the last of these modules."""
    call: Callable[[], None] | None = None
    for module in reversed(modules):
        source = "def f():\n  raise error" if call is None else "def f():\n  call()"
        names: dict[str, Any] = {"__name__": module, "error": error, "call": call}
        exec(source, names)
        call = names["f"]
    assert call is not None
    try:
        call()
    except BaseException as caught:
        return caught
    raise AssertionError


def told(
    capsys: pytest.CaptureFixture[str], error: BaseException, attempt: Attempt | None = None
) -> tuple[int, str]:
    code = tell(error, attempt or Attempt())
    return code, capsys.readouterr().err


def test_a_check_of_ours_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    error = raised(ValueError("`--x` must be 1, got 2. Give 1."), "run_search", "alrq_core.data.x")

    assert told(capsys, error) == (2, "run_search: `--x` must be 1, got 2. Give 1.\n")


@pytest.mark.parametrize(
    ("error", "modules"),
    [
        (ValueError("`hidden_size` must be divisible by heads"), ("tune.study.x", "transformers")),
        (ValueError("invalid literal for int()"), ("alrq_core.data.tables",)),
        (TypeError("f() takes 1 argument"), ("alrq_core.models.loading",)),
        (KeyError("absent"), ("tune.report.exporting",)),
        (ImportError("no name 'x' in tune.study", name="tune.study"), ("tune.report.finish",)),
    ],
    ids=["library", "int", "call", "key", "import"],
)
def test_what_is_no_check_of_ours_is_a_bug(
    error: Exception, modules: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = told(capsys, raised(error, "run_search", *modules))

    assert code == 1
    assert said.startswith("Traceback") and BUG in said


@pytest.mark.parametrize(
    ("error", "modules", "flag"),
    [
        (Exception("data did not match any variant"), ("alrq_core.models.loading",), "--model"),
        (SafetensorError("header too large"), ("alrq_core.models.loading",), "--model"),
        (AttributeError("no attribute 'get'"), ("alrq_core.models.loading", "trans"), "--model"),
        (ValueError("not\n  Parquet"), ("alrq_core.data.tables", "pyarrow.parquet"), "--data"),
        (ValueError("zip"), ("tune.report.exporting", "alrq_core.trial", "torch"), "--export"),
        (OSError("We couldn't connect"), ("alrq_core.models.loading", "transformers"), "--model"),
    ],
)
def test_what_a_library_can_not_read_is_named_by_its_flag(
    error: Exception, modules: tuple[str, ...], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = told(capsys, raised(error, "run_search", "tune.study.prepare", *modules))

    assert code == 2
    assert said.startswith(f"run_search: `{flag}` must be something that can be read, got ")
    assert " ".join(str(error).split()) in said and said.count("\n") == 1


@pytest.mark.parametrize("number", RULES)
def test_every_state_of_a_file_has_its_rule(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error = raised(OSError(number, os.strerror(number), "/some/file"), "tune.study.x", "pathlib")
    code, said = told(capsys, error)

    assert code == 2
    assert said.startswith(f"run_search: `/some/file` must {RULES[number][0]}, got ")
    assert os.strerror(number) in said and said.count("\n") == 1


def test_the_environment_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    for error, words in (
        (ConnectionError("the other side is gone"), "the other side is gone"),
        (ray.exceptions.RaySystemError("the node died"), "the node died"),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "`peft` must be installed"),
    ):
        code, said = told(capsys, raised(error, "tune.on_ray.run"))

        assert code == 2 and words in said and said.count("\n") == 1
    nameless = raised(ImportError("Tune needs more packages"), "tune.on_ray.run", "ray.tune")
    code, said = told(capsys, nameless)

    assert code == 2 and "`ray.tune` must be installed" in said


def test_a_study_that_had_begun_names_the_way_on(capsys: pytest.CaptureFixture[str]) -> None:
    attempt = Attempt(study=Path("r/studies/my study"), budget=7)
    way_on = "Go on with: python run_search.py --resume 'r/studies/my study' --budget 7"
    full = raised(OSError(errno.ENOSPC, "No space left on device"), "tune.study.events")
    code, said = told(capsys, full, attempt)

    assert code == 1 and said.count("\n") == 1
    assert (
        said.startswith("run_search: `r/studies/my study` must have space left") and way_on in said
    )
    code, said = told(capsys, raised(KeyError("x"), "tune.study.study"), attempt)
    assert code == 1 and BUG in said and "study.json" in said and way_on in said
    assert told(capsys, KeyboardInterrupt(), attempt) == (130, f"Interrupted. {way_on}\n")


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    error = raised(PermissionError(errno.EACCES, "Permission denied", "/f"), "tune.study.x")
    _, said = told(capsys, error, Attempt(debug=True))

    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("run_search: `/f` must be open to this user")
