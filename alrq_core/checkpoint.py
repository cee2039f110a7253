"""Writes a trial in the middle of its training to a file, and continues it exactly from there."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alrq_core.files import replaced
from alrq_core.kept import Kept
from alrq_core.randomness import Randomness
from alrq_core.records import Receipt, TrialReport
from alrq_core.training import Training

CHECKSUM_BYTES = 4


class CheckpointError(ValueError):
    """A checkpoint's file is not as it was written."""


def write_checkpoint(
    path: Path,
    training: Training,
    randomness: Randomness,
    receipt: Receipt,
    reports: Sequence[TrialReport],
    best: Kept | None = None,
) -> None:
    """Write all that `read_checkpoint` needs, at once or not at all.

    Args:
        path: The file.
        training: As far as it is.
        randomness: The trial's own random numbers.
        receipt: Of the trial so far.
        reports: Of its rungs so far.
        best: Of a trial that started from a reference, the state that it keeps.

    Raises:
        OSError: The file can't be written.
    """
    state = {
        "reports": [report.to_json() for report in reports],
        "receipt": receipt.to_json(),
        "randomness": randomness.states,
        "best": None if best is None else [best.report.to_json(), best.trained, best.losses],
        **training.state(),
    }
    # Torch's own writer calls a full disk a RuntimeError without an errno.
    whole = io.BytesIO()
    torch.save(state, whole)
    found = zlib.crc32(whole.getbuffer()).to_bytes(CHECKSUM_BYTES, "little")
    with replaced(path) as partial:
        partial.write_bytes(found + whole.getvalue())


def read_checkpoint(
    path: Path, training: Training, randomness: Randomness, device: torch.device
) -> tuple[Receipt, list[TrialReport], Kept | None]:
    """Bring a new trial of the same allocation and seed to where the written one was.

    Args:
        path: As given to `write_checkpoint`.
        training: Before its first step; it is put where the other was.
        randomness: Likewise.
        device: Of the model.

    Returns:
        The receipt, the reports and the state that is kept.

    Raises:
        CheckpointError: The file is cut short or damaged; nothing was changed.
    """
    content = path.read_bytes()
    found, whole = content[:CHECKSUM_BYTES], memoryview(content)[CHECKSUM_BYTES:]
    if found != zlib.crc32(whole).to_bytes(CHECKSUM_BYTES, "little") or not whole:
        raise CheckpointError(
            f"`{path}` must be a checkpoint as it was written, got {len(content)} bytes with "
            "another checksum. Restore it from a copy; an unended trial begins anew without it."
        )
    state: dict[str, Any] = torch.load(io.BytesIO(whole), weights_only=True, map_location=device)
    receipt = Receipt.from_json(state["receipt"])
    training.load_state(state, receipt.ranks)
    randomness.states = [generator.cpu() for generator in state["randomness"]]
    best = state["best"]
    kept = None if best is None else Kept(TrialReport(**best[0]), best[1], best[2].cpu())
    return receipt, [TrialReport(**report) for report in state["reports"]], kept
