"""Writes a confirmed trial of a study as a folder that `alrq_core.load` or other engines read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from alrq_core.context import make_context
from alrq_core.data.encode import EncodedTask
from alrq_core.export.engines import write_for_transformers
from alrq_core.export.exact import save, write_exactly
from alrq_core.export.llama_cpp import write_for_llama_cpp
from alrq_core.memory.host import Host
from alrq_core.recipe import Recipe
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation
from search_spaces.inventory import Inventory
from tune.report.facts import read_facts
from tune.report.model_card import Evidence, evidence
from tune.study.checkpoints import checkpoint_name
from tune.study.config import StudyConfig
from tune.study.events import LOG_NAME, EventLog
from tune.study.prepare import fit, read
from tune.study.record import check_same_study
from tune.study.state import StudyState, TrialState

FORMS = {
    "alrq": write_exactly,
    "transformers": write_for_transformers,
    "gguf": write_for_llama_cpp,
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """All that a machine needs to write a confirmed trial, besides the model itself.

    Attributes:
        inventory, task, recipe: Of the study.
        trial: Its id.
        allocation: Its bits and ranks.
        seed: Of its training.
        step: That it was trained to.
        checkpoint: What its file holds.
        form: See `find_export`.
        evidence: What the study measured of it, for the card; None for nothing.
    """

    inventory: Inventory
    task: EncodedTask
    recipe: Recipe
    trial: str
    allocation: Allocation
    seed: int
    step: int
    checkpoint: bytes
    form: str
    evidence: Evidence | None

    def write(self, target: Path, name: str | None = None) -> None:
        """Write the trial into a new folder.

        Args:
            target: To make.
            name: By which it is called in what it says of itself; None for its own.

        Raises:
            ValueError: The form can't hold the allocation, or the folder exists.
        """
        context = make_context(self.inventory, self.task, self.recipe)
        run = TrialRun(context, self.allocation, self.seed)
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "checkpoint"
            path.write_bytes(self.checkpoint)
            run.load_checkpoint(path)
        if run.reports[-1].step != self.step:
            raise ValueError(
                f"`--export` must find the checkpoint of {self.trial} at its end, at step "
                f"{self.step}, got one of step {run.reports[-1].step}. Go on with the study, which "
                "brings it."
            )
        save(run, target, self._write, name)

    def _write(self, run: TrialRun, folder: Path, name: str) -> None:
        FORMS[self.form](run, folder, name)
        if self.evidence is not None:
            self.evidence.add_to(folder)


def check_export(form: str, target: Path) -> None:
    """Check that there is such a form, and no such folder yet.

    Raises:
        ValueError: There isn't, or there is.
    """
    if form not in FORMS:
        raise ValueError(
            f"`--as` must be one of {', '.join(FORMS)}, got {form!r}. Use one of those."
        )
    if target.exists():
        raise ValueError(
            f"`--to` must not exist yet, got {str(target)!r}. Remove it or choose another folder."
        )


def find_export(
    study: Path,
    trial_id: str,
    config: StudyConfig,
    form: str = "alrq",
    hosts: Sequence[Host] | None = None,
) -> Export:
    """Return what is needed to write a confirmed trial.

    Args:
        study: Folder of the study.
        trial_id: A confirmed allocation, for its first completed seed, or one of its runs
            (`t007-s2`).
        config: Of the study, with the places where model and data lie now.
        form: `alrq`, exact, `transformers`, or `gguf` for llama.cpp.
        hosts: The machines that could write it; None for this one.

    Raises:
        ValueError: No study, no confirmed trial of that id, other data or another model than it
            began with.
    """
    prepared = fit(read(config, hosts=hosts))
    check_same_study(prepared, study)
    state = StudyState(prepared.inventory.names).replay(EventLog(study / LOG_NAME).read())
    trial = _confirmed(state, study, trial_id)
    return Export(
        inventory=prepared.inventory,
        task=prepared.task,
        recipe=prepared.config.recipe,
        trial=trial.id,
        allocation=trial.allocation,
        seed=trial.seed,
        step=trial.reports[-1].step,
        checkpoint=(study / checkpoint_name(trial.id)).read_bytes(),
        form=form,
        evidence=evidence(read_facts(study), trial.source),
    )


def _confirmed(state: StudyState, study: Path, trial_id: str) -> TrialState:
    runs = [
        trial
        for trial in state.confirmed_runs()
        if trial_id in (trial.id, trial.source) and (study / checkpoint_name(trial.id)).is_file()
    ]
    if not runs:
        known = sorted({trial.source for trial in state.confirmed_runs()})
        raise ValueError(
            f"`--trial` must be a confirmed trial with its checkpoint, got {trial_id!r}. "
            f"Confirmed in this study: {', '.join(known) or 'none yet; resume it first'}."
        )
    return runs[0]
