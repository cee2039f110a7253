"""A study's references, in files that workers read, and make again where they are gone."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.files import claimed
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation
from tune.study.checkpoints import CHECKPOINTS, checkpoint_path
from tune.study.events import Role

REFERENCES = "references"
# Between looks at what another process is making.
WAIT_SECONDS = 0.5


class References:
    """What one worker knows of the references, each read once."""

    def __init__(self, folder: Path, allocation: Allocation | None) -> None:
        """Keep references below the folder of a study.

        Args:
            folder: Of the study.
            allocation: Of all references; None where trials start from nothing.
        """
        self._folder, self._allocation = folder, allocation
        self._known: dict[str, Reference] = {}

    def path(self, trial: str) -> Path:
        """Return the file of a trial that is a reference."""
        return self._folder / REFERENCES / f"{trial}.safetensors"

    def is_one(self, role: Role, run: TrialRun) -> bool:
        """Tell whether others start from a trial once it is trained: it has learnt from nothing."""
        if run.receipt.start is not None:
            return False
        return role == "reference" or (role != "control" and run.allocation == self._allocation)

    def keep(self, trial: str, run: TrialRun) -> None:
        """Write what a trial learnt."""
        run.reference().save(self.path(trial))

    def of(self, trial: str, context: TrialContext, seed: int) -> Reference:
        """Return the reference that a trial became.

        Where its file is gone or damaged, one worker makes it again, from the trial's checkpoint or
        by training it once more, to the same digits; others wait for that.

        Args:
            trial: Its id.
            context: What trials share.
            seed: Of its training.
        """
        while trial not in self._known:
            with suppress(ValueError):
                self._known[trial] = Reference.load(self.path(trial), context.inventory.names)
                break
            with claimed(self.path(trial)) as mine:
                if mine:
                    self.keep(trial, self._trained(trial, context, seed))
            time.sleep(0 if mine else WAIT_SECONDS)
        return self._known[trial]

    def _trained(self, trial: str, context: TrialContext, seed: int) -> TrialRun:
        assert self._allocation is not None
        run = TrialRun(context, self._allocation, seed, confirming=True)
        checkpoint = checkpoint_path(self._folder / CHECKPOINTS, trial)
        if checkpoint.is_file():
            run.load_checkpoint(checkpoint)
        if run.step < context.recipe.max_steps:
            run.advance(context.recipe.max_steps)
        return run


def forget_corrections(folder: Path) -> None:
    """Remove the corrections of a finished study, a few seconds' work to make again."""
    for beside in (folder / REFERENCES).glob("*/"):
        shutil.rmtree(beside, ignore_errors=True)
