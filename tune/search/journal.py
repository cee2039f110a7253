"""Optuna's view of a search, kept in a file that its dashboard reads."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from search_spaces.spaces import Space
from tune.search.parameters import distributions, to_params
from tune.search.tried import Tried

STUDY_NAME = "alrq"
STORAGE_NAME = "optuna.journal"

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal:
    """An Optuna study that is told the truth about every trial and its rung.

    Optuna counts a stopped trial as pruned, without values, and a failed one as failed: only
    trials that are judged at equal fidelity enter its front.

    Attributes:
        numbers: Trial id to Optuna's number of the trial.
    """

    def __init__(
        self, folder: Path, space: Space, sampler: BaseSampler | None, objective: str
    ) -> None:
        """Start an empty study in `folder`, over what may be there.

        Args:
            folder: Of the study.
            space: What is searched.
            sampler: Draws what is asked for; None where nothing is.
            objective: What is minimised beside megabytes, for the dashboard.
        """
        self._space = space
        # In a fixed space nothing is drawn.
        self._distributions = {} if space.fixed else distributions(space)
        path = folder / STORAGE_NAME
        path.unlink(missing_ok=True)
        self._file = _JournalFile(path)
        self._study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=JournalStorage(self._file),
            sampler=sampler,
            directions=["minimize", "minimize"],
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names([objective, "memory (MB)"])
        self.numbers: dict[str, int] = {}

    def ask(self, trial_id: str) -> Trial:
        """Return a new trial, drawn by the sampler, which is running from now on."""
        trial = self._study.ask(self._distributions)
        trial.set_user_attr("trial", trial_id)
        self._keep(trial_id)
        return trial

    def add(self, trial: Tried, sampler: BaseSampler | None) -> None:
        """Take in a trial that was proposed elsewhere or before, as running.

        Args:
            trial: Its allocation counts, however it ended.
            sampler: That would have drawn it.
        """
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=to_params(trial.allocation, self._space),
                distributions=self._distributions,
                user_attrs={"trial": trial.id},
            )
        )
        added = self._keep(trial.id)
        if isinstance(sampler, BaseGASampler):
            # It breeds from trials whose generation it noted, and notes their parents only once.
            generation = sampler.get_trial_generation(self._study, added)
            sampler.get_parent_population(self._study, generation)
        self._file.flush()

    def _keep(self, trial_id: str) -> FrozenTrial:
        """Note the newest trial, and write it."""
        added = self._trial(len(self.numbers))
        self.numbers[trial_id] = added.number
        # Optuna makes them anew for each trial, ten times what all else of a trial takes.
        added.distributions = self._distributions
        self._file.flush()
        return added

    def _trial(self, number: int) -> FrozenTrial:
        """Return a trial as Optuna keeps it."""
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        return storage.get_trial(trial_id)

    def tell(self, trial: Tried) -> None:
        """Note which rung a trial reached, and how it ended if it did; what is known is final."""
        number = self.numbers[trial.id]
        frozen = self._trial(number)
        if frozen.state.is_finished():
            return
        storage = self._study._storage
        details: dict[str, Any] = {"memory_bytes": trial.memory_bytes, "rungs": trial.rungs}
        found = {"step": trial.step, "objective": trial.objective, "reason": trial.reason}
        details |= {key: value for key, value in found.items() if value is not None}
        for key, value in details.items():
            storage.set_trial_user_attr(frozen._trial_id, key, value)
        if trial.ended == "completed" and trial.objective is not None:
            self._study.tell(number, [trial.objective, trial.memory_bytes / 1e6])
        elif trial.ended == "stopped":
            self._study.tell(number, state=TrialState.PRUNED)
        elif trial.ended == "failed":
            self._study.tell(number, state=TrialState.FAIL)
        self._file.flush()


class _JournalFile(BaseJournalBackend):
    """A file of Optuna's journal that one process writes, for others to read.

    Optuna's own takes a lock and waits for the disk at each parameter of each proposal, half of
    what a proposal of 144 takes. Here nothing depends on the file: it is made from the event log
    whenever a study goes on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = 0
        # Those that Optuna has not read back yet, and those that are not in the file.
        self._unread: list[dict[str, Any]] = []
        self._unwritten: list[str] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return what was appended since; what came before is never asked for again."""
        self._unread = self._unread[log_number_from - self._first :]
        self._first = log_number_from
        return list(self._unread)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Take in logs, which `flush` writes."""
        self._unread += logs
        self._unwritten += [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]

    def flush(self) -> None:
        """Write what was appended since the last time."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(self._unwritten)
        self._unwritten.clear()
