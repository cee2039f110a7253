"""Where the wall time of trials goes, one after another as a worker of a study runs them.

    python benchmarks/trial_profile.py --picture trial_profile.png

One process, one thread. Random allocations of the space `joint` go through the worker's own class
without Ray: each trial through all its rungs, with receipts, checkpoints, and reports that are
pickled as for the driver. Ray's messages and the driver's proposals are no part of it. Functions
are wrapped from outside and their times are exclusive: what a wrapped function calls counts for the
innermost part, but for the probe of gradients, which keeps the passes that it makes. The first
trial, which loads the base model and is the reference of all others, stands apart.
"""

import argparse
import os
import pickle
import random
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from itertools import repeat
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from alrq_core.context import make_context
from alrq_core.data.encode import train_batches
from alrq_core.memory.machine import pick_device
from alrq_core.recipe import Recipe
from alrq_core.weights.cache import PackedCache
from search_spaces.allocation import Allocation
from search_spaces.spaces import Space
from tune.on_ray.trial_spec import TrialSpec
from tune.on_ray.workers import OUTCOME, AllocationTrainable, WorkerContext
from tune.study.config import StudyConfig
from tune.study.finalists import REFERENCE_TRIAL
from tune.study.prepare import Prepared, prepare
from tune.study.schedulers import rungs_of

FORWARD, BACKWARD, OPTIMISER, SCORING = "forward", "backward", "optimiser", "evaluation, forward"
PROBE, BATCHES, REPORT, REST = "receipt: probe of gradients", "batches", "report", "the rest"
# What is wrapped: where it is looked up, and the part that it counts for.
WRAPPED = {
    "alrq_core.training.logits_of": FORWARD,
    "alrq_core.training.losses_of": FORWARD,
    "alrq_core.training.divergences": FORWARD,
    "torch.Tensor.backward": BACKWARD,
    "torch.nn.utils.clip_grad_norm_": OPTIMISER,
    "torch.optim.AdamW.step": OPTIMISER,
    "torch.optim.AdamW.zero_grad": OPTIMISER,
    "alrq_core.scoring.logits_of": SCORING,
    "alrq_core.scoring.losses_of": SCORING,
    "alrq_core.scoring.divergences": SCORING,
    "alrq_core.scoring.Scorer.evaluate": "evaluation, the rest",
    "alrq_core.weights.cache.PackedCache.__call__": "build: packed weights",
    "alrq_core.build._copy_without": "build: copy of all else",
    "alrq_core.build.attach_adapters": "build: adapters",
    "alrq_core.context.TrialContext.start_from": "build: start from the reference",
    "alrq_core.trial.keep_dequantised": "build: dequantised copy",
    "alrq_core.trial.reset_peak_memory": "build: collecting garbage",
    "alrq_core.trial.TrialRun.__init__": "build: the rest",
    "alrq_core.trial.take_receipt": "receipt: reading",
    "alrq_core.trial.check_receipt": "receipt: reading",
    "alrq_core.trial.confirm_unchanged": "receipt: reading",
    "alrq_core.trial.TrialRun._probe": PROBE,
    "alrq_core.training.collate": BATCHES,
    "alrq_core.scoring.collate": BATCHES,
    "alrq_core.training.train_parts": BATCHES,
    "alrq_core.trial.TrialRun.save_checkpoint": "checkpoint",
    "tune.on_ray.workers.make_context": "loading the base model",
}
PARTS = (*dict.fromkeys(WRAPPED.values()), REPORT, REST)
TRAINING = (FORWARD, BACKWARD, OPTIMISER)
# Told apart by most colour-blind readers (Okabe and Ito's, and two of Tol's).
LARGE = dict(zip((*TRAINING, SCORING), ("#0072B2", "#56B4E9", "#009E73", "#E69F00"), strict=True))
OTHER_COLOUR = "#BBBBBB"
SMALL_PARTS = ("build", "receipt", "checkpoint", BATCHES, "evaluation, the rest")
SMALL = dict(zip(SMALL_PARTS, ("#D55E00", "#332288", "#CC79A7", "#F0E442", "#882255"), strict=True))
SMALL[REST] = OTHER_COLOUR
# Part -> seconds.
Trial = dict[str, float]


class Clock:
    """Counts each moment for the innermost part that runs.

    Attributes:
        begun: When each part first ran since the last `take`.
    """

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._inside, self._since = [REST], time.perf_counter()

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, counted for a part."""

        @wraps(function)
        def counted(*args: Any, **options: Any) -> Any:
            self._count()
            self.begun.setdefault(part, self._since)
            self._inside.append(PROBE if self._inside[-1] == PROBE else part)
            try:
                return function(*args, **options)
            finally:
                self._count()
                self._inside.pop()

        return counted

    def take(self) -> Trial:
        """Return the seconds of each part since the last call."""
        self._count()
        taken, self._seconds, self.begun = self._seconds, defaultdict(float), {}
        return taken

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._inside[-1]] += now - self._since
        self._since = now


def main() -> None:
    """Run the trials, print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=6, help="at least 2")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", action="store_true", help="let the trials quantise all weights")
    parser.add_argument("--picture", type=Path, help="PNG")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(StudyConfig(recipe=Recipe(max_steps=flags.max_steps), name="profile"))
    cache = "alrq_core.context.cache_folder"
    with TemporaryDirectory() as name, patch(cache, lambda: folder / "packed"):
        folder = Path(name)
        if not flags.cold:
            fill_cache(prepared, folder / "packed")
        trials, gaps = run_trials(prepared, folder, flags.trials, flags.seed)
    recipe = prepared.config.recipe
    caption = (
        f"MiniLM on Rotten Tomatoes, random allocations of joint, {recipe.max_steps} steps of "
        f"{recipe.batch_size} sentences; later trials {recipe.tuning.max_steps} from its start,\n"
        f"{recipe.cpu_dtype}, {recipe.execution} weights, one thread, cache of packed weights "
        f"{'empty' if flags.cold else 'filled'} at the start; load averages "
        f"{', '.join(f'{value:.1f}' for value in os.getloadavg())}"
    )
    print_profile(trials, gaps, caption)
    if flags.picture is not None:
        draw(flags.picture, trials, caption)


def fill_cache(prepared: Prepared, folder: Path) -> None:
    """Quantise every weight in every number of bits, as the trials of earlier studies did."""
    space, recipe = prepared.space, prepared.config.recipe
    context = make_context(prepared.inventory, prepared.task, recipe)
    cache = PackedCache(folder, pick_device(recipe.device), context.source)
    for name in prepared.inventory.names:
        weight = context.base.get_submodule(name).get_parameter("weight")
        for bits in space.bits[name]:
            stored = space.choice(name, bits, 0, space.group_sizes[name][0]).format
            cache(weight, stored, name)


def random_allocation(space: Space, generator: random.Random) -> Allocation:
    """Return bits and ranks that are drawn evenly, module by module."""
    return Allocation({name: space.draw(name, generator) for name in space.inventory.names})


def run_trials(
    prepared: Prepared, folder: Path, trials: int, seed: int
) -> tuple[list[Trial], list[float]]:
    """Return trials, run by a worker of this process, and the seconds between them.

    They count from a trial's last report to the first batch of the next, which scores its start.
    The first trial is the reference that all others start from.
    """
    reference = prepared.reference_allocation
    assert reference is not None
    context = WorkerContext(
        inventory=prepared.inventory,
        task=prepared.task,
        recipe=prepared.config.recipe,
        folder=folder,
        space=prepared.space,
        reference=reference,
        threads=1,
    )
    clock, generator, found, gaps, ended = Clock(), random.Random(seed), [], [], 0.0
    wrappers = {name: clock.wrap(part, resolve_name(name)) for name, part in WRAPPED.items()}
    draw_batch = clock.wrap(BATCHES, next)
    wrappers["alrq_core.training.train_batches"] = lambda *args: map(
        draw_batch, repeat(train_batches(*args))
    )
    send = clock.wrap(REPORT, pickle.dumps)
    with ExitStack() as stack:
        for name, wrapper in wrappers.items():
            stack.enter_context(patch(name, wrapper))
        # Ray would call `setup` from the constructor.
        worker = object.__new__(AllocationTrainable)
        for number in range(trials):
            allocation = random_allocation(prepared.space, generator)
            spec = TrialSpec(
                trial=f"t{number}" if number else REFERENCE_TRIAL,
                role="search" if number else "reference",
                allocation=(allocation if number else reference).encode(),
                seed=seed,
                reference=REFERENCE_TRIAL if number else None,
            )
            clock.take()
            if number == 0:
                worker.setup(spec.to_config(), context)
            else:
                worker.reset_config(spec.to_config())
            run_rungs(worker, rungs_of(context.recipe, spec.role, number > 0)[-1], send)
            gaps.append(clock.begun[BATCHES] - ended)
            found.append(clock.take())
            ended = time.perf_counter()
    return found, gaps[1:]


def run_rungs(worker: AllocationTrainable, last: int, send: Callable[..., Any]) -> None:
    """Take a trial to its last rung."""
    report = None
    while report is None or report.step < last:
        outcome = worker.step()[OUTCOME]
        send(outcome)
        if outcome.error is not None:
            raise RuntimeError(f"a trial failed: {outcome.error}")
        report = outcome.report


def print_profile(trials: list[Trial], gaps: list[float], caption: str) -> None:
    """Print the table of all parts, and what matters of it."""
    first, later = trials[0], trials[1:]
    print(f"{caption}\n")
    print("| part | share of a trial, % | seconds a trial | first trial, seconds |")
    print("|---|---|---|---|")
    for part in PARTS:
        seconds = np.mean([trial[part] for trial in later])
        print(f"| {part} | {shares(later, part)} | {seconds:.3f} | {first[part]:.3f} |")
    total = np.mean([sum(trial.values()) for trial in later])
    print(f"| all | 100 | {total:.3f} | {sum(first.values()):.3f} |")
    print(f"\nMean and range of {len(later)} trials; the first one is not among them.")
    print(f"In {', '.join(TRAINING)}: {shares(later, *TRAINING)} %.")
    print(f"With the forward passes of evaluation: {shares(later, *LARGE)} %.")
    between = f"median {np.median(gaps):.3f} s, largest {max(gaps):.3f} s"
    print(f"From a trial's last report to the first batch of the next: {between}.")


def shares(trials: list[Trial], *parts: str) -> str:
    """Return mean and range of what parts take of trials, in per cent."""
    taken = [100 * sum(trial[part] for part in parts) / sum(trial.values()) for trial in trials]
    return f"{np.mean(taken):.2f} [{min(taken):.2f}, {max(taken):.2f}]"


def draw(path: Path, trials: list[Trial], caption: str) -> None:
    """Draw the shares of each trial, and enlarged what is neither training nor scoring."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 1.9 + 0.42 * len(trials)), layout="constrained", width_ratios=(5, 4)
    )
    names, large = [f"trial {number}" for number in range(1, len(trials) + 1)], []
    names[0] += " (loading, reference)"
    for row, trial in enumerate(trials):
        total = sum(trial.values())
        large.append({part: 100 * trial[part] / total for part in LARGE})
        large[row]["all else"] = 100 - sum(large[row].values())
        left.text(101, row, f"{total:.1f} s", va="center")
    bars(left, names, large, {**LARGE, "all else": OTHER_COLOUR})
    left.set(xlim=(0, 110), xticks=range(0, 101, 20), xlabel="share of a trial's wall time, %")
    bars(right, names[1:], [sum_groups(trial) for trial in trials[1:]], SMALL)
    right.set_xlabel("all else after the first trial, seconds a trial")
    figure.suptitle(caption, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def sum_groups(trial: Trial) -> Trial:
    """Return the seconds of what the picture tells apart."""
    groups: Trial = defaultdict(float)
    for part, seconds in trial.items():
        group = part.partition(":")[0]
        groups[group if group in LARGE or group in SMALL else REST] += seconds
    return groups


def bars(axes: Axes, names: list[str], rows: list[Trial], colours: dict[str, str]) -> None:
    """Draw a stacked bar a row, the first one on top, with the legend above."""
    start = np.zeros(len(rows))
    for part, colour in colours.items():
        widths = np.array([row[part] for row in rows])
        axes.barh(names, widths, left=start, color=colour, edgecolor="white", label=part)
        start += widths
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


if __name__ == "__main__":
    main()
