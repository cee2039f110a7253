"""Writes a confirmed trial of a study as a folder that `alrq_core.load` or other engines read."""

from collections.abc import Mapping
from pathlib import Path

from alrq_core.context import make_context
from alrq_core.export.engines import write_for_transformers
from alrq_core.export.exact import save, write_exactly
from alrq_core.export.llama_cpp import write_for_llama_cpp
from alrq_core.trial import TrialRun
from tune.study.checkpoints import checkpoint_name
from tune.study.config import resumed_config
from tune.study.events import LOG_NAME, EventLog
from tune.study.prepare import prepare
from tune.study.record import check_same_study
from tune.study.state import StudyState, TrialState

FORMS = {
    "alrq": write_exactly,
    "transformers": write_for_transformers,
    "gguf": write_for_llama_cpp,
}


def export_trial(
    study: Path,
    trial_id: str,
    target: Path,
    places: Mapping[str, str] | None = None,
    form: str = "alrq",
) -> TrialState:
    """Write a confirmed trial into a new folder; return the trial.

    Args:
        study: Folder of the study.
        trial_id: A confirmed allocation, for its first completed seed, or one of its runs
            (`t007-s2`).
        target: The folder to make.
        places: Where `model` and `data` lie now, if not where they did.
        form: `alrq`, exact, `transformers`, or `gguf` for llama.cpp.

    Raises:
        ValueError: No such form, or one that can't hold the allocation; no study, no confirmed
            trial of that id, other data or another model than it began with, or the target exists.
    """
    if form not in FORMS:
        raise ValueError(
            f"`--as` must be one of {', '.join(FORMS)}, got {form!r}. Use one of those."
        )
    if target.exists():
        raise ValueError(
            f"`--to` must not exist yet, got {str(target)!r}. Remove it or choose another folder."
        )
    prepared = prepare(resumed_config(study, places or {}))
    check_same_study(prepared, study)
    state = StudyState(prepared.inventory.names).replay(EventLog(study / LOG_NAME).read())
    trial = _confirmed(state, study, trial_id)
    context = make_context(prepared.inventory, prepared.task, prepared.config.recipe)
    run = TrialRun(context, trial.allocation, trial.seed)
    run.load_checkpoint(study / checkpoint_name(trial.id))
    save(run, target, FORMS[form])
    return trial


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
