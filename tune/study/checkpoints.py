"""Where the trials of a study keep what they need to go on."""

from pathlib import Path

CHECKPOINTS = "checkpoints"


def checkpoint_path(folder: Path, trial_id: str) -> Path:
    """Return where a trial's checkpoint lies."""
    return folder / f"{trial_id}.pt"


def remove_checkpoint(folder: Path, trial_id: str) -> None:
    """Delete the checkpoint of a trial that has ended, where there is one."""
    checkpoint_path(folder, trial_id).unlink(missing_ok=True)
