"""Runs trials in Ray's workers, one rung a step, with everything shared kept between trials."""

import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname as hostname
from typing import Any

import torch
from ray import tune as ray_tune

from alrq_core.adapters.reference import Reference
from alrq_core.checkpoint import CheckpointError
from alrq_core.context import TrialContext, make_context
from alrq_core.data.encode import EncodedTask
from alrq_core.files import spared
from alrq_core.memory.machine import free_device_memory, out_of_memory, peak_memory_bytes
from alrq_core.receipt import ReceiptError
from alrq_core.recipe import Recipe
from alrq_core.records import TrialReport
from alrq_core.sensitivity.shifts import Steps, measure_table
from alrq_core.sensitivity.table import VisibilityTable
from alrq_core.training import TrainingDivergedError
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, decode
from search_spaces.costs import format_bytes
from search_spaces.inventory import Inventory
from search_spaces.spaces import Space
from tune.on_ray.files import StudyFiles
from tune.on_ray.references import References
from tune.on_ray.trial_spec import TrialSpec
from tune.study.checkpoints import checkpoint_name
from tune.study.config import STUDY_FILE
from tune.study.schedulers import rungs_of
from tune.study.store import Store
from tune.study.study import Outcome, Progress

OUTCOME = "outcome"
# Exit code of a process whose device has failed.
BROKEN = 70
REASON_LENGTH = 300
UNSHARED = "the study's folder {} is not what its driver sees, on {}: all nodes must share it"
# Between reports of how many codes or starts are made.
TELL_SECONDS = 2.0
# Steps, and seconds, between those of how far training is.
TELL_STEPS, TELL_STEPS_SECONDS = 10, 10.0


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """What every worker of a study gets once.

    Attributes:
        inventory: The model and its target modules.
        task: The tokens.
        recipe: The training recipe.
        folder: Of the study; all workers can write to it, or there is a store.
        store: By which workers hand files on; None to share the folder.
        began: When the study began, in seconds since 1970.
        space: What is searched.
        reference: The allocation of what trials start from; None if they learn from nothing.
        threads: Threads of a trial.
    """

    inventory: Inventory
    task: EncodedTask
    recipe: Recipe
    folder: Path
    space: Space
    reference: Allocation | None
    threads: int
    store: Store | None = None
    began: float = 0.0


class OutOfMemoryError(RuntimeError):
    """A trial does not fit on its device, not even in smaller micro-batches."""


class AllocationTrainable(ray_tune.Trainable):
    """One trial after another in one process. Its steps are rungs; the scheduler ends it."""

    # Whether its device has failed, which no later call to it survives.
    _broken = False
    # The checkpoint that it may have a copy of.
    _copied: str | None = None

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], context: WorkerContext
    ) -> None:
        """Load the model once; the first trial is built at its first step."""
        torch.set_num_threads(context.threads)
        self._context = context
        self._files = StudyFiles.on_this_node(context.folder, context.store, context.began)
        self._references = References(self._files, context.reference)
        self._shared: TrialContext | None = None
        # While codes are made; and whether all are there.
        self._codes: Iterator[tuple[int, int]] | None = None
        self._has_codes = False
        self._tell_at = 0.0
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over the next trial without a new process.

        Unless the device is broken for this one: then it ends, and Ray starts another.
        """
        if self._broken:
            os._exit(BROKEN)
        self._smaller: TrialContext | None = None
        if self._copied is not None:
            self._files.let_go(self._copied)
        self._spec = TrialSpec.from_config(new_config)
        self._copied = checkpoint_name(self._spec.trial)
        self._run: TrialRun | None = None
        self._untold: list[TrialReport] = []
        # Of a reference that is trained, until what trials need that start from it is made.
        self._ended: Outcome | None = None
        self._table: Steps[VisibilityTable] | None = None
        self._reported = -1
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung. An exception becomes the trial's reason to fail.

        What takes long before the first trial returns now and then, to tell how far it is.
        """
        try:
            if self._shared is None and not self._sees_study():
                # On a node that joined the cluster after the study had begun.
                return {OUTCOME: self._failed(UNSHARED.format(self._context.folder, hostname()))}
            if (codes := self._codes_so_far()) is not None:
                return {OUTCOME: Outcome(progress=Progress("codes", *codes))}
            outcome = self._ended or self._rung_that_fits()
            return {OUTCOME: outcome if self._ended is None else self._after_starts()}
        except torch.AcceleratorError as error:
            self._broken = True
            return {OUTCOME: self._failed(f"the device failed: {error}")}
        except (OutOfMemoryError, ReceiptError, TrainingDivergedError) as error:
            return {OUTCOME: self._failed(str(error))}
        except Exception as error:
            # Whatever a library raises is this trial's failure, not the study's.
            traceback.print_exc()
            return {OUTCOME: self._failed(f"{type(error).__name__}: {error}")}

    def cleanup(self) -> None:
        """Let go of the model."""
        self._run = self._shared = None

    def _rung_that_fits(self) -> Outcome:
        """Return the next rung, with smaller micro-batches where the device runs out of memory.

        Predictions can be wrong, and other processes on a card may take more than they did.
        """
        try:
            return self._next_rung()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            context = self._smaller or self._loaded()
            peak, used = peak_memory_bytes(context.device), context.recipe.micro_batch
            fewer = None if self._smaller is not None else context.recipe.smaller_batches
            told = f"out of memory with micro-batches of {used}, at a peak of {format_bytes(peak)}"
            if fewer is None:
                raise OutOfMemoryError(f"{told}. {error}") from error
        # The exception is gone here, whose frames hold tensors.
        print(f"{self._spec.trial}: {told}; again with {fewer.micro_batch}", file=sys.stderr)
        self._run, self._smaller = None, self._loaded().trained_by(fewer)
        free_device_memory(context.device)
        return self._rung_that_fits()

    def _next_rung(self) -> Outcome:
        spec = self._spec
        if self._run is None:
            self._run = TrialRun(
                self._smaller or self._loaded(),
                self._allocation,
                spec.seed,
                confirming=spec.confirm,
                reference=self._reference,
                labels=spec.labels,
            )
            self._untold = self._from_checkpoint(self._run)
        if self._untold:
            return self._outcome(self._untold.pop(0))
        step = next(s for s in self._rungs if s > self._reported)
        if (progress := self._train_towards(self._run, step)) is not None:
            return Outcome(progress=progress)
        report = self._run.advance(step)
        # What was measured counts all the same; without the file it is trained again after a crash.
        name = checkpoint_name(spec.trial)
        with spared(self._files.path(name).parent, f"checkpoint of {spec.trial}"):
            self._run.save_checkpoint(self._files.path(name))
            self._files.send(name)
        return self._outcome(report)

    def _train_towards(self, run: TrialRun, step: int) -> Progress | None:
        """Train for a while; return how far it is, or None once it is nearly there.

        Of the search's own trials, whose rungs are near, nobody waits for one.
        """
        while self._spec.confirm and run.step + TELL_STEPS < step:
            run.train(run.step + TELL_STEPS)
            if self._tells(TELL_STEPS_SECONDS):
                return Progress("training", run.step, step)
        return None

    def _from_checkpoint(self, run: TrialRun) -> list[TrialReport]:
        """Bring a new run to where its trial was, where that is known; return its reports.

        Which of them the study knows depends on how it ended: it is told all once more.
        """
        path = self._files.newest(checkpoint_name(self._spec.trial))
        if path is None:
            return []
        try:
            run.load_checkpoint(path)
        except CheckpointError as error:
            print(f"{self._spec.trial} is trained again from its start: {error}", file=sys.stderr)
        return list(run.reports)

    def _sees_study(self) -> bool:
        return self._files.newest(STUDY_FILE) is not None

    def _outcome(self, report: TrialReport) -> Outcome:
        run, spec = self._run, self._spec
        assert run is not None
        self._reported = report.step
        last = report.step == self._rungs[-1]
        test = run.test() if spec.tested and last else None
        outcome = Outcome(report=report, receipt=run.receipt, test=test)
        if last and spec.confirm and self._references.is_one(spec.role, run):
            self._references.keep(spec.trial, run)
            formats = self._context.space.adapted_formats
            self._starts = self._loaded().make_corrections(self._own_reference, formats)
            # Told at once: before the first one is there, gradients of the answers are collected.
            self._ended, self._tell_at = outcome, 0.0
        return outcome

    def _after_starts(self) -> Outcome:
        """Make for a while what trials need that will start from this one; return how far it is, or
        how the trial ended, with the table of the search.
        """
        for found in self._starts:
            if self._tells(TELL_SECONDS):
                return Outcome(progress=Progress("starts", *found))
        outcome, searched = self._ended, self._spec.role == "reference"
        assert outcome is not None and outcome.report is not None
        if self._table is None:
            self._references.send_starts(self._spec.trial)
        if self._table is None and searched:
            resolution = outcome.report.loss_standard_error
            space, reference = self._context.space, self._own_reference
            self._table = measure_table(self._loaded(), space, reference, resolution)
        if searched:
            return self._measured(outcome)
        self._ended = None
        return outcome

    def _measured(self, outcome: Outcome) -> Outcome:
        """Measure for a while; return how far it is, or the outcome with the table."""
        assert self._table is not None
        try:
            while True:
                found = next(self._table)
                if self._tells(TELL_SECONDS):
                    return Outcome(progress=Progress("table", *found))
        except StopIteration as end:
            self._ended = self._table = None
            return replace(outcome, table=end.value)

    def _tells(self, seconds: float) -> bool:
        """Whether it is time to tell how far work is, and not again for so many seconds."""
        now = time.monotonic()
        if now < self._tell_at:
            return False
        self._tell_at = now + seconds
        return True

    @property
    def _own_reference(self) -> Reference:
        spec = self._spec
        return self._references.of(spec.trial, self._loaded(), spec.seed)

    def _failed(self, reason: str) -> Outcome:
        receipt = self._run.receipt if self._run is not None else None
        # Of codes too the next trial makes what this one could not, or fails for the same reason.
        self._run = self._ended = self._codes = None
        return Outcome(error=" ".join(reason.split())[:REASON_LENGTH], receipt=receipt)

    def _codes_so_far(self) -> tuple[int, int] | None:
        """Make codes for a while; return how many are there, of how many, or None once all are."""
        if self._has_codes:
            return None
        context, space = self._context, self._context.space
        if self._shared is None:
            self._shared = make_context(context.inventory, context.task, context.recipe)
        if self._codes is None:
            formats = {name: space.formats_of(name) for name in context.inventory.names}
            self._codes = self._shared.make_codes(formats)
        for found in self._codes:
            if self._tells(TELL_SECONDS):
                return found
        self._codes, self._has_codes = None, True
        # What libraries and base model hold stays: to search it for garbage before each trial
        # takes a quarter of a second.
        gc.collect()
        gc.freeze()
        return None

    def _loaded(self) -> TrialContext:
        assert self._shared is not None
        return self._shared

    @property
    def _reference(self) -> Reference | None:
        spec = self._spec
        if spec.reference is None:
            return None
        return self._references.of(spec.reference, self._loaded(), spec.seed)

    @property
    def _allocation(self) -> Allocation:
        return decode(self._spec.allocation, self._context.inventory.names)

    @property
    def _rungs(self) -> tuple[int, ...]:
        return rungs_of(self._context.recipe, self._spec.role, self._spec.reference is not None)
