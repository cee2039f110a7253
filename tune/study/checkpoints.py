"""Where the trials of a study keep what they need to go on, among its files."""

from pathlib import Path

CHECKPOINTS, REFERENCES = "checkpoints", "references"


def checkpoint_name(trial_id: str) -> str:
    """Return the name of a trial's checkpoint in its study's folder."""
    return f"{CHECKPOINTS}/{trial_id}.pt"


def remove_checkpoint(folder: Path, trial_id: str) -> None:
    """Delete the checkpoint of a trial that has ended, where there is one.

    Args:
        folder: Of the study.
        trial_id: Of the trial.
    """
    (folder / checkpoint_name(trial_id)).unlink(missing_ok=True)
