"""All that a report says of a study, read from its folder alone, also while it runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Allocation, from_json
from search_spaces.inventory import Inventory, TargetModule
from tune.report.confirmation import Confirmed, confirmed
from tune.report.controls import Agreement, Comparison, agreements, comparisons
from tune.report.recommendation import best_that_fits
from tune.study.config import StudyConfig, load_study_file
from tune.study.events import LOG_NAME, EventLog, Started
from tune.study.finalists import compared_finalist
from tune.study.plan import COMPARATOR
from tune.study.state import StudyState, TrialState
from tune.study.study import load_study_table

RUNNING = "No recommendation yet: the study has not ended."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a study.

    Attributes:
        folder: Of it.
        config: Its flags.
        inventory: Of its model.
        splits: Sizes of its splits, and their source.
        runs: Versions, machine and commit of each run of the program on it.
        state: All trials.
        seconds: Wall time of its runs, from the log.
        rows: What was confirmed, from the smallest to the largest.
        text: Which allocation is recommended, or why none is.
        recommended: Its trial; None for none.
        expected: Trial id to the objective that the search's model expects, of those on its front.
        table: What each module was predicted to do; None where that was not measured.
    """

    folder: Path
    config: StudyConfig
    inventory: Inventory
    splits: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    state: StudyState
    seconds: float
    rows: Sequence[Confirmed]
    text: str
    recommended: str | None
    expected: Mapping[str, float]
    table: VisibilityTable | None

    @property
    def comparator(self) -> str:
        """What all is compared to."""
        return self.config.comparator or COMPARATOR

    @property
    def reference(self) -> Confirmed | None:
        """The comparator, if it is confirmed."""
        return self.row(self.comparator)

    def row(self, trial: str | None) -> Confirmed | None:
        """Return what was confirmed of a trial; None for nothing."""
        return next((row for row in self.rows if row.trial == trial), None)

    def against(self, comparator: str, trial: str) -> Confirmed | None:
        """Return what was confirmed of a trial, compared with another one than usual."""
        if self.row(comparator) is None:
            return None
        rows = confirmed(self.state, self.inventory, None, comparator)
        return next((row for row in rows if row.trial == trial), None)

    def allocation(self, row: Confirmed) -> Allocation:
        """Return the allocation of a confirmed row: with AdaLoRA, as its first run ended."""
        run = self.first_run(row)
        return from_json(row.allocation) if run is None else run.final

    def first_run(self, row: Confirmed) -> TrialState | None:
        """Return the run of a confirmed row that an export takes: that of its first seed."""
        runs = (run for run in self.state.confirmed_runs() if run.source == row.trial)
        return next(runs, None)

    @cached_property
    def chosen(self) -> Confirmed | None:
        """The allocation that the report is about: the recommended one, or else the best that fits,
        or else what the search found to be nearest to it.
        """
        if self.recommended is not None:
            return self.row(self.recommended)
        limit = self.config.max_memory_bytes
        found = [row for row in self.rows if row.role == "search"]
        others = [row for row in self.rows if row.trial != self.comparator]
        if limit is not None and (best := best_that_fits(others, limit)) is not None:
            return best
        return max(found, key=lambda row: row.memory_bytes) if found else None

    @cached_property
    def runner_up(self) -> Confirmed | None:
        """What is shown beside it: the finalist with controls, or what is nearest in bytes."""
        if self.chosen is None:
            return None
        size, kinds = self.chosen.memory_bytes, ("search", "control")
        found = self.comparisons[0].trial if self.comparisons else None
        near = [
            (row.trial != found, kinds.index(row.role), abs(row.memory_bytes - size), row.trial)
            for row in self.rows
            if row.role in kinds
            and row.allocation != self.chosen.allocation
            and not row.trial.endswith("+")
        ]
        return self.row(min(near)[-1]) if near else None

    @cached_property
    def agreements(self) -> list[Agreement]:
        """How table and rungs ordered the trials."""
        return agreements(self.state, self.table)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The finalist with controls beside them."""
        found = compared_finalist(self.state, self.expected)
        return comparisons(self.state, self.rows, found, self.comparator)

    @property
    def started(self) -> bool:
        """Whether trials start from a reference, and are judged by their divergence from it."""
        return any(trial.reference is not None for trial in self.searched)

    @property
    def points(self) -> list[tuple[float, float]]:
        """The root of what is minimised and the logarithm of bytes of each comparable trial of the
        search, in order: as the search sees them.
        """
        return [
            (math.sqrt(max(0.0, trial.judged.objective)), math.log(trial.memory_bytes))
            for trial in self.searched
            if trial.comparable and trial.judged is not None
        ]

    @property
    def searched(self) -> list[TrialState]:
        """The trials of the search, screened ones included, in order."""
        return [trial for trial in self.state.trials.values() if trial.searched]


def read_facts(folder: Path) -> Facts:
    """Return what a study's folder says, whether the study runs, has ended, or was interrupted.

    Raises:
        ValueError: No study, or one whose files this release can't read.
    """
    try:
        return _read(folder)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"`--report` must be a study of a release with the same files, got {str(folder)!r} "
            f"({type(error).__name__}: {error}). Use the release that began it."
        ) from error


def _read(folder: Path) -> Facts:
    content = load_study_file(folder, flag="--report", any_version=True)
    inventory = inventory_of(content["inventory"])
    state = StudyState(inventory.names)
    times: list[tuple[float, bool]] = []
    for logged, event in EventLog(folder / LOG_NAME).timed():
        state.apply(event)
        if logged is not None:
            times.append((logged, isinstance(event, Started)))
    config = StudyConfig.from_json(content["config"])
    rows = confirmed(state, inventory, None, config.comparator or COMPARATOR)
    text, recommended = _verdict(folder, rows)
    front = _json(folder / "front.json").get("expected_front", [])
    return Facts(
        folder=folder,
        config=config,
        inventory=inventory,
        splits=content["splits"],
        runs=content.get("runs", []),
        state=state,
        seconds=_worked(times),
        rows=rows,
        text=text,
        recommended=recommended,
        expected={
            row["trial"]: row["expected_objective"]
            for row in front
            if row["expected_objective"] is not None
        },
        table=_table(folder),
    )


def _table(folder: Path) -> VisibilityTable | None:
    """Return the visibility table, where there is one that this release reads."""
    try:
        return load_study_table(folder)
    except ValueError:
        return None


def inventory_of(content: dict[str, Any]) -> Inventory:
    """Return the inventory that a study has kept."""
    modules = {
        name: tuple(TargetModule(**module) for module in content[name])
        for name in ("targets", "embeddings")
    }
    return Inventory(**{**content, **modules})


def _verdict(folder: Path, rows: Sequence[Confirmed]) -> tuple[str, str | None]:
    """Return what the study's last run ended with, unless more has been confirmed since."""
    content = _json(folder / "confirmation.json")
    known = {row["trial"]: tuple(row["seeds"]) for row in content.get("confirmed", [])}
    if not content or known != {row.trial: row.seeds for row in rows}:
        return RUNNING, None
    return content["reason"], content["recommendation"]


def _json(path: Path) -> dict[str, Any]:
    """Return what a file holds; nothing where there is none yet."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _worked(times: Sequence[tuple[float, bool]]) -> float:
    """Return the time between events, without that between runs of the program."""
    logged = np.array([time for time, _ in times])
    begins = np.array([begin for _, begin in times])
    return float(np.diff(logged)[~begins[1:]].sum()) if len(logged) > 1 else 0.0
