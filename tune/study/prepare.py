"""Everything about a study that is checked and computed before Ray starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow

from alrq_core.adapters.adalora import MIN_STEPS
from alrq_core.data.encode import EncodedTask, epoch_batches
from alrq_core.data.parts import check_calibration
from alrq_core.data.tasks import check_task_name, load_task
from alrq_core.data.tokenise import encode_task
from alrq_core.export.llama_family import check_for_llama_cpp
from alrq_core.memory.batch_plan import BatchPlan
from alrq_core.memory.host import Host, common
from alrq_core.memory.machine import fastest_cpu_dtype, give_back_memory
from alrq_core.memory.sharing import trials_per_gpu
from alrq_core.models.finding import PACKAGED_MODELS, resolve_model
from alrq_core.models.loading import inspect_model, load_tokenizer
from alrq_core.recipe import Recipe
from search_spaces.allocation import Allocation
from search_spaces.costs import format_bytes, memory_bytes
from search_spaces.fixed import fixed_allocation
from search_spaces.formats import Formats
from search_spaces.inventory import Inventory
from search_spaces.narrow import narrowed, target_bits
from search_spaces.spaces import Space, make_space
from search_spaces.ties import tied
from tune.study.config import EXACT_MATCH, NO_REFERENCE, StudyConfig
from tune.study.digests import Digests, digests_of
from tune.study.fitting import Fitting, fitted
from tune.study.schedulers import rungs_of


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study that can start.

    Attributes:
        config: With the recipe's steps computed.
        inventory: The model's target modules.
        task: In tokens.
        fitting: What of it fits in memory.
        trials_per_gpu: Trials that share a GPU.
        digests: Of the texts and of the model's files.
        hosts: What the machines that train have; this one alone, unless a cluster was asked.
    """

    config: StudyConfig
    inventory: Inventory
    task: EncodedTask
    fitting: Fitting
    trials_per_gpu: int
    digests: Digests
    hosts: Sequence[Host]

    @property
    def space(self) -> Space:
        """What is searched."""
        return self.fitting.space

    @property
    def reference(self) -> str | None:
        """The fixed configuration that trials start from; None to start from nothing."""
        return self.fitting.reference

    @property
    def batch(self) -> BatchPlan:
        """How a batch is cut for memory."""
        return self.fitting.batch

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


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a study is about, before it is known what of it fits in memory.

    Attributes:
        config: With whole paths, the device, and the recipe's steps.
        inventory, task, digests, hosts: As in `Prepared`.
        space: What was asked for.
    """

    config: StudyConfig
    inventory: Inventory
    task: EncodedTask
    digests: Digests
    space: Space
    hosts: Sequence[Host]


def prepare(config: StudyConfig) -> Prepared:
    """Return a study that can start, or say what can't work: see `read` and `fit`."""
    return fit(read(config))


def read(config: StudyConfig, weights: bool = True, hosts: Sequence[Host] | None = None) -> Read:
    """Read model and data, and check that the space and its limit make sense.

    Args:
        config: As given.
        weights: Whether the model's weights must be here; to plan, its configuration is enough.
        hosts: The machines that shall train, with one type of device; None for this one.

    Raises:
        ValueError: Something the user gave can't work. Nothing was written.
    """
    check_task_name(config.task)
    folder = resolve_model(config.model, weights)
    data = Path(config.data) if config.data is not None else None
    if data is not None and not data.exists():
        raise ValueError(f"`--data` must exist, got {config.data!r}. Check the path.")
    recipe = config.recipe
    hosts = hosts or (Host.here(recipe.device, recipe.cpu_dtype),)
    config = replace(_with_places(config), recipe=_settled(recipe, common(hosts)))
    task = load_task(config.task, data, config.columns)
    inventory = inspect_model(
        config.model, task.kind, len(task.label_names), config.recipe.max_length, weights
    )
    # Settled, as all that later releases may choose otherwise.
    config = replace(config, model=inventory.model, tie=config.ties)
    if config.quant_backend == "gguf":
        check_for_llama_cpp(folder, task.kind)
    digests = digests_of(task, folder)
    encoded = encode_task(task, folder, config.recipe.max_length)
    if config.metric == EXACT_MATCH and encoded.cut_answers:
        raise ValueError(
            f"`--max-length` must hold every answer whole for --metric {EXACT_MATCH}, got "
            f"{config.recipe.max_length}, which cuts {encoded.cut_answers} of validation and test. "
            "Raise it, or leave longer conversations out."
        )
    encoded = replace(encoded, exact_match=config.metric == EXACT_MATCH)
    if config.eval_sequences is not None:
        encoded = encoded.scored_on(config.eval_sequences)
    if config.epochs is not None:
        steps = math.ceil(
            config.epochs * epoch_batches(len(encoded.train), config.recipe.batch_size)
        )
        config = replace(config, recipe=replace(config.recipe, max_steps=max(1, steps)))
    space = space_of(config, inventory)
    _check_adalora(space, config.recipe)
    _check_text(space, config.recipe, encoded)
    smallest = memory_bytes(space.smallest(), inventory)
    if config.max_memory_bytes is not None and config.max_memory_bytes < smallest:
        raise ValueError(
            f"`--max-memory` must be at least {format_bytes(math.ceil(smallest / 1e4) * 1e4)}, the "
            f"smallest allocation of {config.space} with {config.model}, got "
            f"{format_bytes(config.max_memory_bytes)}. Raise it, or use a smaller model."
        )
    return Read(
        config=config,
        inventory=inventory,
        task=encoded,
        digests=digests,
        space=space,
        hosts=hosts,
    )


def fit(found: Read) -> Prepared:
    """Return a study that fits in the memory that all its hosts have.

    Raises:
        DoesNotFitError: Nothing of it does.
        ValueError: What trials start from can't run here.
    """
    config, inventory, encoded, space = found.config, found.inventory, found.task, found.space
    host = common(found.hosts)
    fitting = fitted(config, inventory, encoded, space, host)
    steps = fitting.batch.accumulation_steps
    recipe = replace(
        config.recipe,
        accumulation_steps=steps,
        execution=fitting.execution,
        gradient_checkpointing=fitting.checkpointing,
        prepared_tokens=fitting.preparing.tokens,
        held_bytes=fitting.preparing.held_bytes,
    )
    _let_go()
    # As settled now, so that a study that goes on in other memory stays the same.
    bits = config.bits if fitting.space is space else target_bits(fitting.space)
    reference = fitting.reference or NO_REFERENCE
    return Prepared(
        config=replace(
            config, recipe=recipe, reference=reference, comparator=fitting.comparator, bits=bits
        ),
        inventory=inventory,
        task=encoded,
        fitting=fitting,
        trials_per_gpu=_trials_per_gpu(config, inventory, encoded, fitting.batch, host),
        digests=found.digests,
        hosts=found.hosts,
    )


def space_of(config: StudyConfig, inventory: Inventory) -> Space:
    """Return what a study searches, before it is known what fits in memory."""
    formats = Formats(
        backend=config.quant_backend,
        device=config.recipe.device or "cpu",
        four_bit=config.four_bit,
        group_sizes=config.group_sizes,
    )
    space = narrowed(make_space(config.space, inventory, formats), config.bits, config.ranks)
    return tied(space) if config.ties else space


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


def _settled(recipe: Recipe, host: Host) -> Recipe:
    """Return the recipe with its device and compute type: the same for all trials, also resumed."""
    on_cpu = host.compute_dtype if host.device == "cpu" else fastest_cpu_dtype()
    return replace(recipe, device=host.device, cpu_dtype=recipe.cpu_dtype or on_cpu)


def _trials_per_gpu(
    config: StudyConfig, inventory: Inventory, task: EncodedTask, batch: BatchPlan, host: Host
) -> int:
    """Return how many trials share a GPU."""
    if config.trials_per_gpu is not None:
        return config.trials_per_gpu
    if host.device != "cuda":
        return 1
    tokens = config.recipe.batch_size * float(task.train.lengths.mean())
    return trials_per_gpu(inventory, batch, tokens, host)


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
