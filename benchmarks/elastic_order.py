"""What an elastic run can order: its losses beside those of trials that were trained themselves.

    python -m benchmarks.elastic_order --steps 200 --count 64

One model is trained with a random allocation at each step (`alrq_core.elastic`), then scores
allocations whose curves `record_curves.py` has recorded. Printed are Kendall's tau with their final
losses and its interval, for the elastic losses, for the visibility table, and for both together
(a linear fit, cross-validated), over all allocations and over groups of them.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from alrq_core.elastic import ElasticRun
from benchmarks.record_curves import load
from benchmarks.surrogate import load_curves, recorded_table
from search_spaces.spaces import make_space
from tune.effects import FLOOR

FOLDER = Path(__file__).parent / "curves"
FOLDS, RESAMPLES = 8, 1000


def main() -> None:
    """Train and score where that was not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--curves", type=Path, default=FOLDER)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    flags.results.mkdir(parents=True, exist_ok=True)
    path = flags.results / f"elastic-{flags.steps}-{flags.seed}.json"
    if not path.is_file():
        path.write_text(json.dumps(scored(flags)), encoding="utf-8")
    report(json.loads(path.read_text(encoding="utf-8")), flags.curves)


def scored(flags: argparse.Namespace) -> dict[str, object]:
    """Return the elastic losses of recorded allocations, by their code."""
    shared = load()
    context = replace(shared, recipe=replace(shared.recipe, max_steps=flags.steps))
    run = ElasticRun(context, make_space("joint", context.inventory), flags.seed)
    started = time.perf_counter()
    run.train(flags.steps)
    trained = time.perf_counter()
    curves = load_curves(flags.curves, context.inventory)
    allocations = list(dict.fromkeys(curves.allocations))[: flags.count]
    losses = {allocation.encode(): run.score(allocation).loss for allocation in allocations}
    return {
        "losses": losses,
        "train_seconds": trained - started,
        "score_seconds": (time.perf_counter() - trained) / len(losses),
    }


def report(found: dict[str, dict[str, float]], folder: Path) -> None:
    """Print how well the losses order the recorded ones."""
    inventory = load().inventory
    curves = load_curves(folder, inventory)
    table = recorded_table(folder)
    kept = [n for n, a in enumerate(curves.allocations) if a.encode() in found["losses"]]
    final = curves.losses[kept, -1]
    allocations = [curves.allocations[n] for n in kept]
    elastic = np.log([found["losses"][a.encode()] for a in allocations])
    parts = [[table.damage(n, c) for n, c in a.choices.items()] for a in allocations]
    damage = np.sum(parts, axis=1)
    gain = np.sum([[table.gain(n, c) for n, c in a.choices.items()] for a in allocations], axis=1)
    target = np.log(final - FLOOR * final.min())
    alike = {
        "elastic losses": elastic,
        "visibility table": fitted(np.array([damage, gain]).T, target),
        "both": fitted(np.array([damage, gain, elastic]).T, target),
    }
    sources = np.array(curves.sources)[kept]
    print(f"trained {found['train_seconds']:.0f} s, scored {found['score_seconds']:.1f} s each")
    for group in ("all", *sorted(set(sources))):
        inside = np.full(len(sources), True) if group == "all" else sources == group
        cells = [f"{name} {tau(values[inside], final[inside])}" for name, values in alike.items()]
        print(f"{group} ({inside.sum()}): {'; '.join(cells)}")


def fitted(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return what a linear fit predicts for each fold from the others."""
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    design = np.column_stack((np.ones(len(target)), scaled))
    fold = np.arange(len(target)) % FOLDS
    predicted = np.empty(len(target))
    for number in range(FOLDS):
        inside = fold == number
        solved = np.linalg.lstsq(design[~inside], target[~inside], rcond=None)[0]
        predicted[inside] = design[inside] @ solved
    return predicted


def tau(values: np.ndarray, final: np.ndarray) -> str:
    """Return Kendall's tau-b with its 95 % interval, from allocations drawn again."""
    if len(values) < 4:
        return "too few"
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(values), (RESAMPLES, len(values)))
    drawn = [kendalltau(values[row], final[row]).statistic for row in rows]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return f"{kendalltau(values, final).statistic:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
