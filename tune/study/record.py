"""What `study.json` keeps of a study, and whether what is resumed is still the same."""

import importlib.metadata
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alrq_core.memory.machine import describe_machine
from tune.study.config import STUDY_FILE, STUDY_VERSION, load_study_file
from tune.study.digests import Digests, Parts, changed, combined
from tune.study.prepare import Prepared

PACKAGES = ("alrq", "torch", "transformers", "peft", "bitsandbytes", "hqq", "ray", "optuna")


def study_content(prepared: Prepared) -> dict[str, Any]:
    """Return what `study.json` keeps: all that is needed to repeat the study."""
    task = prepared.task
    return {
        "version": STUDY_VERSION,
        "config": prepared.config.to_json(),
        "rungs": prepared.rungs,
        "inventory": asdict(prepared.inventory),
        "splits": {
            "source": task.splits,
            "train": len(task.train),
            "validation": len(task.validation),
            "test": len(task.test),
        },
        "digests": prepared.digests.to_json(),
    }


def run_content() -> dict[str, Any]:
    """Return what `study.json` keeps of each run of the program on a study, resumed ones too."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": describe_machine(),
        "commit": _commit(),
    }


def check_same_study(prepared: Prepared, folder: Path) -> None:
    """Check that model and data are those with which the study began, wherever they lie now.

    Raises:
        ValueError: A file of the model, a text, a label or a name of a class is another.
    """
    content = load_study_file(folder)
    try:
        before = Digests.from_json(content["digests"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"`{folder / STUDY_FILE}` must hold the digests of model and data, got none. "
            "Restore the file, or start a new study."
        ) from error
    config, now = prepared.config, prepared.digests
    data = "--data" if config.data is not None else "--task"
    _check_same(data, config.data or config.task, now.data, before.data)
    _check_same("--model", config.model, now.model, before.model)
    # Equal texts and files can be split and read in another way, by another release.
    content["inventory"]["model"] = config.model
    current = _plain(study_content(prepared))
    for what, flag in (("inventory", "--model"), ("splits", data)):
        if current[what] != content[what]:
            raise ValueError(
                f"`{flag}` must be what it was when the study began, got other {what} than in "
                f"{STUDY_FILE}. Restore it, or start a new study."
            )


def _check_same(flag: str, value: str, now: Parts, before: Parts) -> None:
    different = changed(now, before)
    if different:
        raise ValueError(
            f"`{flag}` must hold what it held when the study began (digest {combined(before)}), "
            f"got {value!r} with digest {combined(now)}: another {', '.join(different)}. "
            f"Restore it or give {flag} where the old one lies now, or start a new study."
        )


def _plain(content: Any) -> Any:
    """Return the content as JSON would give it back."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout, marked if it was changed; None outside of git."""
    command = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    try:
        return subprocess.run(
            (*command, "--abbrev=40", "--exclude=*"), capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
