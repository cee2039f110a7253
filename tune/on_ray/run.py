"""Runs a prepared study on Ray, from its first or its next trial to its last."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from ray import tune as ray_tune
from ray.air.execution import FixedResourceManager
from rich.console import Console

from alrq_core.files import write_json
from alrq_core.memory.host import PROCESS_BASELINE_BYTES, common
from alrq_core.memory.prediction import base_bytes
from tune.flags import Form
from tune.on_ray.bridge import StudyScheduler, StudySearcher
from tune.on_ray.nodes import (
    Places,
    Tell,
    amounts,
    of_ray,
    wait_for_room,
    waiting_line,
)
from tune.on_ray.references import forget_corrections
from tune.on_ray.shared import check_shared
from tune.on_ray.workers import AllocationTrainable, WorkerContext
from tune.report.progress import Progress, Subject
from tune.report.sinks import TensorBoard, Wandb
from tune.search.proposer import Proposer
from tune.search.searchers import Setting
from tune.study.checkpoints import checkpoint_name, remove_checkpoint
from tune.study.config import STUDY_FILE, load_study_file
from tune.study.events import LOG_NAME, Ended, Event, EventLog, Failed, Started
from tune.study.mirror import Mirror
from tune.study.plan import Plan
from tune.study.prepare import Prepared
from tune.study.record import run_content, study_content
from tune.study.replay import replay_search
from tune.study.schedulers import SCHEDULERS, judging_rungs
from tune.study.state import StudyState
from tune.study.store import Store
from tune.study.study import WORKER_RESTARTS, Listener, Study, StudyEnd, known_table

# Names inside Ray that Tune reads when it starts workers, and what is put in their place.
REPLACED: tuple[tuple[str, str, object], ...] = (
    ("ray.tune.execution.class_cache", "DEFAULT_ENV_VARS", {}),
    ("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", set()),
    ("ray.tune.execution.tune_controller", "PlacementGroupResourceManager", FixedResourceManager),
)


def check_cluster(prepared: Prepared, tell: Tell) -> None:
    """Check, before anything is written, that the cluster that was joined can run a study.

    Raises:
        ValueError: No node can hold a trial, or the nodes don't share the study's folder.
    """
    if prepared.config.address is None:
        return
    wait_for_room(of_ray(_resources(prepared)), tell)
    if prepared.config.storage is not None:
        check_shared(Store(prepared.config.storage), "--storage", tell)
        return
    folder = prepared.config.folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    check_shared(Store(str(existing)), "--output-dir", tell)


def run_study(
    prepared: Prepared, console: Console, mirror: Mirror | None = None, form: Form = "shown"
) -> StudyEnd:
    """Run or go on with a study until it is finished or interrupted.

    Args:
        prepared: The study; its folder exists, and Ray has started.
        console: Where progress is shown.
        mirror: Of its folder, by which nodes of a cluster hand files on.
        form: How progress is shown.
    """
    config, folder = prepared.config, prepared.config.folder
    log = EventLog(folder / LOG_NAME)
    events = list(log.read())
    state = StudyState(prepared.inventory.names).replay(events)
    earlier = load_study_file(folder)["runs"] if (folder / STUDY_FILE).is_file() else []
    content = study_content(prepared) | {"runs": [*earlier, run_content()]}
    write_json(folder / STUDY_FILE, content)
    if mirror is not None:
        # Before any worker looks for it.
        mirror.push()
    started = Started(time=round(time.time(), 3), budget=config.budget)
    log.append(started)
    state.apply(started)
    plan = _plan(prepared, events, state)
    size = len(prepared.space.points) or plan.search_size
    progress = Progress(console, Subject(config=config, size=size), form)
    progress(started, state)
    sinks = _sinks(prepared)
    began = next((event for event in events if isinstance(event, Started)), started).time
    study = Study(
        folder=folder,
        log=log,
        state=state,
        plan=plan,
        recipe=config.recipe,
        scheduler=SCHEDULERS[config.scheduler],
        listeners=[progress, _forget_checkpoints(folder, mirror), *sinks],
    )
    try:
        if not study.finished:
            with progress:
                _run_on_ray(prepared, study, progress.tell, mirror, began)
    finally:
        for sink in sinks:
            sink.close()
        log.close()
    if mirror is not None and config.address is not None:
        mirror.pull()
    if study.finished:
        forget_corrections(folder)
    return StudyEnd(state, plan.proposer.expected_losses(), study.finished, study.halted)


def _plan(prepared: Prepared, events: list[Event], state: StudyState) -> Plan:
    config = prepared.config
    setting = Setting(
        space=prepared.space,
        rungs=judging_rungs(config.recipe, prepared.reference is not None),
        budget=config.budget,
        seed=config.seed,
        max_memory_bytes=config.max_memory_bytes,
    )
    table = known_table(config.folder, state)
    proposer = Proposer(setting, config.searcher, config.folder, table)
    replay_search(events, state, proposer)
    limit = config.time_limit_seconds
    return Plan(
        space=prepared.space,
        baselines=prepared.fitting.baselines,
        state=state,
        proposer=proposer,
        budget=config.budget,
        screen=config.screen,
        anchors=config.anchor_count,
        seed=config.seed,
        max_memory_bytes=config.max_memory_bytes,
        deadline=None if limit is None else time.monotonic() + limit,
        searcher=config.searcher,
        reference=prepared.reference,
    )


def _sinks(prepared: Prepared) -> list[TensorBoard | Wandb]:
    config, inventory = prepared.config, prepared.inventory
    sinks: list[TensorBoard | Wandb] = [
        TensorBoard(config.folder / "tensorboard", inventory, prepared.reference is not None)
    ]
    if config.wandb is not None:
        sinks.append(Wandb(config.wandb, config.name, config.folder, inventory))
    return sinks


def _run_on_ray(
    prepared: Prepared, study: Study, tell: Tell, mirror: Mirror | None, began: float
) -> None:
    config, folder = prepared.config, prepared.config.folder.absolute()
    if config.address is None:
        _start_in_waiting_workers()
    # Ray handles signals itself once it has started, so ours come after it.
    with _ended_like_interrupted():
        per_trial = _resources(prepared)
        request = of_ray(per_trial)
        context = WorkerContext(
            inventory=prepared.inventory,
            task=prepared.task,
            recipe=config.recipe,
            folder=folder,
            # On one machine all share its folder.
            store=mirror.store if mirror is not None and config.address is not None else None,
            began=began,
            space=prepared.space,
            reference=prepared.reference_allocation,
            threads=1,
        )
        trainable = ray_tune.with_parameters(AllocationTrainable, context=context)
        ray_tune.Tuner(
            ray_tune.with_resources(trainable, per_trial),
            tune_config=ray_tune.TuneConfig(
                search_alg=StudySearcher(study, Places(request)),
                scheduler=StudyScheduler(study, partial(_tell_waiting, tell, amounts(request))),
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


def _tell_waiting(tell: Tell, asked: str, seconds: float) -> None:
    tell(waiting_line(asked, seconds))


def _start_in_waiting_workers() -> None:
    """Let trials start in the workers that Ray has started beforehand.

    Tune would start others: it gives them variables, which workers on this machine inherit, and
    it reserves cores by placement groups, whose check occupies one of the waiting workers each.
    From a study's start to its first report on 2 quiet cores: 5 s, with either of both 19 to 21 s,
    with neither 16 s. A Ray without these names runs the study all the same.
    """
    for module, name, value in REPLACED:
        with suppress(ImportError):
            setattr(import_module(module), name, value)


def _resources(prepared: Prepared) -> dict[str, float]:
    """Return what Ray keeps free for each trial: on a cluster also its memory, as predicted, so
    that no node gets more trials than it can hold.

    A GPU is shared by as many trials as were planned. On a CPU the planner has cut the batch for as
    many trials as there are cores, which share the base model.
    """
    host = common(prepared.hosts)
    gpu = host.device == "cuda"
    # Ray knows nothing of MPS.
    cores = host.cores if host.device == "mps" else 1
    part = 1 / prepared.trials_per_gpu if gpu else 0.0
    found: dict[str, float] = {"cpu": float(cores), "gpu": part}
    if prepared.config.address is not None:
        sharing = prepared.trials_per_gpu if gpu else host.cores
        held = PROCESS_BASELINE_BYTES + base_bytes(prepared.inventory) // sharing
        found["memory"] = float(held if gpu else held + prepared.batch.memory.peak_bytes)
    return found


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Treat a request to terminate, or a terminal that is closed, like Ctrl-C: end the trials and
    write what is done. What was started to outlive its terminal (nohup) does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_terminal = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def end(number: int, _: object) -> None:
        if number != signal.SIGTERM:
            _print_nowhere(on_terminal)
        signal.raise_signal(signal.SIGINT)

    # Windows has no terminals that hang up.
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _print_nowhere(outputs: Iterable[int]) -> None:
    """Let what is still printed to a closed terminal go nowhere, instead of raising."""
    with Path(os.devnull).open("wb") as nowhere:
        for number in outputs:
            os.dup2(nowhere.fileno(), number)


def _forget_checkpoints(folder: Path, mirror: Mirror | None) -> Listener:
    def forget(event: Event, state: StudyState) -> None:
        if not isinstance(event, Ended):
            return
        # What was scored on the test split can be exported.
        if state.trials[event.trial].searched or isinstance(event, Failed):
            remove_checkpoint(folder, event.trial)
            if mirror is not None:
                mirror.forget(checkpoint_name(event.trial))

    return forget
