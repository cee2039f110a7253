"""Everything about a study that is checked and computed before Ray starts."""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import torch

from alrq_core.adapters.adalora import MIN_STEPS
from alrq_core.data.encode import EncodedTask, encode_task, epoch_batches
from alrq_core.data.parts import check_calibration
from alrq_core.data.tasks import check_task_name, load_task
from alrq_core.memory.batch_plan import (
    BatchPlan,
    memory_limit_bytes,
    plan_batch,
    tensor_limit_bytes,
)
from alrq_core.memory.cores import usable_cores
from alrq_core.memory.machine import (
    fastest_cpu_dtype,
    give_back_memory,
    pick_compute_dtype,
    pick_device,
)
from alrq_core.memory.prediction import base_bytes, build_bytes
from alrq_core.memory.sharing import trials_per_gpu
from alrq_core.models.loading import (
    PACKAGED_MODELS,
    inspect_model,
    load_tokenizer,
    resolve_model,
)
from alrq_core.recipe import Recipe
from search_spaces.allocation import Allocation
from search_spaces.costs import format_bytes, memory_bytes
from search_spaces.fixed import fixed_allocation, unavailable
from search_spaces.formats import BACKENDS, Formats
from search_spaces.inventory import Inventory
from search_spaces.spaces import ALL_BITS, Space, make_space
from search_spaces.ties import tied
from tune.study.config import NO_REFERENCE, StudyConfig
from tune.study.digests import Digests, digests_of
from tune.study.plan import DEFAULT_REFERENCE
from tune.study.schedulers import rungs_of


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study that can start.

    Attributes:
        config: With the recipe's steps computed.
        inventory: The model's target modules.
        task: In tokens.
        space: What is searched.
        reference: The fixed configuration that trials start from; None to start from nothing.
        batch: How a batch is cut for memory, planned for the largest allocation.
        trials_per_gpu: Trials that share a GPU.
        digests: Of the texts and of the model's files.
    """

    config: StudyConfig
    inventory: Inventory
    task: EncodedTask
    space: Space
    reference: str | None
    batch: BatchPlan
    trials_per_gpu: int
    digests: Digests

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which trials of the search report."""
        return rungs_of(self.config.recipe, "search", self.reference is not None)

    @property
    def reference_allocation(self) -> Allocation | None:
        """Of what trials start from."""
        if self.reference is None:
            return None
        return fixed_allocation(self.reference, self.inventory, self.space.formats)


def prepare(config: StudyConfig) -> Prepared:
    """Read model and data, and check that the space and its limit make sense.

    Raises:
        ValueError: Something the user gave can't work. Nothing was written.
    """
    check_task_name(config.task)
    folder = resolve_model(config.model)
    data = Path(config.data) if config.data is not None else None
    if data is not None and not data.exists():
        raise ValueError(f"`--data` must exist, got {config.data!r}. Check the path.")
    config = replace(_with_places(config), recipe=_settled(config))
    formats = _formats(config)
    task = load_task(config.task, data, config.text_column, config.label_column)
    inventory = inspect_model(
        config.model, task.kind, len(task.label_names), config.recipe.max_length
    )
    digests = digests_of(task, folder)
    encoded = encode_task(task, folder, config.recipe.max_length)
    if config.eval_sequences is not None:
        encoded = encoded.scored_on(config.eval_sequences)
    if config.epochs is not None:
        steps = math.ceil(
            config.epochs * epoch_batches(len(encoded.train), config.recipe.batch_size)
        )
        config = replace(config, recipe=replace(config.recipe, max_steps=max(1, steps)))
    space = make_space(config.space, inventory, formats)
    if config.tie:
        space = tied(space)
    _check_adalora(space, config.recipe)
    _check_text(space, config.recipe, encoded)
    smallest = memory_bytes(space.smallest(), inventory)
    if config.max_memory_bytes is not None and config.max_memory_bytes < smallest:
        raise ValueError(
            f"`--max-memory` must be at least {format_bytes(math.ceil(smallest / 1e4) * 1e4)}, the "
            f"smallest allocation of {config.space} with {config.model}, got "
            f"{format_bytes(config.max_memory_bytes)}. Raise it, or use a smaller model."
        )
    execution, batch = _execution_plan(config, inventory, encoded, space)
    recipe = replace(
        config.recipe, accumulation_steps=batch.accumulation_steps, execution=execution
    )
    _let_go()
    reference = _reference(config, space)
    return Prepared(
        config=replace(config, recipe=recipe, reference=reference or NO_REFERENCE),
        inventory=inventory,
        task=encoded,
        space=space,
        reference=reference,
        batch=batch,
        trials_per_gpu=_trials_per_gpu(config, inventory, encoded, batch),
        digests=digests,
    )


def _reference(config: StudyConfig, space: Space) -> str | None:
    """Return what trials start from; None in a fixed space, which is trained by the plain recipe.

    Raises:
        ValueError: It can't be built here, or starts were to be screened without it.
    """
    name = config.reference or DEFAULT_REFERENCE
    if name == NO_REFERENCE or space.fixed:
        if config.screen:
            raise ValueError(
                f"`--screen` must be 0 where trials start from nothing, got {config.screen}. "
                "Leave it out, or use a searched --space with a --reference."
            )
        return None
    reason = unavailable(name, space.inventory, space.formats)
    if reason is not None:
        raise ValueError(
            f"`--reference` must be one that the backend has, got {name} ({reason}). Use B-FP."
        )
    return name


def _with_places(config: StudyConfig) -> StudyConfig:
    """Return the configuration with whole paths, which hold in any folder and in any process."""
    data, model = config.data, config.model
    if data is not None:
        data = str(Path(data).absolute())
    if model not in PACKAGED_MODELS and Path(model).is_dir():
        model = str(Path(model).absolute())
    return replace(config, data=data, model=model)


def _let_go() -> None:
    """Give back the memory in which the texts were read and cut into tokens: 80 MB."""
    load_tokenizer.cache_clear()
    pyarrow.default_memory_pool().release_unused()
    give_back_memory()


def _settled(config: StudyConfig) -> Recipe:
    """Return the recipe with its device and compute type: the same for all trials, also resumed.

    The nodes of a cluster are not this machine: there, each worker takes its fastest device.
    """
    recipe = config.recipe
    device = recipe.device
    if config.address is None:
        device = pick_device(device).type
    return replace(recipe, device=device, cpu_dtype=recipe.cpu_dtype or fastest_cpu_dtype())


def _formats(config: StudyConfig) -> Formats:
    # On a cluster whose devices are not known, a backend is for the device that it needs.
    needed = next(iter(BACKENDS[config.quant_backend]))
    return Formats(
        backend=config.quant_backend,
        device=config.recipe.device or needed,
        four_bit=config.four_bit,
        group_sizes=config.group_sizes,
    )


def _execution_plan(
    config: StudyConfig, inventory: Inventory, task: EncodedTask, space: Space
) -> tuple[str, BatchPlan]:
    """Return whether trials compute with dequantised copies, and how batches are cut.

    Copies save a twentieth to an eighth of a step on a CPU. They are made there unless the user
    says otherwise, or a batch would have to be cut for them.
    """
    execution = config.recipe.execution
    if execution is not None:
        return execution, _batch_plan(config, inventory, task, space, execution)
    if config.address is None and config.recipe.device == "cpu":
        with suppress(ValueError):
            plan = _batch_plan(config, inventory, task, space, "dequantized")
            if plan.accumulation_steps == (config.recipe.accumulation_steps or 1):
                return "dequantized", plan
    return "packed", _batch_plan(config, inventory, task, space, "packed")


def _batch_plan(
    config: StudyConfig, inventory: Inventory, task: EncodedTask, space: Space, execution: str
) -> BatchPlan:
    """Return how batches are cut, for the allocation that takes the most memory.

    A number of micro-batches that the user gave stays. The memory of a cluster's nodes is not
    known here: there, only single tensors are limited.
    """
    recipe, device = config.recipe, config.recipe.device or "cpu"
    limit = None
    if config.address is None and recipe.accumulation_steps is None:
        limit = memory_limit_bytes(device, usable_cores())
    if limit is not None and device == "cpu":
        limit -= base_bytes(inventory)
    if limit is not None:
        _check_build(space, limit)
    given = recipe.accumulation_steps or 1
    plan = plan_batch(
        inventory,
        task.kind,
        len(task.label_names),
        space.largest(),
        recipe.batch_size // given,
        int(task.train.lengths.max()),
        pick_compute_dtype(torch.device(device), recipe.cpu_dtype),
        limit,
        tensor_limit_bytes("mps" if config.mps_safe else device),
        dropout=recipe.dropout,
        dequantised=execution == "dequantized",
        device_type=device,
    )
    if given == 1:
        return plan
    steps = plan.accumulation_steps * given
    return replace(
        plan,
        accumulation_steps=steps,
        reason=f"micro-batch {plan.micro_batch} x {steps}, as --accumulation-steps asks for",
    )


def _trials_per_gpu(
    config: StudyConfig, inventory: Inventory, task: EncodedTask, batch: BatchPlan
) -> int:
    """Return how many trials share a GPU. The cards of a cluster are not known here."""
    if config.trials_per_gpu is not None:
        return config.trials_per_gpu
    if config.address is not None or config.recipe.device != "cuda":
        return 1
    tokens = config.recipe.batch_size * float(task.train.lengths.mean())
    return trials_per_gpu(inventory, batch, tokens)


def _check_build(space: Space, limit: int) -> None:
    """Check that each kind of allocation can be built: to quantise takes more than to copy."""
    tried = space.points.values() or [space.nearest_uniform(bits, 0) for bits in ALL_BITS]
    needed = max(build_bytes(space.inventory, allocation) for allocation in tried)
    if needed > limit:
        raise ValueError(
            f"`--model` must leave memory to quantise its largest matrix, got a peak of "
            f"{format_bytes(needed)} of {format_bytes(limit)} for each of {usable_cores()} workers "
            "while it is built. Give fewer cores (taskset -c 0), or use a smaller model."
        )


def _check_text(space: Space, recipe: Recipe, task: EncodedTask) -> None:
    """Check that what is made from data has enough of it."""
    stored = {form for name in space.inventory.names for form in space.formats_of(name)}
    if recipe.lora_init != "default" or any(form.method == "gptq" for form in stored):
        check_calibration(task.train)


def _check_adalora(space: Space, recipe: Recipe) -> None:
    adaptive = [name for name, point in space.points.items() if point.final_rank is not None]
    if not adaptive:
        return
    if recipe.lora_init != "default":
        raise ValueError(
            f"`--lora-init` must be default with AdaLoRA, got {recipe.lora_init!r} for "
            f"{adaptive[0]}. Leave it out, or use another --space."
        )
    if recipe.max_steps < MIN_STEPS:
        raise ValueError(
            f"`--max-steps` must be at least {MIN_STEPS} with AdaLoRA, got {recipe.max_steps} for "
            f"{adaptive[0]}. Raise it, or use another --space."
        )
