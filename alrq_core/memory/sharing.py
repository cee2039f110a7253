"""Tells how many trials one GPU takes at a time."""

import torch

from alrq_core.memory.batch_plan import CARDS, CONTEXT_BYTES, USED_PART, BatchPlan
from alrq_core.memory.cores import MOST_TRIALS, usable_cores
from search_spaces.inventory import Inventory

# What it takes a processor to start what one module does in a training step, forward and backward:
# on the host of an H100 112 modules of 1.04 billion parameters took 114 to 156 ms for 512 tokens,
# whatever the bits, and MiniLM's 36 modules 36 to 55 ms.
START_SECONDS = 1e-3
# Of matrix products in such steps, a streaming multiprocessor.
OPERATIONS_PER_SECOND = 1e12


def trials_per_gpu(inventory: Inventory, batch: BatchPlan, step_tokens: float) -> int:
    """Return how many trials fit on this machine's GPU and find time on it.

    A small model leaves a card idle while the processor starts its kernels. Other processes, one a
    core, fill these gaps until the card has no more time or memory.

    Args:
        inventory: Of the model.
        batch: As planned for the largest allocation.
        step_tokens: Tokens of an optimiser step.
    """
    card = torch.cuda.get_device_properties(0)
    held = CONTEXT_BYTES + batch.memory.peak_bytes
    fit = int(USED_PART * CARDS["cuda"]() / held)
    weights = sum(target.weights for target in inventory.targets)
    # Forward, and backward to the inputs: frozen weights have no gradients.
    work = 4 * weights * step_tokens / (OPERATIONS_PER_SECOND * card.multi_processor_count)
    idle = int(START_SECONDS * len(inventory.targets) / work)
    return max(1, min(usable_cores(), MOST_TRIALS, fit, idle))
