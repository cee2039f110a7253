"""What is settled before a study starts: devices, backends, batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alrq_core.memory import machine
from alrq_core.memory.batch_plan import DoesNotFitError
from alrq_core.memory.host import PROCESS_BASELINE_BYTES, Host
from alrq_core.memory.prediction import base_bytes
from alrq_core.recipe import Recipe
from tests.tiny import save_reviews
from tune.on_ray.run import _resources
from tune.report import describe
from tune.report.describe import describe_plan
from tune.study import prepare as module
from tune.study.config import StudyConfig
from tune.study.prepare import Prepared, fit, prepare, read


def config(
    folder: Path, reviews: Path, recipe: Recipe | None = None, **changes: Any
) -> StudyConfig:
    small = replace(recipe or Recipe(), max_steps=8, batch_size=8, max_length=16)
    return StudyConfig(
        model=str(folder),
        task="custom",
        data=str(reviews),
        text_column="review",
        label_column="verdict",
        recipe=small,
        **changes,
    )


def prepared(folder: Path, reviews: Path, recipe: Recipe | None = None, **changes: Any) -> Prepared:
    return prepare(config(folder, reviews, recipe, **changes))


def card(gigabytes: float = 24, **changes: Any) -> Host:
    found = Host(
        device="cuda",
        name="NVIDIA L4",
        memory_bytes=int(gigabytes * 10**9),
        cores=4,
        compute_dtype="bfloat16",
        multiprocessors=58,
    )
    return replace(found, **changes)


def test_device_and_compute_type_are_settled_once(bert_folder: Path, reviews: Path) -> None:
    recipe = prepared(bert_folder, reviews).config.recipe

    assert recipe.device == machine.found_devices()[0]
    assert recipe.cpu_dtype in {"float32", "bfloat16"}
    assert recipe.accumulation_steps == 1


CLUSTER = {"address": "10.0.0.1:6379"}


def test_a_cluster_is_planned_for_by_what_all_its_nodes_have(
    bert_folder: Path, reviews: Path
) -> None:
    """Of cards of 24 and 6 GB, the smaller ones; no L4 computes in float16, a T4 has no other."""
    mixed = [card(), card(), card(6, name="Tesla T4", compute_dtype="float16", cores=2)]
    asked = config(bert_folder, reviews, quant_backend="cuda-4bit", **CLUSTER)
    joined = fit(read(asked, hosts=mixed))
    small = fit(read(asked, hosts=mixed[2:]))
    plan = describe_plan(joined)

    assert joined.config.recipe.device == joined.space.formats.device == "cuda"
    assert "2 x NVIDIA L4, 24.00 GB free, 4 cores; 1 x Tesla T4, 6.00 GB free, 2 cores" in plan
    assert "computing in float16" in plan
    assert joined.batch == small.batch
    assert joined.config.recipe.execution == small.config.recipe.execution == "packed"
    with pytest.raises(DoesNotFitError):
        fit(read(asked, hosts=[card(), card(0.6)]))


def test_a_cluster_keeps_the_predicted_memory_free(bert_folder: Path, reviews: Path) -> None:
    asked = config(bert_folder, reviews, **CLUSTER)
    node = Host(device="cpu", name="Xeon", memory_bytes=10**10, cores=4, compute_dtype="float32")
    joined, with_card = (fit(read(asked, hosts=[host])) for host in (node, card()))
    base, peak = base_bytes(joined.inventory), joined.batch.memory.peak_bytes
    shared = with_card.trials_per_gpu

    assert _resources(prepared(bert_folder, reviews)) == {"cpu": 1.0, "gpu": 0.0}
    held = PROCESS_BASELINE_BYTES + base // 4
    assert _resources(joined) == {"cpu": 1.0, "gpu": 0.0, "memory": held + peak}
    # As many as it has cores fit beside each other.
    assert 4 * (held + peak) <= 10**10
    held = PROCESS_BASELINE_BYTES + base // shared
    assert _resources(with_card) == {"cpu": 1.0, "gpu": 1 / shared, "memory": held}


def test_trials_share_a_gpu_and_on_the_cpu_take_none_of_its_time(
    bert_folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "trials_per_gpu", lambda *_: 4)
    on_cpu, on_cuda, on_mps = (
        fit(read(config(bert_folder, reviews), hosts=[card(device=name, compute_dtype=dtype)]))
        for name, dtype in (("cpu", "float32"), ("cuda", "bfloat16"), ("mps", "float32"))
    )

    assert _resources(on_cpu) == {"cpu": 1.0, "gpu": 0.0}
    assert _resources(on_cuda) == {"cpu": 1.0, "gpu": 0.25}
    assert _resources(on_mps) == {"cpu": 4.0, "gpu": 0.0}


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
    assert (
        "without          B-Q4: --quant-backend cpu-int8 lacks what it is made of (`bits` must"
        in text
    )
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
