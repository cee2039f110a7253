"""Runs a prepared study on Ray from its first or its next trial to its result files."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune as ray_tune
from rich.console import Console

from alrq_core.machine import usable_cores
from alrq_core.memory import base_bytes
from alrq_core.planner import PROCESS_BASELINE_BYTES
from tune.adapters import StudyScheduler, StudySearcher
from tune.config import STUDY_FILE, load_study_file
from tune.confirmation import Confirmed, confirmed, recommend
from tune.events import LOG_NAME, Completed, Event, EventLog, Failed, Started, Stopped
from tune.mcnemar import write_mcnemar
from tune.plan import Plan
from tune.plots import draw_front
from tune.prepare import Prepared, run_content, study_content
from tune.progress import Progress
from tune.results import write_json, write_results, write_study_tables
from tune.schedulers import SCHEDULERS
from tune.searchers import Proposer
from tune.sinks import TensorBoard, Wandb
from tune.state import StudyState
from tune.study import Listener, Study
from tune.workers import (
    CHECKPOINTS,
    AllocationTrainable,
    WorkerContext,
    quiet_environment,
    remove_checkpoint,
)

WORKER_RESTARTS = 2
OBJECT_STORE_BYTES = 300 * 10**6
# Ray's snapshots and loggers repeat what the event log keeps; waiting trials are proposed late,
# so that a proposal knows of the trials before it.
RAY_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
}


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended.

    Attributes:
        state: All trials.
        confirmed: What was confirmed, from the smallest to the largest.
        recommendation: The allocation to use; None if there is none.
        finished: Whether nothing is left to do.
        files: The result files.
    """

    state: StudyState
    confirmed: list[Confirmed]
    recommendation: Confirmed | None
    finished: bool
    files: list[Path]


def run_study(prepared: Prepared, console: Console) -> StudyResult:
    """Run or go on with a study and write its results, also when it is interrupted.

    Args:
        prepared: The study; its folder exists.
        console: Where progress is shown.
    """
    config, folder = prepared.config, prepared.config.folder
    log = EventLog(folder / LOG_NAME)
    events = list(log.read())
    state = StudyState(prepared.inventory.names).replay(events)
    earlier = load_study_file(folder)["runs"] if (folder / STUDY_FILE).is_file() else []
    content = study_content(prepared) | {"runs": [*earlier, run_content()]}
    write_json(folder / STUDY_FILE, content)
    started = Started(time=round(time.time(), 3), budget=config.budget)
    log.append(started)
    state.apply(started)
    plan = _plan(prepared, events, state)
    progress = Progress(console, prepared.space, plan.search_size, prepared.task.metric)
    sinks = _sinks(prepared)
    study = Study(
        folder=folder,
        log=log,
        state=state,
        plan=plan,
        rungs=prepared.rungs,
        rule=SCHEDULERS[config.scheduler],
        listeners=[progress, _forget_checkpoints(folder / CHECKPOINTS), *sinks],
    )
    try:
        if not study.finished:
            with progress:
                _run_on_ray(prepared, study)
    finally:
        for sink in sinks:
            sink.close()
        log.close()
    return finish(prepared, state, study.finished)


def finish(prepared: Prepared, state: StudyState, finished: bool) -> StudyResult:
    """Write every result file that the state allows."""
    config = prepared.config
    rows = confirmed(state, prepared.inventory, prepared.task.test.labels)
    recommendation = recommend(rows, config.margin)
    write_study_tables(config.folder, state, prepared.inventory)
    write_mcnemar(config.folder, state)
    files = write_results(config, prepared.task.splits, state, rows, recommendation)
    if any(trial.reports for trial in state.trials.values()):
        picture = config.folder / "front.png"
        draw_front(picture, state, rows, recommendation, _caption(prepared, state))
        files.append(picture)
    return StudyResult(
        state=state, confirmed=rows, recommendation=recommendation, finished=finished, files=files
    )


def _plan(prepared: Prepared, events: list[Event], state: StudyState) -> Plan:
    config = prepared.config
    proposer = Proposer(
        prepared.space,
        config.searcher,
        config.budget,
        config.seed,
        config.max_memory_bytes,
        config.folder,
    )
    proposer.replay(events, state)
    limit = config.time_limit_seconds
    return Plan(
        space=prepared.space,
        state=state,
        proposer=proposer,
        budget=config.budget,
        seed=config.seed,
        max_memory_bytes=config.max_memory_bytes,
        deadline=None if limit is None else time.monotonic() + limit,
        searcher=config.searcher,
    )


def _sinks(prepared: Prepared) -> list[TensorBoard | Wandb]:
    config, inventory = prepared.config, prepared.inventory
    sinks: list[TensorBoard | Wandb] = [TensorBoard(config.folder / "tensorboard", inventory)]
    if config.wandb is not None:
        sinks.append(Wandb(config.wandb, config.name, config.folder, inventory))
    return sinks


def _run_on_ray(prepared: Prepared, study: Study) -> None:
    config, folder = prepared.config, prepared.config.folder.absolute()
    os.environ.update(RAY_SETTINGS)
    os.environ.update(quiet_environment())
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray handles signals itself once it has started, so ours come after it.
    with _ray(config.address), _terminated_like_interrupted():
        per_trial = _resources(prepared, bool(ray.cluster_resources().get("GPU")))
        context = WorkerContext(
            inventory=prepared.inventory,
            task=prepared.task,
            recipe=config.recipe,
            rungs=prepared.rungs,
            checkpoints=folder / CHECKPOINTS,
            threads=1,
        )
        trainable = ray_tune.with_parameters(AllocationTrainable, context=context)
        ray_tune.Tuner(
            ray_tune.with_resources(trainable, per_trial),
            tune_config=ray_tune.TuneConfig(
                search_alg=StudySearcher(study),
                scheduler=StudyScheduler(study),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=str,
                trial_dirname_creator=lambda trial: str(trial.config["trial"]),
            ),
            run_config=ray_tune.RunConfig(
                name=f"run-{len(study.state.budgets)}",
                storage_path=str(folder / "ray"),
                failure_config=ray_tune.FailureConfig(max_failures=WORKER_RESTARTS),
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()


def _resources(prepared: Prepared, gpu: bool) -> dict[str, float]:
    """Return what Ray keeps free for each trial: on a cluster also its memory, as predicted, so
    that no node gets more trials than it can hold.

    On this machine the planner has cut the batch for as many trials as there are cores.
    """
    found: dict[str, float] = {"cpu": 1.0, "gpu": 1.0 if gpu else 0.0}
    if prepared.config.address is not None:
        held = PROCESS_BASELINE_BYTES + base_bytes(prepared.inventory)
        found["memory"] = float(held if gpu else held + prepared.batch.memory.peak_bytes)
    return found


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Start Ray on this machine or join a cluster, and leave it again."""
    if address is None:
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    else:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": quiet_environment()},
        )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Treat a request to terminate like Ctrl-C: end the trials and write what is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _forget_checkpoints(folder: Path) -> Listener:
    def forget(event: Event, state: StudyState) -> None:
        if not isinstance(event, Completed | Stopped | Failed):
            return
        # Confirmed trials can be exported.
        if state.trials[event.trial].role != "confirm" or isinstance(event, Failed):
            remove_checkpoint(folder, event.trial)

    return forget


def _caption(prepared: Prepared, state: StudyState) -> str:
    config, recipe = prepared.config, prepared.config.recipe
    ended = sum(trial.status != "running" for trial in state.of_role("search"))
    searched = f"{ended} trials, {config.searcher} with {config.scheduler}; "
    return (
        f"{config.model} on {config.task}, space {config.space}: "
        f"{'' if prepared.space.fixed else searched}"
        f"{recipe.max_steps} steps of {recipe.batch_size} at learning "
        f"rate {recipe.learning_rate:g}, at most {recipe.max_length} tokens; "
        f"{len(prepared.task.validation)} validation and {len(prepared.task.test)} test sequences"
    )
