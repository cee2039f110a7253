"""A study's references, in files that workers read, and make again where they are gone."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from alrq_core.adapters.reference import Reference
from alrq_core.checkpoint import CheckpointError
from alrq_core.context import TrialContext
from alrq_core.files import claimed, spared
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation
from tune.on_ray.files import StudyFiles
from tune.study.checkpoints import REFERENCES, checkpoint_name
from tune.study.events import Role

# Between looks at what another process is making.
WAIT_SECONDS = 0.5


class References:
    """What one worker knows of the references, each read once."""

    def __init__(self, files: StudyFiles, allocation: Allocation | None) -> None:
        """Keep references among the files of a study.

        Args:
            files: Of the study.
            allocation: Of all references; None where trials start from nothing.
        """
        self._files, self._allocation = files, allocation
        self._known: dict[str, Reference] = {}

    def is_one(self, role: Role, run: TrialRun) -> bool:
        """Tell whether others start from a trial once it is trained: it has learnt from nothing."""
        if run.receipt.start is not None:
            return False
        return role == "reference" or (role != "control" and run.allocation == self._allocation)

    def keep(self, trial: str, run: TrialRun) -> None:
        """Write what a trial learnt."""
        run.reference().save(self._files.path(_name(trial)))
        with spared(self._files.folder, "references for other nodes"):
            self._files.send(_name(trial))

    def send_starts(self, trial: str) -> None:
        """Hand the corrections on that were made for what starts from a trial."""
        with spared(self._files.folder, "starts for other nodes"):
            self._files.send_folder(_starts(trial, self._known[trial]))

    def of(self, trial: str, context: TrialContext, seed: int) -> Reference:
        """Return the reference that a trial became.

        Where its file is gone or damaged, one worker makes it again, from the trial's checkpoint or
        by training it once more, to the same digits; others wait for that.

        Args:
            trial: Its id.
            context: What trials share.
            seed: Of its training.
        """
        path, fetched = self._files.path(_name(trial)), False
        while trial not in self._known:
            with suppress(ValueError):
                self._known[trial] = Reference.load(path, context.inventory.names)
                break
            with claimed(path) as mine:
                if mine and not fetched and self._fetched(trial):
                    self._fetch_starts(trial, context)
                elif mine:
                    self.keep(trial, self._trained(trial, context, seed))
                # What was brought here may be damaged too.
                fetched = fetched or mine
            time.sleep(0 if mine else WAIT_SECONDS)
        return self._known[trial]

    def _fetched(self, trial: str) -> bool:
        found = False
        with spared(self._files.folder, "references of other nodes"):
            found = self._files.fetch(_name(trial))
        return found

    def _fetch_starts(self, trial: str, context: TrialContext) -> None:
        with suppress(ValueError), spared(self._files.folder, "starts of other nodes"):
            read = Reference.load(self._files.path(_name(trial)), context.inventory.names)
            self._files.fetch_folder(_starts(trial, read))

    def _trained(self, trial: str, context: TrialContext, seed: int) -> TrialRun:
        assert self._allocation is not None
        run = TrialRun(context, self._allocation, seed, confirming=True)
        path = self._files.newest(checkpoint_name(trial))
        with suppress(CheckpointError):
            if path is not None:
                run.load_checkpoint(path)
        if run.step < context.recipe.max_steps:
            run.advance(context.recipe.max_steps)
        return run


def _name(trial: str) -> str:
    return f"{REFERENCES}/{trial}.safetensors"


def _starts(trial: str, reference: Reference) -> str:
    """Return the folder that `Reference.load` shares corrections in."""
    return f"{REFERENCES}/{trial}-{reference.checksum:08x}"


def forget_corrections(folder: Path) -> None:
    """Remove the corrections of a finished study, a few seconds' work to make again."""
    for beside in (folder / REFERENCES).glob("*/"):
        shutil.rmtree(beside, ignore_errors=True)
