"""Says what cards of several sizes could run of a study, from its model's configuration alone."""

from collections.abc import Sequence
from dataclasses import replace

from rich.table import Table

from alrq_core.memory.batch_plan import DoesNotFitError
from alrq_core.memory.host import Host
from search_spaces.costs import memory_bytes
from search_spaces.narrow import target_bits
from search_spaces.spaces import Space
from tune.study.fitting import fitted
from tune.study.prepare import Read, space_of

GIGABYTES = (8, 16, 24, 80)


def cards_table(found: Read) -> Table:
    """Return what CUDA cards that compute in bfloat16 could run, a row a size."""
    table = Table(title="On one CUDA card of", title_justify="left")
    for name in ("memory", "reference", "bits", "micro-batch", "deployed, GB", "peak, GB"):
        table.add_column(name, justify="right", overflow="fold")
    for gigabytes in GIGABYTES:
        table.add_row(f"{gigabytes} GB", *_row(found, gigabytes * 10**9))
    return table


def _row(found: Read, size_bytes: int) -> tuple[str, ...]:
    inventory, recipe = found.inventory, replace(found.config.recipe, device="cuda")
    config = replace(found.config, recipe=recipe, device_memory_bytes=None)
    card = Host(device="cuda", name="", memory_bytes=size_bytes, cores=1, compute_dtype="bfloat16")
    try:
        fitting = fitted(config, inventory, found.task, space_of(config, inventory), card)
    except DoesNotFitError as error:
        rule = str(error).partition(". ")[0]
        return "does not fit", "", "", "", rule
    corners = (fitting.space.smallest(), fitting.space.largest())
    deployed = " to ".join(f"{memory_bytes(at, inventory) / 1e9:.2f}" for at in corners)
    bits = ", ".join(map(str, _bits(fitting.space)))
    batch = fitting.batch
    return (
        fitting.reference or "nothing",
        bits,
        f"{batch.micro_batch} of {batch.micro_batch * batch.accumulation_steps}"
        f"{', checkpointed' if fitting.checkpointing else ''}",
        deployed,
        f"{batch.memory.peak_bytes / 1e9:.2f}",
    )


def _bits(space: Space) -> Sequence[int]:
    """Return the bits that target modules may have."""
    if not space.fixed:
        return target_bits(space)
    names = [target.name for target in space.inventory.targets]
    return sorted({point.choices[name].bits for point in space.points.values() for name in names})
