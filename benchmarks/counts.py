"""Counts what trials on one worker load, quantise, tokenise and copy, and fails where it is more
than once each.

    python benchmarks/throughput.py --short
"""

import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from alrq_core import context
from alrq_core.context import TrialContext, load_context
from alrq_core.recipe import Recipe
from alrq_core.trial import TrialRun
from alrq_core.weights import cache
from search_spaces.allocation import Allocation
from search_spaces.spaces import make_space

TRIALS, STEPS = 4, 2


def check_counts() -> None:
    """Run a few trials twice and check what they cost.

    Raises:
        SystemExit: Something was done more often than needed.
    """
    counts = SimpleNamespace(loads=0, tokenised=0, quantised=0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(patch.object(context, "cache_folder", lambda: Path(folder)))
        for module, name, counter in (
            (context, "load_model", "loads"),
            (context, "encode_task", "tokenised"),
            (cache, "quantise", "quantised"),
        ):
            stack.enter_context(patch.object(module, name, counted(module, name, counter, counts)))
        first, formats, copied = run_worker()
        check(counts.loads == 1, f"{TRIALS} trials loaded the model {counts.loads} time")
        check(counts.tokenised == 1, f"and tokenised {counts.tokenised} time")
        check(
            counts.quantised == formats,
            f"{counts.quantised} of {formats} different packed matrices were quantised",
        )
        check(first.packed.files.read == formats, "each was read once")
        again, _, copied_again = run_worker()
        check(counts.quantised == formats, "another worker quantised nothing")
        check(again.packed.files.read == formats, "and read each once")
    allowed = 4 * first.inventory.other_parameters
    for number, (found, trained) in enumerate(copied + copied_again):
        check(
            found <= allowed + 4 * trained,
            f"trial {number + 1}: {found / 1e6:.2f} MB are its own, {trained * 4 / 1e6:.2f} of it "
            "trained",
        )


def run_worker() -> tuple[TrialContext, int, list[tuple[int, int]]]:
    """Run trials as one worker does.

    Returns:
        What they share; the number of different packed matrices; for each trial the bytes that no
        file and no other trial shares, and its trained parameters.
    """
    recipe = Recipe(max_steps=STEPS, batch_size=4, cpu_dtype="float32", device="cpu")
    shared = load_context("minilm", "rotten_tomatoes", recipe)
    space = make_space("joint", shared.inventory)
    seen, copied = set(), []
    for number in range(TRIALS):
        generator = random.Random(number)
        names = space.inventory.names
        allocation = Allocation({name: space.draw(name, generator) for name in names})
        seen |= {(name, choice.format) for name, choice in allocation.choices.items()}
        run = TrialRun(shared, allocation, seed=0)
        run.advance(1)
        copied.append(own_bytes(shared, run))
    return shared, len(seen), copied


def own_bytes(shared: TrialContext, run: TrialRun) -> tuple[int, int]:
    """Return the bytes of a trial's parameters that it shares with nothing, and how many train."""
    mapped = [tensor for tensors in shared.packed._known.values() for tensor in tensors.values()]
    others = {tensor.data_ptr() for tensor in [*mapped, *shared.base.parameters()]}
    own = {p.data_ptr(): p for p in run.model.parameters() if p.data_ptr() not in others}
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    return sum(p.nbytes for p in own.values()), trained


def counted(module: object, name: str, counter: str, counts: SimpleNamespace) -> object:
    """Return the function with a count of its calls."""
    original = getattr(module, name)

    def call(*args: object, **kwargs: object) -> object:
        setattr(counts, counter, getattr(counts, counter) + 1)
        return original(*args, **kwargs)

    return call


def check(condition: bool, what: str) -> None:
    """Print what was checked, or end with it."""
    if not condition:
        sys.exit(f"check failed: {what}")
    print(f"ok: {what}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_counts()
