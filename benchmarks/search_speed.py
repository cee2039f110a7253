"""What the search itself costs on models with many modules.

    python -m benchmarks.search_speed

Random Llama and GPT-2 models that are narrow and deep, and an inventory of 500 modules. Per model:
the visibility table beside the training of its reference; a proposal after so many trials, with a
divergence made of the table and noise; the first one of a resumed study; and a frontier of the
solver. A limit of 1.2 times the smallest allocation is set, and of a proposal the realised bytes
are compared to it.
One thread; the least and the median of repeated times, since other work only ever adds to them.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from alrq_core.context import TrialContext
from alrq_core.recipe import Recipe
from alrq_core.sensitivity.shifts import visibility_table
from alrq_core.sensitivity.table import VisibilityTable, flat_table
from alrq_core.trial import TrialRun
from benchmarks.growth import WIDTH, WINDOW_TOKENS, WORDS, save_llama, save_model, windows_context
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.fixed import fixed_allocation
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import Space, make_space
from tune.search.budget import BudgetSolver, space_choices
from tune.search.thompson import ThompsonSearch
from tune.search.tried import Tried
from tune.study.schedulers import rungs_of

STEPS = 100
RUNGS = rungs_of(Recipe(max_steps=STEPS), "search", started=True)
LIMIT = 1.2
NOISE = 0.1
FRONTIER = 24


def main() -> None:
    """Measure every model and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, nargs="*", default=[50, 1000])
    parser.add_argument("--repeats", type=int, default=9)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | modules | table / full trial | trials | proposal, ms | first when resumed, ms | "
        f"{FRONTIER} sizes solved, ms | realised / limit |\n|{'-|' * 8}"
    )
    with TemporaryDirectory() as folder:
        for name, save, blocks in (("Llama", save_llama, 32), ("GPT-2", save_gpt2, 56)):
            save(Path(folder) / name, blocks)
            context = windows_context(Path(folder) / name, STEPS)
            space = make_space("joint", context.inventory)
            table, share = measured(context, space)
            for trials in flags.trials:
                print_row(name, space, table, trials, flags.repeats, f"{share:.2f}", context)
    space = make_space("joint", made_up(500))
    for trials in flags.trials:
        print_row("made up", space, flat_table(space), trials, flags.repeats, "-", None)
    print(f"\nload averages {[round(value, 1) for value in os.getloadavg()]}")


def measured(context: TrialContext, space: Space) -> tuple[VisibilityTable, float]:
    """Return the table, and how long it takes beside the training of its reference."""
    started = time.perf_counter()
    run = TrialRun(context, fixed_allocation("B-FP", space.inventory, space.formats), 0)
    error = run.advance(STEPS).loss_standard_error
    between = time.perf_counter()
    table = visibility_table(context, space, run.reference(), error)
    return table, (time.perf_counter() - between) / (between - started)


def print_row(
    name: str,
    space: Space,
    table: VisibilityTable,
    count: int,
    repeats: int,
    share: str,
    context: TrialContext | None,
) -> None:
    """Measure proposals after `count` trials, each after one more."""
    limit = int(LIMIT * memory_bytes(space.smallest(), space.inventory))
    trials = past_trials(space, table, count + repeats)
    ours, proposed = ThompsonSearch(space, table, RUNGS, limit, seed=0), Allocation({})

    def propose(told: Sequence[Tried], number: int) -> None:
        nonlocal proposed
        for trial in told:
            ours.tell(trial)
        proposed = ours.propose(number)

    first = milliseconds(lambda: propose(trials[:count], count))
    later = [
        milliseconds(partial(propose, trials[number - 1 : number], number))
        for number in range(count + 1, count + repeats + 1)
    ]
    solver = BudgetSolver(space.inventory, space_choices(space))
    values = solver.values(table.damage)
    sizes = np.geomspace(solver.smallest_bytes, 2 * solver.smallest_bytes, FRONTIER).astype(int)
    solved = [milliseconds(lambda: solver.frontier(values, sizes)) for _ in range(repeats)]
    realised = memory_bytes(proposed, space.inventory)
    if context is not None:
        realised = TrialRun(context, proposed, 0).receipt.memory_bytes
    print(
        f"| {name} | {len(space.inventory.modules)} | {share} | {count} | {least(later)} "
        f"| {first:.0f} | {least(solved)} | {realised / limit:.4f} |",
        flush=True,
    )


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def least(times: Sequence[float]) -> str:
    """Return the least and the median."""
    return f"{min(times):.0f} ({median(times):.0f})"


def past_trials(space: Space, table: VisibilityTable, count: int) -> list[Tried]:
    """Return trials of random allocations that ended at any rung."""
    generator = random.Random(0)
    drawn = [space.draw_all(generator) for _ in range(count)]
    found = []
    for number, allocation in enumerate(drawn):
        step = generator.choice(RUNGS)
        found.append(
            Tried(
                id=str(number),
                allocation=allocation,
                memory_bytes=memory_bytes(allocation, space.inventory),
                ended="completed" if step == RUNGS[-1] else "stopped",
                step=step,
                objective=table.predict(allocation) * math.exp(generator.gauss(0, NOISE)),
            )
        )
    return found


def save_gpt2(folder: Path, blocks: int) -> None:
    """Write a random model of four modules a block."""
    torch.manual_seed(0)
    sizes = {"n_embd": WIDTH, "n_inner": 2 * WIDTH, "n_head": 2, "n_positions": 2 * WINDOW_TOKENS}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=WORDS, n_layer=blocks, **sizes, **special)
    save_model(GPT2LMHeadModel(config), folder)


def made_up(modules: int) -> Inventory:
    """Return a model of five modules a block, of the shapes of a small encoder."""
    shapes = ((768, 768), (768, 768), (3072, 768), (768, 3072), (768, 768))
    targets = tuple(
        TargetModule(
            name=f"blocks.{number // 5}.m{number % 5}",
            out_features=shapes[number % 5][0],
            in_features=shapes[number % 5][1],
            part="attention",
            block=number // 5,
        )
        for number in range(modules)
    )
    return Inventory(model="made-up", targets=targets, other_parameters=100)


if __name__ == "__main__":
    main()
