"""What a study runs in the memory that there is: bits, reference, comparator, batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alrq_core.memory.batch_plan import DoesNotFitError
from alrq_core.memory.cores import usable_cores
from alrq_core.memory.host import PROCESS_BASELINE_BYTES, Host
from alrq_core.memory.machine import pick_compute_dtype, pick_device
from alrq_core.memory.prediction import base_bytes, step_memory
from alrq_core.recipe import Recipe
from search_spaces.allocation import Allocation
from search_spaces.fixed import fixed_allocation
from search_spaces.narrow import target_bits
from tests import test_prepare
from tests.tiny import save_bert
from tune.report.describe import describe_plan
from tune.study import fitting
from tune.study.prepare import Prepared, prepare

# Weights count beside adapters of such ranks, even in a tiny model.
LOW_RANKS: dict[str, Any] = {"ranks": (0, 2, 4, 8)}


def prepared(
    folder: Path,
    reviews: Path,
    recipe: Recipe | None = None,
    checkpointing: bool | None = False,
    **changes: Any,
) -> Prepared:
    own = replace(recipe or Recipe(), gradient_checkpointing=checkpointing)
    return test_prepare.prepared(folder, reviews, own, **changes)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks enough that the bits of their weights count beside what one module takes."""
    return save_bert(tmp_path_factory.mktemp("deep"), blocks=12)


@pytest.fixture
def whole(bert_folder: Path, reviews: Path) -> Prepared:
    return prepared(bert_folder, reviews, **LOW_RANKS)


def least_memory(ready: Prepared, allocation: Allocation) -> int:
    """Bytes of a process that trains an allocation with the smallest batch."""
    return base_share(ready) + step_of(ready, allocation)


def step_of(ready: Prepared, allocation: Allocation) -> int:
    recipe, task = ready.config.recipe, ready.task
    longest = int(task.train.lengths.max())
    dtype = pick_compute_dtype(pick_device("cpu"), recipe.cpu_dtype)
    memory = step_memory(ready.inventory, task.kind, 2, allocation, 1, longest, dtype)
    return memory.peak_bytes


def base_share(ready: Prepared) -> int:
    """A worker's part of the base model, which all share."""
    return base_bytes(ready.inventory) // usable_cores()


def at(ready: Prepared, name: str) -> Allocation:
    return fixed_allocation(name, ready.inventory, ready.space.formats)


def between(ready: Prepared, smaller: Allocation, larger: Allocation) -> int:
    low, high = (least_memory(ready, allocation) for allocation in (smaller, larger))
    assert low < high
    return (low + high) // 2


def at_4_bits(ready: Prepared) -> int:
    """Memory of a machine on which 4 bits can be trained and 16 can not."""
    return machine_of(between(ready, at(ready, "B-Q4"), at(ready, "B-FP")))


def machine_of(process_bytes: int) -> int:
    """Memory of a machine whose workers have so much each, beside what they begin with."""
    return usable_cores() * (process_bytes + PROCESS_BASELINE_BYTES)


def test_all_runs_where_there_is_room(whole: Prepared) -> None:
    assert target_bits(whole.space) == (2, 3, 4, 8, 16)
    assert list(whole.fitting.baselines) == ["B-FP", "B-Q4"]
    assert whole.reference == whole.fitting.comparator == "B-FP"
    assert whole.config.bits is None
    assert not whole.fitting.without


def test_where_16_bits_do_not_fit_4_take_their_place(
    whole: Prepared, bert_folder: Path, reviews: Path
) -> None:
    limit = at_4_bits(whole)
    cut = prepared(bert_folder, reviews, device_memory_bytes=limit, **LOW_RANKS)
    text = describe_plan(cut)

    assert 16 not in target_bits(cut.space)
    assert target_bits(cut.space)[:3] == (2, 3, 4)
    assert list(cut.fitting.baselines) == ["B-Q4"]
    assert cut.reference == cut.fitting.comparator == "B-Q4"
    assert cut.reference_allocation == cut.fitting.baselines["B-Q4"]
    assert machine_of(least_memory(cut, cut.space.largest())) <= limit
    # What comes before trials is cut to the same memory.
    assert 0 < cut.config.recipe.held_bytes < whole.config.recipe.held_bytes
    assert 0 < cut.config.recipe.prepared_tokens < whole.config.recipe.prepared_tokens
    assert "reference        B-Q4, trained 8 steps" in text
    assert "without          B-FP: `--max-length` must let one sequence fit" in text
    assert "16 bits: `--max-length` must let one sequence fit" in text


def test_activations_are_computed_again_before_anything_is_left_out(
    whole: Prepared, bert_folder: Path, reviews: Path
) -> None:
    limit = at_4_bits(whole)
    found = prepared(
        bert_folder, reviews, checkpointing=None, device_memory_bytes=limit, **LOW_RANKS
    )
    roomy = prepared(bert_folder, reviews, checkpointing=None, **LOW_RANKS)

    assert found.config.recipe.gradient_checkpointing is True
    assert found.space.bits == whole.space.bits
    assert found.reference == "B-FP"
    assert "; with gradient checkpointing" in describe_plan(found)
    assert roomy.config.recipe.gradient_checkpointing is False


def test_a_study_that_goes_on_in_more_memory_stays_as_it_began(
    whole: Prepared, bert_folder: Path, reviews: Path
) -> None:
    cut = prepared(bert_folder, reviews, device_memory_bytes=at_4_bits(whole), **LOW_RANKS)
    again = prepare(replace(cut.config, device_memory_bytes=None))

    assert cut.config.bits == target_bits(cut.space)
    assert again.space.bits == cut.space.bits
    assert again.fitting.baselines == cut.fitting.baselines
    assert again.reference == again.fitting.comparator == "B-Q4"
    assert "without          B-FP: it didn't fit in memory when" in describe_plan(again)


def test_bits_that_are_asked_for_are_not_narrowed(
    whole: Prepared, bert_folder: Path, reviews: Path
) -> None:
    limit = at_4_bits(whole)
    with pytest.raises(DoesNotFitError, match=r"fewer --bits, smaller --ranks"):
        prepared(bert_folder, reviews, device_memory_bytes=limit, bits=(2, 16), **LOW_RANKS)
    asked = prepared(bert_folder, reviews, device_memory_bytes=limit, bits=(2, 3), **LOW_RANKS)

    assert target_bits(asked.space) == (2, 3)


def test_a_limit_on_training_narrows_the_search_and_leaves_the_baselines(
    whole: Prepared, bert_folder: Path, reviews: Path
) -> None:
    most = step_of(whole, whole.space.nearest_uniform(4, 8))
    limited = prepared(bert_folder, reviews, max_training_memory_bytes=most, **LOW_RANKS)

    assert set(target_bits(limited.space)) < set(target_bits(whole.space))
    assert step_of(limited, limited.space.largest()) <= most
    assert set(limited.fitting.baselines) == set(whole.fitting.baselines)
    assert limited.reference == "B-FP"
    assert "16 bits" in " ".join(limited.fitting.without)


def test_a_reference_that_does_not_fit_is_refused_by_its_name(
    whole: Prepared, bert_folder: Path, reviews: Path
) -> None:
    limit = at_4_bits(whole)
    with pytest.raises(ValueError, match=r"fits in memory, got B-FP \(.*Use B-Q4 or none\."):
        prepared(bert_folder, reviews, device_memory_bytes=limit, reference="B-FP", **LOW_RANKS)


def test_nothing_that_fits_is_an_error(whole: Prepared, bert_folder: Path, reviews: Path) -> None:
    base = machine_of(base_share(whole))
    with pytest.raises(ValueError, match="`--model` must leave memory beside its weights, which"):
        prepared(bert_folder, reviews, device_memory_bytes=base)
    # Codes of one width and no adapter, in which nothing is trained that they are compared to.
    none = prepared(bert_folder, reviews, bits=(2,), ranks=(0,))
    limit = machine_of(between(whole, none.space.largest(), at(whole, "B-Q4")))
    with pytest.raises(DoesNotFitError, match="train something that all is compared to, got B-FP"):
        prepared(bert_folder, reviews, device_memory_bytes=limit, bits=(2,), ranks=(0,))


def test_what_is_larger_than_the_space_is_planned_for(bert_folder: Path, reviews: Path) -> None:
    """B-FP has more bytes than anything of the space has, and is trained in the same batches."""
    packed = Recipe(execution="packed")
    small = prepared(bert_folder, reviews, packed, bits=(2, 3), ranks=(0,))
    joint = prepared(bert_folder, reviews, packed, bits=(2, 3, 16), ranks=(8,))

    assert small.batch.memory == joint.batch.memory


def test_a_batch_that_does_not_fit_is_cut_and_keeps_its_size(
    bert_folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(bert_folder, reviews, Recipe(execution="packed"))
    limit = base_share(whole) + whole.batch.memory.peak_bytes - 1
    monkeypatch.setattr(Host, "limit_bytes", lambda *_: limit)
    cut = prepared(bert_folder, reviews)
    recipe = cut.config.recipe

    assert recipe.accumulation_steps is not None
    assert recipe.accumulation_steps > 1
    assert cut.batch.micro_batch * recipe.accumulation_steps == recipe.batch_size == 8
    assert "at once would take" in describe_plan(cut)
    kept = prepared(bert_folder, reviews, Recipe(accumulation_steps=1))
    assert kept.config.recipe.accumulation_steps == 1
    assert cut.config.recipe.execution == "packed"


def test_copies_are_made_where_they_fit_and_nobody_says_otherwise(
    bert_folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execution(**recipe: Any) -> tuple[str | None, int | None]:
        found = prepared(bert_folder, reviews, Recipe(cpu_dtype="float32", **recipe)).config.recipe
        return found.execution, found.accumulation_steps

    assert execution() == ("dequantized", 1)
    assert execution(execution="packed") == ("packed", 1)
    assert execution(accumulation_steps=2) == ("dequantized", 2)
    # In bfloat16 a copy takes no more than what autocast makes of packed weights.
    packed = prepared(bert_folder, reviews, Recipe(execution="packed", cpu_dtype="float32"))
    limit = base_share(packed) + packed.batch.memory.peak_bytes
    monkeypatch.setattr(Host, "limit_bytes", lambda *_: limit)
    assert execution() == ("packed", 1)


def test_a_model_that_can_not_be_built_in_memory_is_refused(
    bert_folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_share(prepared(bert_folder, reviews))
    monkeypatch.setattr(Host, "limit_bytes", lambda *_: base + 1000)
    with pytest.raises(ValueError, match="`--model` must leave memory to quantise its largest"):
        prepared(bert_folder, reviews)


def test_mps_safe_keeps_every_tensor_small(
    bert_folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that the largest tensor of the whole batch just reaches."""
    recipe = Recipe(execution="packed")
    whole = prepared(bert_folder, reviews, recipe)
    asked: list[str] = []

    def limit(device: str) -> int | None:
        asked.append(device)
        return whole.batch.memory.largest_tensor_bytes if device == "mps" else None

    monkeypatch.setattr(fitting, "tensor_limit_bytes", limit)
    assert prepared(bert_folder, reviews, recipe).batch.micro_batch == 8
    safe = prepared(bert_folder, reviews, recipe, mps_safe=True)

    assert asked == ["cpu", "mps"]
    assert safe.batch.micro_batch < 8
    assert "one tensor of" in safe.batch.reason
