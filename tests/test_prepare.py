"""What is settled before a study starts: devices, backends, batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alrq_core.memory import machine
from alrq_core.memory.batch_plan import PROCESS_BASELINE_BYTES
from alrq_core.memory.cores import usable_cores
from alrq_core.memory.prediction import base_bytes
from alrq_core.recipe import Recipe
from tests.tiny import save_reviews
from tune.on_ray.run import _resources
from tune.report import describe
from tune.report.describe import describe_plan
from tune.study import fitting
from tune.study import prepare as module
from tune.study.config import StudyConfig
from tune.study.prepare import Prepared, prepare


def prepared(folder: Path, reviews: Path, recipe: Recipe | None = None, **changes: Any) -> Prepared:
    small = replace(recipe or Recipe(), max_steps=8, batch_size=8, max_length=16)
    return prepare(
        StudyConfig(
            model=str(folder),
            task="custom",
            data=str(reviews),
            text_column="review",
            label_column="verdict",
            recipe=small,
            **changes,
        )
    )


def test_device_and_compute_type_are_settled_once(bert_folder: Path, reviews: Path) -> None:
    recipe = prepared(bert_folder, reviews).config.recipe

    assert recipe.device == machine.found_devices()[0]
    assert recipe.cpu_dtype in {"float32", "bfloat16"}
    assert recipe.accumulation_steps == 1


def test_a_cluster_has_devices_of_its_own(bert_folder: Path, reviews: Path) -> None:
    joined = prepared(bert_folder, reviews, address="10.0.0.1:6379", quant_backend="cuda-4bit")

    assert joined.config.recipe.device is None
    assert joined.space.formats.device == "cuda"
    assert "each worker's fastest" in describe_plan(joined)


def test_a_cluster_keeps_the_predicted_memory_free(bert_folder: Path, reviews: Path) -> None:
    joined = prepared(bert_folder, reviews, address="10.0.0.1:6379")
    here = prepared(bert_folder, reviews)
    base = base_bytes(joined.inventory) + PROCESS_BASELINE_BYTES

    assert _resources(here, gpu=False) == {"cpu": 1.0, "gpu": 0.0}
    peak = joined.batch.memory.peak_bytes
    assert _resources(joined, gpu=False) == {"cpu": 1.0, "gpu": 0.0, "memory": base + peak}
    assert _resources(joined, gpu=True) == {"cpu": 1.0, "gpu": 1.0, "memory": base}


def test_trials_share_a_gpu_and_on_the_cpu_take_none_of_its_time(
    bert_folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "found_devices", lambda: ("cuda", "mps", "cpu"))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda _: True)
    monkeypatch.setattr(fitting, "memory_limit_bytes", lambda *_: 10**10)
    monkeypatch.setattr(module, "trials_per_gpu", lambda *_: 4)
    on_cpu, on_cuda, on_mps = (
        prepared(bert_folder, reviews, Recipe(device=name)) for name in ("cpu", "cuda", "mps")
    )

    assert _resources(on_cpu, gpu=True) == {"cpu": 1.0, "gpu": 0.0}
    assert _resources(on_cuda, gpu=True) == {"cpu": 1.0, "gpu": 0.25}
    assert _resources(on_mps, gpu=False) == {"cpu": float(usable_cores()), "gpu": 0.0}


@pytest.mark.parametrize("backend", ["cuda-4bit", "cuda-8bit"])
def test_a_backend_of_another_device_is_an_error(
    bert_folder: Path, reviews: Path, backend: str
) -> None:
    with pytest.raises(ValueError, match=rf"`--quant-backend` {backend} needs cuda, got a machine"):
        prepared(bert_folder, reviews, Recipe(device="cpu"), quant_backend=backend)


def test_the_plan_says_what_is_stored_how_and_what_is_left_out(
    bert_folder: Path, reviews: Path
) -> None:
    text = describe_plan(prepared(bert_folder, reviews, quant_backend="cpu-int8"))

    assert "cpu-int8 on cpu (8: int8, 16: plain): as asked for" in text
    assert "without          B-Q4: `bits` must be one of 8, 16" in text
    assert "found here: cpu" in text


def test_the_plan_says_that_too_little_is_tested_for_a_recommendation(
    bert_folder: Path, reviews: Path
) -> None:
    text = describe_plan(prepared(bert_folder, reviews))
    enough = describe_plan(prepared(bert_folder, reviews, margin=10.0))

    assert "a recommendation: 40 test sequences can't show a loss of 2 points, which takes" in text
    assert "a recommendation" not in enough


def test_the_plan_says_that_the_cache_can_not_be_written(
    bert_folder: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers would say so where nobody reads it."""
    ready = prepared(bert_folder, reviews)
    monkeypatch.setattr(describe, "cache_folder", lambda: tmp_path / "cache")
    assert "a cache" not in describe_plan(ready)
    (tmp_path / "file").touch()
    monkeypatch.setattr(describe, "cache_folder", lambda: tmp_path / "file" / "cache")

    assert "file/cache can't be written (Not a directory)" in describe_plan(ready)
    assert "Set HF_HOME" in describe_plan(ready)


@pytest.mark.parametrize(
    ("space", "recipe", "enough"),
    [
        ("joint", Recipe(), False),
        ("B-FP", Recipe(), True),
        ("B-Q4", Recipe(), True),
        ("B-FP", Recipe(lora_init="residual"), False),
    ],
)
def test_what_is_made_from_text_needs_some(
    space: str, recipe: Recipe, enough: bool, bert_folder: Path, tmp_path: Path
) -> None:
    few = save_reviews(tmp_path / "few.csv", rows=20)
    if enough:
        assert prepared(bert_folder, few, recipe, space=space).space.name == space
    else:
        with pytest.raises(ValueError, match="must have at least 128 tokens in its train split"):
            prepared(bert_folder, few, recipe, space=space)
