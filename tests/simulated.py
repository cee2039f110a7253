"""Studies whose trials take no time: a made-up model, and losses from a formula."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from sklearn.metrics import f1_score

from alrq_core.files import write_json
from alrq_core.recipe import Recipe
from alrq_core.records import TestScore, TrialReport
from alrq_core.sensitivity.table import flat_table
from search_spaces.fixed import BASELINES, fixed_allocation
from search_spaces.inventory import Inventory, TargetModule
from search_spaces.spaces import make_space
from tune.search.proposer import Proposer
from tune.search.searchers import Setting
from tune.search.tried import Tried
from tune.study.config import STUDY_FILE, STUDY_VERSION, StudyConfig
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.plan import Plan
from tune.study.replay import replay_search
from tune.study.schedulers import SCHEDULERS, judging_rungs, rungs_of
from tune.study.state import StudyState, TrialState
from tune.study.study import Listener, Outcome, Study, known_table

RECIPE = Recipe(max_steps=8, tune_steps=4)
# Of a trial from nothing, and of one that starts from a reference.
RUNGS, START_RUNGS = (2, 4, 8), (0, 4)
LABELS = np.arange(40) % 2
LossOf = Callable[[TrialState, int], float]


def make_inventory(blocks: int = 3) -> Inventory:
    """Two modules of 64 x 64 and 128 x 64 a block, and 1,000 parameters besides."""
    targets = []
    for block in range(blocks):
        for name, out_features, part in (
            ("attention.query", 64, "attention"),
            ("output", 128, "feed-forward"),
        ):
            targets.append(
                TargetModule(
                    name=f"model.layer.{block}.{name}",
                    out_features=out_features,
                    in_features=64,
                    part=part,
                    block=block,
                )
            )
    return Inventory(model="made-up", targets=tuple(targets), other_parameters=1000)


def make_report(step: int, loss: float, divergence: float | None = None) -> TrialReport:
    return TrialReport(
        step=step,
        train_loss=loss + 0.1,
        loss=loss,
        loss_standard_error=0.01,
        sequences=853,
        accuracy=0.8,
        f1=0.79,
        divergence=divergence,
        train_seconds=1.5,
        eval_seconds=0.5,
        peak_memory_bytes=10**9,
    )


def score(trial: TrialState) -> TestScore:
    """Answers to `LABELS` of which the first few are wrong, by the seed and the trial's size."""
    right = np.arange(len(LABELS)) >= (trial.seed + trial.memory_bytes) % 7 + 3
    predictions = np.where(right, LABELS, 1 - LABELS)
    return TestScore(
        metric="accuracy",
        value=float(right.mean()),
        loss=0.4,
        f1=float(f1_score(LABELS, predictions, average="macro")),
        scores=tuple(right.astype(float).tolist()),
        losses=(0.4,) * len(LABELS),
        predictions=tuple(predictions.tolist()),
    )


def luck(trial: TrialState | Tried) -> float:
    """A number from 0 to 1 that depends on the allocation alone."""
    return crc32(trial.allocation.encode().encode()) / 2**32


def bytes_help(trial: TrialState | Tried, step: int) -> float:
    """A loss that falls with training and with size; ties are broken by the allocation."""
    jitter = luck(trial) / 10
    return 1.0 / (step + 1) + 20_000 / trial.memory_bytes + jitter


def make_study(
    folder: Path,
    *,
    budget: int = 10,
    space: str = "joint",
    searcher: str = "random",
    scheduler: str = "front-asha",
    max_memory_bytes: int | None = None,
    deadline: float | None = None,
    reference: str | None = None,
    screen: int = 0,
    blocks: int = 3,
    listeners: tuple[Listener, ...] = (),
) -> Study:
    """Return a study that goes on from what the log in `folder` holds."""
    inventory = make_inventory(blocks)
    log = EventLog(folder / LOG_NAME)
    events = list(log.read())
    state = StudyState(inventory.names).replay(events)
    started = Started(time=0.0, budget=budget)
    log.append(started)
    log.close()
    state.apply(started)
    searched = make_space(space, inventory)
    setting = Setting(
        space=searched,
        rungs=judging_rungs(RECIPE, reference is not None),
        budget=budget,
        seed=0,
        max_memory_bytes=max_memory_bytes,
    )
    table = known_table(folder, state)
    proposer = Proposer(setting, searcher, folder, table)
    replay_search(events, state, proposer)
    plan = Plan(
        space=searched,
        baselines=searched.points
        or {name: fixed_allocation(name, inventory, searched.formats) for name in BASELINES},
        state=state,
        proposer=proposer,
        budget=budget,
        screen=screen,
        anchors=max(1, budget // 6),
        seed=0,
        max_memory_bytes=max_memory_bytes,
        deadline=deadline,
        searcher=searcher,
        reference=reference,
    )
    return Study(
        folder=folder,
        log=log,
        state=state,
        plan=plan,
        recipe=RECIPE,
        scheduler=SCHEDULERS[scheduler],
        listeners=listeners,
    )


def advance(study: Study, trial: TrialState, loss_of: LossOf) -> bool:
    """Report a trial's next rung; tell whether it goes on."""
    started = trial.reference is not None
    rungs = rungs_of(RECIPE, trial.role, started)
    step = next(s for s in rungs if s > (trial.last.step if trial.last else -1))
    last, loss = step == rungs[-1], loss_of(trial, step)
    tested = last and trial.role in ("baseline", "control", "confirm")
    measured = started and trial.searched
    outcome = Outcome(
        report=make_report(step, loss, loss / 10 if measured else None),
        test=score(trial) if tested else None,
        table=flat_table(study.plan.space) if trial.role == "reference" else None,
    )
    return study.take(trial.id, outcome) == "continue"


def drive(
    study: Study, loss_of: LossOf = bytes_help, workers: int = 2, reports: int = 10**6
) -> int:
    """Run a study with workers that take turns, for at most so many reports; return the count."""
    running: list[TrialState] = []
    with closing(study.log):
        for count in range(reports):
            while len(running) < workers and (trial := study.next_trial()) is not None:
                running.append(trial)
            if not running:
                return count
            trial = running.pop(0)
            if advance(study, trial, loss_of):
                running.append(trial)
    return reports


def save_study(study: Study, **flags: object) -> Path:
    """Write what a study's folder has beside its log, and return the folder."""
    config = StudyConfig(name=study.folder.name, recipe=RECIPE, budget=study.plan.budget)
    config = replace(config, **flags)  # type: ignore[arg-type]
    machine = {"processor": "made-up", "cores": 2, "device": "cpu", "compute_dtype": "float32"}
    content = {
        "version": STUDY_VERSION,
        "config": config.to_json(),
        "inventory": asdict(study.plan.space.inventory),
        "splits": {"source": "made up", "train": 80, "validation": 40, "test": len(LABELS)},
        "runs": [{"versions": {"alrq": "0"}, "machine": machine, "commit": None}],
    }
    write_json(study.folder / STUDY_FILE, content)
    return study.folder
