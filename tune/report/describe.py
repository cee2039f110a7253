"""Says what a study would do, before it does anything."""

from collections import Counter

from alrq_core.files import unwritable
from alrq_core.memory.host import common
from alrq_core.memory.machine import found_devices
from alrq_core.weights.cache import cache_folder
from search_spaces.allocation import Allocation
from search_spaces.costs import average_bits, average_rank, format_bytes, memory_bytes
from search_spaces.inventory import Inventory
from search_spaces.spaces import Space
from tune.report.recommendation import too_few_sequences
from tune.study.confirming import CONFIRM_SEEDS, start_seeds
from tune.study.digests import combined
from tune.study.prepare import Prepared


def describe_plan(prepared: Prepared) -> str:
    """Return what a study would do, for people."""
    config, space, inventory = prepared.config, prepared.space, prepared.inventory
    trials = len(space.points) or config.budget
    task = prepared.task
    sizes = f"{len(task.train)} / {len(task.validation)} / {len(task.test)}"
    size = f"{len(space.points)}" if space.fixed else f"10^{space.log10_size:.1f}"
    lines = [
        f"space            {space.name}: {size} allocation{'' if size == '1' else 's'} "
        f"over {len(inventory.targets)} target modules of {config.model}",
        f"smallest         {_corner(space.smallest(), inventory)}",
        f"largest          {_corner(space.largest(), inventory)}",
        f"task             {task.name}: {sizes} train / validation / test sequences; {task.splits}",
        f"digests          data {combined(prepared.digests.data)}, model "
        f"{combined(prepared.digests.model)}",
        f"reference        {_reference(prepared)}",
        f"trials           {trials}, reporting at steps {', '.join(map(str, prepared.rungs))}; "
        f"searcher {config.searcher}, scheduler {config.scheduler}",
        f"device           {_devices(prepared)}, {config.recipe.execution}{_shared(prepared)}",
        f"batch            {config.recipe.batch_size} sequences a step; {prepared.batch.reason}"
        f"{'; with gradient checkpointing' if config.recipe.gradient_checkpointing else ''}",
        f"storage          {space.formats.describe()}",
        f"confirmation     {_seeds(prepared)} fresh seeds a finalist, once on the test split",
        f"results          {config.folder}",
    ]
    lines += [f"without          {name}: {why}" for name, why in prepared.fitting.without.items()]
    if config.ties:
        lines.append(f"tied             {_ties(space)}")
    few = too_few_sequences(len(task.test), config.margin, task.metric)
    if few is not None:
        lines.append(f"without          a recommendation: {few}")
    reason = unwritable(cache_folder())
    if reason is not None:
        lines.append(
            f"without          a cache: {cache_folder()} can't be written ({reason}), so each "
            "worker makes and holds its own weights. Set HF_HOME to a folder that can be"
        )
    if config.max_memory_bytes is not None:
        lines.insert(3, f"memory limit     {format_bytes(config.max_memory_bytes)}")
    return "\n".join(lines)


def _devices(prepared: Prepared) -> str:
    """Return where trials run: on this machine, or on which nodes of a cluster."""
    host = common(prepared.hosts)
    where = f"found here: {', '.join(found_devices())}"
    if prepared.config.address is not None:
        kinds = Counter(prepared.hosts)
        where = "; ".join(f"{count} x {node.describe()}" for node, count in kinds.items())
    return f"{host.device} ({where}), computing in {host.compute_dtype}"


def _reference(prepared: Prepared) -> str:
    recipe = prepared.config.recipe
    if prepared.reference is None:
        return f"none: each trial learns the task from nothing, in {recipe.max_steps} steps"
    return (
        f"{prepared.reference}, trained {recipe.max_steps} steps for each seed; trials start where "
        f"it ended and are trained {recipe.tuning.max_steps} steps towards its answers"
    )


def _seeds(prepared: Prepared) -> int:
    return CONFIRM_SEEDS if prepared.reference is None else start_seeds(prepared.config.budget)


def _ties(space: Space) -> str:
    if not space.groups:
        return "nothing: no two modules of this model are fused by engines"
    joined = ", ".join(name.rpartition(".")[2] for name in space.groups[0])
    return f"{len(space.groups)} groups of modules, such as {joined} of a block"


def _corner(allocation: Allocation, inventory: Inventory) -> str:
    bits = average_bits(allocation, inventory)
    size = format_bytes(memory_bytes(allocation, inventory))
    return f"{size}, {bits:.2f} average bits, average rank {average_rank(allocation, inventory):g}"


def _shared(prepared: Prepared) -> str:
    if "cuda" not in (prepared.config.recipe.device, prepared.space.formats.device):
        return ""
    return f", {prepared.trials_per_gpu} at a time on a GPU"
