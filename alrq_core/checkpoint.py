"""Writes a trial in the middle of its training to a file, and continues it exactly from there."""

import io
from pathlib import Path
from typing import Any

import torch

from alrq_core.files import replaced
from alrq_core.kept import Kept
from alrq_core.randomness import Randomness
from alrq_core.records import Receipt, TrialReport
from alrq_core.training import Training


def write_checkpoint(
    path: Path,
    training: Training,
    randomness: Randomness,
    receipt: Receipt,
    report: TrialReport,
    best: Kept | None = None,
) -> None:
    """Write all that `read_checkpoint` needs, at once or not at all.

    Args:
        path: The file.
        training: As far as it is.
        randomness: The trial's own random numbers.
        receipt: Of the trial so far.
        report: Its last one.
        best: Of a trial that started from a reference, the state that it keeps.

    Raises:
        OSError: The file can't be written.
    """
    state = {
        "report": report.to_json(),
        "receipt": receipt.to_json(),
        "randomness": randomness.states,
        "best": None if best is None else [best.report.to_json(), best.trained, best.losses],
        **training.state(),
    }
    # Torch's own writer calls a full disk a RuntimeError without an errno.
    whole = io.BytesIO()
    torch.save(state, whole)
    with replaced(path) as partial:
        partial.write_bytes(whole.getbuffer())


def read_checkpoint(
    path: Path, training: Training, randomness: Randomness, device: torch.device
) -> tuple[Receipt, TrialReport, Kept | None]:
    """Bring a new trial of the same allocation and seed to where the written one was.

    Args:
        path: As given to `write_checkpoint`.
        training: Before its first step; it is put where the other was.
        randomness: Likewise.
        device: Of the model.

    Returns:
        The receipt, the last report and the state that is kept.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    receipt = Receipt.from_json(state["receipt"])
    training.load_state(state, receipt.ranks)
    randomness.states = [generator.cpu() for generator in state["randomness"]]
    best = state["best"]
    kept = None if best is None else Kept(TrialReport(**best[0]), best[1], best[2].cpu())
    return receipt, TrialReport(**state["report"]), kept
