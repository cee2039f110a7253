"""Sends every report to TensorBoard and, if asked, to Weights & Biases, from the driver alone."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from search_spaces.costs import average_bits, average_rank
from search_spaces.inventory import Inventory
from tune.study.events import Ended, Event, Paused, Reported, Tested
from tune.study.state import StudyState, TrialState

METRICS = (
    "loss",
    "divergence",
    "train_loss",
    "accuracy",
    "f1",
    "perplexity",
    "exact_match",
    "peak_memory_bytes",
)


def readable_parameters(trial: TrialState, inventory: Inventory) -> dict[str, str | float]:
    """Return the few numbers by which people tell trials apart."""
    return {
        "role": trial.role,
        "average_bits": round(average_bits(trial.allocation, inventory), 3),
        "average_rank": round(average_rank(trial.allocation, inventory), 2),
        "memory_megabytes": round(trial.memory_bytes / 1e6, 3),
        "seed": trial.seed,
    }


class TensorBoard:
    """A listener that writes one run a trial, so that TensorBoard compares them."""

    def __init__(self, folder: Path, inventory: Inventory) -> None:
        """Write below `folder`."""
        self._folder = folder
        self._inventory = inventory
        self._writers: dict[str, SummaryWriter] = {}

    def __call__(self, event: Event, state: StudyState) -> None:
        """Write one event."""
        if isinstance(event, Reported):
            writer = self._writer(event.trial)
            for name, value in _metrics(event).items():
                writer.add_scalar(name, value, event.report.step)
            writer.flush()
        elif isinstance(event, Paused):
            # Each open writer has a thread and a file, and many trials may wait. There is none if
            # an earlier run ended between report and pause.
            if event.trial in self._writers:
                self._writers.pop(event.trial).close()
        elif isinstance(event, Tested):
            self._writer(event.trial).add_scalar(f"test_{event.score.metric}", event.score.value, 0)
        elif isinstance(event, Ended):
            trial = state.trials[event.trial]
            writer = self._writer(event.trial)
            values = {} if trial.last is None else {"final/loss": trial.last.loss}
            parameters = readable_parameters(trial, self._inventory) | {"status": trial.status}
            # The writer's own `add_hparams` would open a second file, or this one anew.
            for summary in hparams(parameters, values):
                writer.file_writer.add_summary(summary)
            for name, value in values.items():
                writer.add_scalar(name, value, 0)
            writer.close()
            del self._writers[event.trial]

    def close(self) -> None:
        """Close the runs of trials that have not ended."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, trial_id: str) -> SummaryWriter:
        if trial_id not in self._writers:
            folder = self._folder / trial_id
            # The time in a file's name is in whole seconds: a second file could be the first again.
            suffix = f".{len(list(folder.glob('*')))}"
            self._writers[trial_id] = SummaryWriter(str(folder), filename_suffix=suffix)
        return self._writers[trial_id]


class Wandb:
    """A listener that keeps one W&B run a live trial, all in this process.

    Without a key everything is written to disk, for `wandb sync`.
    """

    def __init__(self, project: str, study: str, folder: Path, inventory: Inventory) -> None:
        """Log to a project, grouped by study.

        Raises:
            ValueError: wandb is not installed.
        """
        self._init = wandb_init()
        self._project, self._study, self._folder = project, study, folder
        self._inventory = inventory
        self._runs: dict[str, Any] = {}
        self._mode = "online" if _has_key() else "offline"

    def __call__(self, event: Event, state: StudyState) -> None:
        """Send one event."""
        if isinstance(event, Reported):
            run = self._run(state.trials[event.trial])
            run.log(_metrics(event), step=event.report.step)
        elif isinstance(event, Tested):
            run = self._run(state.trials[event.trial])
            run.summary[f"test_{event.score.metric}"] = event.score.value
        elif isinstance(event, Ended):
            trial = state.trials[event.trial]
            run = self._run(trial)
            run.summary["status"] = trial.status
            if trial.reason is not None:
                run.summary["reason"] = trial.reason
            run.finish()
            del self._runs[event.trial]

    def close(self) -> None:
        """Finish the runs of trials that have not ended."""
        for run in self._runs.values():
            run.finish()

    def _run(self, trial: TrialState) -> Any:
        if trial.id not in self._runs:
            self._runs[trial.id] = self._init(
                project=self._project,
                group=self._study,
                name=f"{self._study}-{trial.id}",
                config=readable_parameters(trial, self._inventory),
                dir=str(self._folder),
                mode=self._mode,
                reinit="create_new",
            )
        return self._runs[trial.id]


def wandb_init() -> Callable[..., Any]:
    """Return wandb's `init`.

    Raises:
        ValueError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "`--wandb` needs the package wandb, which is not installed. "
            "Run `pip install wandb`, or leave --wandb out."
        ) from error
    os.environ.setdefault("WANDB_SILENT", "true")
    init: Callable[..., Any] = wandb.init
    return init


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")


def _metrics(event: Reported) -> Mapping[str, float]:
    found = {name: getattr(event.report, name) for name in METRICS}
    return {name: value for name, value in found.items() if value is not None}
