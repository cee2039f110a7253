"""Searches of equal training cost, trained for real, and what they offer on fresh seeds.

    python -m benchmarks.real_search --results results/real

MiniLM-L6 on Rotten Tomatoes with the recipe of `record_curves`. As many studies at a time as there
are cores, each with one trial at a time, so that a seed proposes the same on any machine. Costs are
those of `search_quality`. What a study offered when a part of its cost was spent is trained on a
seed that no study has seen, and scored on the test split; so are a uniform and a random allocation
of the bytes of each that `alrq` offered at its end. Every loss is kept: the command may be
stopped and given again, and a study then does again what it did, but for the training.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from alrq_core.context import TrialContext
from alrq_core.memory.cores import usable_cores
from alrq_core.sensitivity.measure import visibility_table
from alrq_core.sensitivity.table import flat_table
from alrq_core.trial import TrialRun
from benchmarks.quality_report import TRIALS
from benchmarks.real_report import PARTS, write_real_report
from benchmarks.record_curves import load
from benchmarks.replay import Replay, replay
from benchmarks.search_quality import ARMS as SEARCHES
from benchmarks.search_quality import FOLDER, make_arm, make_costs, trial_cost
from benchmarks.surrogate import load_curves
from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.costs import memory_bytes
from search_spaces.spaces import Space, make_space
from tune.study.schedulers import rung_steps

ARMS = ("alrq", "tpe", "tpe with anchors and front-asha")
FRESH_SEED = 1000


class Trained:
    """Losses by training, each kept as a line of a file.

    Attributes:
        steps: Of the rungs.
    """

    def __init__(self, context: TrialContext, folder: Path) -> None:
        """Read what was trained before.

        Args:
            context: What all trials share.
            folder: Of one study, made where it is missing: its lines, and where trials stand.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._context, self._folder = context, folder
        self.steps = rung_steps(context.recipe.max_steps)
        self._path = folder / "losses.jsonl"
        self._known: dict[tuple[str, int, int], float] = {}
        if self._path.is_file():
            # The last line may have been cut short; it is trained again.
            whole, _, _ = self._path.read_text(encoding="utf-8").rpartition("\n")
            for line in map(json.loads, whole.splitlines()):
                self._known[line["allocation"], line["seed"], line["step"]] = line["loss"]
            self._path.write_text(whole and whole + "\n", encoding="utf-8")
        self._last: tuple[Allocation, int, TrialRun] | None = None

    def loss(self, allocation: Allocation, seed: int, rung: int) -> float:
        """Return the validation loss at a rung, after training up to it."""
        step = self.steps[rung]
        key = allocation.encode(), seed, step
        if key not in self._known:
            run = self._run(allocation, seed)
            report = run.advance(step)
            checkpoint = self._checkpoint(allocation, seed)
            if step < self.steps[-1]:
                run.save_checkpoint(checkpoint, report)
            else:
                checkpoint.unlink(missing_ok=True)
            self._keep(key, report.loss)
        return self._known[key]

    def test_loss(self, allocation: Allocation, seed: int) -> float:
        """Return the loss on the test split after a whole training, as confirmed trials have it."""
        key = allocation.encode(), seed, 0
        if key not in self._known:
            run = TrialRun(self._context, allocation, seed, confirming=True)
            run.advance(self.steps[-1])
            self._keep(key, run.test().loss)
        return self._known[key]

    def _run(self, allocation: Allocation, seed: int) -> TrialRun:
        if self._last is None or self._last[:2] != (allocation, seed):
            run = TrialRun(self._context, allocation, seed)
            if self._checkpoint(allocation, seed).is_file():
                run.load_checkpoint(self._checkpoint(allocation, seed))
            self._last = allocation, seed, run
        return self._last[2]

    def _checkpoint(self, allocation: Allocation, seed: int) -> Path:
        name = sha256(f"{seed} {allocation.encode()}".encode()).hexdigest()[:16]
        return self._folder / f"{name}.pt"

    def _keep(self, key: tuple[str, int, int], loss: float) -> None:
        self._known[key] = loss
        line = dict(zip(("allocation", "seed", "step"), key, strict=True)) | {"loss": loss}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Do what is missing of every study, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    flags = parser.parse_args()
    tasks = [(flags.results, arm, seed) for seed in range(flags.seeds) for arm in flags.arms]
    with ProcessPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(run_study, *zip(*tasks, strict=True)))
    space = make_space("joint", _context().inventory)
    write_real_report(flags.results, found, memory_bytes(space.largest(), space.inventory))


def run_study(results: Path, name: str, seed: int) -> dict[str, Any]:
    """Run one study to its cost, confirm what it offered, and return the confirmed points."""
    context, folder = _context(), results / f"{name.replace(' ', '-')}-{seed}"
    space = make_space("joint", context.inventory)
    losses = Trained(context, folder)
    needed = SEARCHES[name][-1]
    table = visibility_table(context, space, folder, seed) if needed else flat_table(space)
    costs = make_costs(table, load_curves(FOLDER, context.inventory))
    limit = TRIALS * trial_cost(losses.steps)
    arm = make_arm(name, space, table)
    found = replay(arm, space, losses, costs, limit=limit, workers=1, seed=seed, budget=TRIALS)
    fresh = FRESH_SEED + seed

    def confirmed(allocation: Allocation) -> list[float]:
        return [losses.test_loss(allocation, fresh), memory_bytes(allocation, space.inventory)]

    fronts = [[confirmed(a) for a in offered(found, part * limit)] for part in PARTS]
    last = offered(found, limit) if name == ARMS[0] else []
    return {
        "arm": name,
        "seed": seed,
        "completed": len(found.costs),
        "fronts": fronts,
        "controls": [[losses.test_loss(c, fresh) for c in controls(space, a, fresh)] for a in last],
    }


def controls(space: Space, allocation: Allocation, seed: int) -> tuple[Allocation, Allocation]:
    """Return a uniform allocation of no fewer bytes, and a random one of as many."""
    size = memory_bytes(allocation, space.inventory)
    generator = Random(f"{seed}-{allocation.encode()}")
    return uniform_of_bytes(space, size), random_of_bytes(space, size, generator)


def offered(found: Replay, cost: float) -> Sequence[Allocation]:
    """Return the front that a study offered when so much was spent."""
    fronts = [front for at, front in zip(found.costs, found.fronts, strict=True) if at <= cost]
    return fronts[-1] if fronts else []


@cache
def _context() -> TrialContext:
    return load()


if __name__ == "__main__":
    main()
