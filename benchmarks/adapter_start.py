"""What the start of the adapters is worth: default, residual and EVA, seed by seed.

    python benchmarks/adapter_start.py --bits 2 --seeds 3

Prints a Markdown table of the loss over validation and test sentences, the difference to the
default start over the same seeds with a 95 % interval (Student's t over seeds), the accuracy over
the test sentences, and the bytes of the deployed model.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from scipy.stats import t as student

from alrq_core.context import load_context
from alrq_core.memory.cores import usable_cores
from alrq_core.recipe import LORA_INITS, Recipe
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import format_bytes


def measure(job: tuple[str, int, int, int, int, int]) -> tuple[str, int, float, float, int]:
    """Train once; return start, seed, loss over validation and test, test accuracy, and bytes."""
    lora_init, seed, bits, embedding_bits, rank, steps = job
    torch.set_num_threads(1)
    recipe = Recipe(max_steps=steps, lora_init=lora_init)
    context = load_context("minilm", "rotten_tomatoes", recipe)
    choices = {target.name: Choice(bits, rank) for target in context.inventory.targets}
    choices |= {module.name: Choice(embedding_bits, 0) for module in context.inventory.embeddings}
    allocation = Allocation({name: choices[name] for name in context.inventory.names})
    run = TrialRun(context, allocation, seed)
    report = run.advance(steps)
    test = run.test()
    sizes = np.array([report.sequences, len(test.scores)])
    loss = float(np.average([report.loss, test.loss], weights=sizes))
    return lora_init, seed, loss, test.value, run.receipt.memory_bytes


def main() -> None:
    """Measure every start and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for flag, default in (
        ("--bits", 2),
        ("--embedding-bits", 16),
        ("--rank", 8),
        ("--seeds", 3),
        ("--max-steps", 200),
    ):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--starts", nargs="+", default=LORA_INITS, help="default must be one")
    given = parser.parse_args()
    jobs = [
        (lora_init, seed, given.bits, given.embedding_bits, given.rank, given.max_steps)
        for seed in range(given.seeds)
        for lora_init in given.starts
    ]
    results: dict[tuple[str, int], tuple[float, float]] = {}
    sizes = set()
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        for name, seed, loss, accuracy, size in pool.map(measure, jobs):
            results[name, seed] = loss, accuracy
            sizes.add(format_bytes(size))
            print(f"{name}, seed {seed}: {loss:.4f}, {100 * accuracy:.2f} %", flush=True)
    print(
        f"MiniLM, Rotten Tomatoes, {given.bits} bits (embedding {given.embedding_bits}), rank "
        f"{given.rank}, {given.max_steps} steps, {', '.join(sizes)}\n"
    )
    print("| start | loss by seed | mean loss | test accuracy | loss against default |")
    print("|---|---|---|---|---|")
    for name in given.starts:
        losses, accuracies = np.array([results[name, seed] for seed in range(given.seeds)]).T
        gap = losses - np.array([results["default", seed][0] for seed in range(given.seeds)])
        half = student.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / np.sqrt(len(gap))
        difference = "-" if name == "default" else f"{gap.mean():+.4f} +- {half:.4f}"
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        print(
            f"| {name} | {each} | {losses.mean():.4f} | {100 * accuracies.mean():.2f} % "
            f"| {difference} |"
        )


if __name__ == "__main__":
    main()
