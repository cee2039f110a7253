"""Tells how many trials one GPU takes at a time."""

from alrq_core.memory.batch_plan import BatchPlan
from alrq_core.memory.cores import MOST_TRIALS
from alrq_core.memory.host import CONTEXT_BYTES, USED_PART, Host
from search_spaces.inventory import Inventory

# What it takes a processor to start what one module does in a training step, forward and backward:
# on the host of an H100 112 modules of 1.04 billion parameters took 114 to 156 ms for 512 tokens,
# whatever the bits, and MiniLM's 36 modules 36 to 55 ms.
START_SECONDS = 1e-3
# Of matrix products in such steps, a streaming multiprocessor.
OPERATIONS_PER_SECOND = 1e12


def trials_per_gpu(inventory: Inventory, batch: BatchPlan, step_tokens: float, host: Host) -> int:
    """Return how many trials fit on a GPU of a host and find time on it.

    A small model leaves a card idle while the processor starts its kernels. Other processes, one a
    core, fill these gaps until the card has no more time or memory.

    Args:
        inventory: Of the model.
        batch: As planned for the largest allocation.
        step_tokens: Tokens of an optimiser step.
        host: With a CUDA card whose free memory is known.
    """
    assert host.memory_bytes is not None
    held = CONTEXT_BYTES + batch.memory.peak_bytes
    fit = int(USED_PART * host.memory_bytes / held)
    weights = sum(target.weights for target in inventory.targets)
    # Forward, and backward to the inputs: frozen weights have no gradients.
    work = 4 * weights * step_tokens / (OPERATIONS_PER_SECOND * host.multiprocessors)
    idle = int(START_SECONDS * len(inventory.targets) / work)
    return max(1, min(host.cores, MOST_TRIALS, fit, idle))
