"""How many training steps a second a GPU does for trials that share it.

    python -m benchmarks.gpu_trials --trials 1 2 4 8 16

Trials of MiniLM on Rotten Tomatoes, uniform 2 bits at rank 8, each in a process of its own with one
thread, as a study runs them; they start together. Prints a Markdown table.
"""

import argparse
import time
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from alrq_core.context import load_context
from alrq_core.memory.machine import peak_memory_bytes, pick_device
from alrq_core.recipe import Recipe
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice

WARM = 10


def train(steps: int, ready: Any, found: Any) -> None:
    """Train one trial, and report how long its steps took from the common start."""
    torch.set_num_threads(1)
    context = load_context("minilm", "rotten_tomatoes", Recipe())
    choices = {m.name: Choice(2, 8, "gptq", 64) for m in context.inventory.targets}
    choices |= {m.name: Choice(4, 0, "gptq", 64) for m in context.inventory.embeddings}
    ordered = Allocation({name: choices[name] for name in context.inventory.names})
    run = TrialRun(context, ordered, seed=0)
    with run.randomness:
        float(run.training.train_to(WARM)[-1])
        ready.wait()
        started = time.perf_counter()
        float(run.training.train_to(WARM + steps)[-1])
    found.put((time.perf_counter() - started, peak_memory_bytes(pick_device())))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    spawn = get_context("spawn")
    print("| trials | steps a second, all together | ms a step | memory of a trial, GB |")
    print("|---|---|---|---|")
    for count in given.trials:
        ready, found = spawn.Barrier(count), spawn.Queue()
        started = [
            spawn.Process(target=train, args=(given.steps, ready, found)) for _ in range(count)
        ]
        for process in started:
            process.start()
        results = [found.get() for _ in started]
        for process in started:
            process.join()
        seconds = np.array([result[0] for result in results])
        each = f"{1e3 * seconds.mean() / given.steps:.1f} | {results[0][1] / 1e9:.2f}"
        print(f"| {count} | {count * given.steps / seconds.max():.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
