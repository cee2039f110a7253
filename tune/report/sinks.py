"""Sends every report to TensorBoard and, if asked, to Weights & Biases, from the driver alone."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from search_spaces.costs import average_bits, average_rank
from search_spaces.inventory import Inventory
from tune.mistakes import said
from tune.report.hparams import final_values, hparams, readable_parameters, rung_values
from tune.report.picture import allocation_picture
from tune.study.config import StudyConfig
from tune.study.events import Ended, Event, Paused, Proposed, Reported
from tune.study.state import StudyState, TrialState


class TensorBoard:
    """A listener that writes one run a trial, so that TensorBoard compares them."""

    def __init__(self, folder: Path, inventory: Inventory, diverge: bool) -> None:
        """Write below `folder`.

        Args:
            folder: It gets one a trial.
            inventory: Of the model.
            diverge: Whether trials have a divergence from a reference.
        """
        self._folder, self._diverge = folder, diverge
        self._inventory = inventory
        self._writers: dict[str, SummaryWriter] = {}

    def __call__(self, event: Event, state: StudyState) -> None:
        """Write one event."""
        if isinstance(event, Proposed):
            # What failed, and is tried again, would keep its first description.
            shutil.rmtree(self._folder / event.trial, ignore_errors=True)
        elif isinstance(event, Reported):
            writer = self._writer(event.trial)
            for name, value in rung_values(event.report).items():
                writer.add_scalar(name, value, event.report.step)
            writer.flush()
        elif isinstance(event, Paused):
            # Each open writer has a thread and a file, and many trials may wait. There is none if
            # an earlier run ended between report and pause.
            if event.trial in self._writers:
                self._writers.pop(event.trial).close()
        elif isinstance(event, Ended):
            trial, writer = state.trials[event.trial], self._writer(event.trial)
            # The writer's own `add_hparams` would open a second file, or this one anew.
            for summary in hparams(trial, self._inventory, self._diverge):
                writer.file_writer.add_summary(summary)
            for name, value in final_values(trial).items():
                writer.add_scalar(name, value, 0)
            picture = allocation_picture(trial.final, self._inventory)
            writer.add_image("allocation", picture, 0, dataformats="HWC")
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
            run.log(rung_values(event.report), step=event.report.step)
        elif isinstance(event, Ended):
            trial = state.trials[event.trial]
            run = self._run(trial)
            run.summary["status"] = trial.status
            if trial.test is not None:
                run.summary[f"test/{trial.test.metric}"] = trial.test.value
            if trial.reason is not None:
                run.summary["reason"] = trial.reason
            run.finish()
            del self._runs[event.trial]

    def close(self) -> None:
        """Finish the runs of trials that have not ended."""
        for run in self._runs.values():
            run.finish()

    def send_report(self, page: Path, front: Sequence[TrialState]) -> None:
        """Send a study's report as an artefact, and its front as a table, in a run of their own.

        Args:
            page: The report.
            front: Of the search.
        """
        import wandb

        rows = [_front_row(trial, self._inventory) for trial in front]
        run = self._begin(f"{self._study}-report", "report", {})
        if rows:
            data = [list(row.values()) for row in rows]
            run.log({"front": wandb.Table(columns=list(rows[0]), data=data)})
        artefact = wandb.Artifact(f"{self._study}-report", type="report")
        artefact.add_file(str(page))
        run.log_artifact(artefact)
        run.finish()

    def _run(self, trial: TrialState) -> Any:
        if trial.id not in self._runs:
            parameters = readable_parameters(trial, self._inventory)
            name = f"{self._study}-{trial.id}"
            self._runs[trial.id] = self._begin(name, trial.role, parameters)
        return self._runs[trial.id]

    def _begin(self, name: str, kind: str, parameters: Mapping[str, Any]) -> Any:
        return self._init(
            project=self._project,
            group=self._study,
            name=name,
            job_type=kind,
            config=dict(parameters),
            dir=str(self._folder),
            mode=self._mode,
            reinit="create_new",
        )


def send_report(config: StudyConfig, page: Path, inventory: Inventory, state: StudyState) -> None:
    """Send the report of a study to its project on W&B; say so where that fails.

    By then all is said and kept, whatever a server does.
    """
    assert config.wandb is not None
    try:
        sink = Wandb(config.wandb, config.name, config.folder, inventory)
        sink.send_report(page, state.front())
    except Exception as error:
        print(f"W&B did not get the report: {said(error)}", file=sys.stderr)


def _front_row(trial: TrialState, inventory: Inventory) -> dict[str, str | float | None]:
    assert trial.judged is not None
    return {
        "trial": trial.id,
        "status": trial.status,
        "megabytes": trial.memory_bytes / 1e6,
        "divergence": trial.judged.divergence,
        "validation_loss": trial.judged.loss,
        "average_bits": average_bits(trial.allocation, inventory),
        "average_rank": average_rank(trial.allocation, inventory),
    }


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
