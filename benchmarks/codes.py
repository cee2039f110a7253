"""What each way of making codes loses: of modules' outputs, of the loss, and after training.

    python -m benchmarks.codes --train 2 3 4 8 16 --seeds 3
    python -m benchmarks.codes --model smollm2 --task wikitext2 --data DIR --max-length 256
        --batch-size 4 --sequences 24 --max-steps 20 --train 2 3 16

Prints a Markdown table. The output error is the mean over all target modules of
tr(E M E^T) / tr(W M W^T), with M from the text that codes were made for and from other text.
`rounded` is the format of `gptq` with the best scale of each group by the weights alone. Embeddings
have 16 bits. The loss without training is that of a language model on the test split; the trained
one is over validation and test sequences, with a 95 % interval (Student's t over seeds), and beside
it the difference to 16 bits, seed by seed.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from alrq_core.context import TrialContext, load_context
from alrq_core.data.encode import collate
from alrq_core.data.moments import second_moments
from alrq_core.memory.cores import usable_cores
from alrq_core.memory.machine import pick_device
from alrq_core.recipe import Recipe
from alrq_core.scoring import Scorer
from alrq_core.trial import TrialRun
from alrq_core.weights.cache import PackedCache, cache_folder
from alrq_core.weights.packing import pack
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import average_bits
from search_spaces.formats import Format

RANK = 8
OTHER_TOKENS = 30_000
PLAIN, ROUNDED = "plain", "rounded"
BNB = {8: "int8", 4: "nf4-double"}
Job = tuple[argparse.Namespace, str, int, int]


def formats(given: argparse.Namespace) -> list[tuple[str, Format]]:
    """Return each way and format that is compared."""
    group_size, found = given.group_size, [(PLAIN, Format(16, "plain", 0))]
    for bits in (8, 4, 3, 2):
        found += [(m, Format(bits, "gptq", group_size)) for m in ("gptq", ROUNDED)]
        found.append(("hqq", Format(bits, "hqq", group_size)))
        if bits in BNB:
            found.append((BNB[bits], Format(bits, BNB[bits], group_size if bits == 4 else 0)))
    return [(way, stored) for way, stored in found if way in (given.ways or (way,))]


@lru_cache(maxsize=1)
def load(model: str, task: str, data: str | None, sequences: int, recipe: Recipe) -> TrialContext:
    """Return the context of all measurements in this process."""
    context = load_context(model, task, recipe, Path(data) if data else None)
    return replace(context, task=context.task.scored_on(sequences)) if sequences else context


def context_of(given: argparse.Namespace, way: str) -> TrialContext:
    """Return the context in which codes are made in one way."""
    recipe = Recipe(
        max_steps=given.max_steps,
        max_length=given.max_length,
        batch_size=given.batch_size,
        device="cpu",
    )
    context = load(given.model, given.task, given.data, given.sequences, recipe)
    if way != ROUNDED:
        return context
    blind = replace(context)
    blind.__dict__["packed"] = PackedCache(cache_folder(), pick_device("cpu"), context.source)
    return blind


def allocation_of(context: TrialContext, stored: Format, rank: int = RANK) -> Allocation:
    """Return these codes everywhere, under adapters of one rank."""
    choice = Choice.of(stored, rank)
    choices = {target.name: choice for target in context.inventory.targets}
    choices |= {module.name: Choice(16, 0, "plain") for module in context.inventory.embeddings}
    return Allocation({name: choices[name] for name in context.inventory.names})


def other_moments(context: TrialContext) -> dict[str, Tensor]:
    """Return the moments on text that no codes are made for: the end of the train split."""
    train = context.task.train
    first = int(np.searchsorted(train.offsets, train.offsets[-1] - OTHER_TOKENS))
    rows = np.arange(max(first, len(train) // 2), len(train))
    batches = [
        collate(train, rows[i : i + 16], context.task.pad_id) for i in range(0, len(rows), 16)
    ]
    names = [target.name for target in context.inventory.targets]
    return second_moments(context.base, names, batches, pick_device("cpu"))


def output_errors(
    context: TrialContext, stored: Format, other: dict[str, Tensor]
) -> tuple[float, float]:
    """Return the mean relative output error on calibration text and on other text."""
    errors = []
    for target in context.inventory.targets:
        module = context.base.get_submodule(target.name)
        weight = module.get_parameter("weight").detach()
        packed: Any = pack(module, stored, torch.float32, context.packed.of(target.name))
        error = weight - packed.dequantised().float()
        errors.append(
            [
                float((error @ m * error).sum() / (weight @ m * weight).sum())
                for m in (context.moments[target.name], other[target.name])
            ]
        )
    known, unknown = np.mean(errors, axis=0)
    return float(known), float(unknown)


def untrained_loss(context: TrialContext, stored: Format) -> float | None:
    """Return the perplexity of a language model before any step."""
    if context.task.kind == "classification":
        return None
    run = TrialRun(context, allocation_of(context, stored), seed=0)
    args = (context.recipe, run.compute_dtype, pick_device("cpu"))
    return Scorer(run.model, context.task, *args).evaluate(context.task.test).perplexity


def train(job: Job) -> tuple[str, int, float, float]:
    """Return way, bits, loss over validation and test, and the test metric of one run."""
    given, way, bits, seed = job
    torch.set_num_threads(1)
    stored = next(s for w, s in formats(given) if w == way and s.bits == bits)
    context = context_of(given, way)
    run = TrialRun(context, allocation_of(context, stored), seed)
    report = run.advance(context.recipe.max_steps)
    test = run.test()
    loss = np.average([report.loss, test.loss], weights=[report.sequences, len(test.scores)])
    return way, bits, float(loss), test.value


def interval(values: list[float]) -> str:
    """Return the mean and its 95 % interval for people."""
    if len(values) < 2:
        return f"{np.mean(values):.4f}"
    shown = ", ".join(f"{value:.4f}" for value in values)
    return f"{np.mean(values):.4f} +- {half_interval(values):.4f} ({shown})"


def gaps(losses: list[float], others: list[float]) -> list[float]:
    """Return the differences seed by seed."""
    return [loss - other for loss, other in zip(losses, others, strict=True)]


def half_interval(values: list[float]) -> float:
    """Return half of the 95 % interval of the mean, by Student's t."""
    deviation = np.std(values, ddof=1) / len(values) ** 0.5
    return float(student.ppf(0.975, len(values) - 1) * deviation)


def parse() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", default="rotten_tomatoes")
    parser.add_argument("--data")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--ways", nargs="*", help="such as gptq hqq; all without it")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=0, help="scored of each split; 0 for all")
    parser.add_argument("--train", nargs="*", type=int, default=[], help="bits that are trained")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Measure and print the tables."""
    given = parse()
    torch.set_num_threads(1)
    print_untrained(given)
    ways = [(way, s.bits) for way, s in formats(given) if s.bits in given.train]
    jobs = [(given, way, bits, seed) for seed in range(given.seeds) for way, bits in ways]
    spawn = partial(ProcessPoolExecutor, mp_context=get_context("spawn"))
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with spawn(max_workers=usable_cores()) as pool:
        for way, bits, trained, value in pool.map(train, jobs):
            found.setdefault((way, bits), []).append((trained, value))
            print(f"{way} {bits}: {trained:.4f} {value:.4f}", flush=True)
    print("\n| codes | bits | trained loss | against 16 bits | test |\n|---|---|---|---|---|")
    exact = found.get((PLAIN, 16), [])
    for (way, bits), results in found.items():
        losses, values = (list(column) for column in zip(*results, strict=True))
        compared = exact and way != PLAIN
        gap = interval(gaps(losses, [loss for loss, _ in exact])) if compared else ""
        print(f"| {way} | {bits} | {interval(losses)} | {gap} | {interval(values)} |")


def print_untrained(given: argparse.Namespace) -> None:
    """Print what codes lose before any step."""
    context = context_of(given, PLAIN)
    other = other_moments(context)
    print("| codes | bits | stored | error | on other text | perplexity, untrained |", flush=True)
    print("|---|---|---|---|---|---|")
    for way, stored in formats(given):
        made = context_of(given, way)
        bits = average_bits(allocation_of(context, stored), context.inventory)
        known, unknown = output_errors(made, stored, other)
        loss = untrained_loss(made, stored)
        shown = "" if loss is None else f"{loss:.2f}"
        cells = f"{bits:.3f} | {known:.5f} | {unknown:.5f} | {shown}"
        print(f"| {way} | {stored.bits} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
