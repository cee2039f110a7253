"""Writes a confirmed trial on a node of the kind that trained it, since codes are its device's."""

import io
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import ray

from alrq_core.files import partial_path, unpack
from tune.report.exporting import Export

FOLDER = "model"


def export_on_node(export: Export, target: Path) -> None:
    """Write a trial into a new folder here, as a node of the cluster makes it.

    Raises:
        ValueError: See `Export.write`.
    """
    gpus = 1 if export.recipe.device == "cuda" else 0
    task = _packed.options(num_cpus=1, num_gpus=gpus).remote(export, str(target))
    try:
        packed: bytes = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    partial = partial_path(target)
    unpack(io.BytesIO(packed), partial)
    (partial / FOLDER).rename(target)
    partial.rmdir()


@ray.remote(max_retries=2)
def _packed(export: Export, name: str) -> bytes:
    """Return the folder that a trial is written to, as one file."""
    packed = io.BytesIO()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / FOLDER
        export.write(folder, name)
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, arcname=FOLDER)
    return packed.getvalue()
