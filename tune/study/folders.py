"""The folder of a new study: whether it could be made, and made."""

import os
from pathlib import Path

from tune.study.config import StudyConfig


def prepare_folder(config: StudyConfig) -> Path:
    """Return the folder of a new study, made.

    Raises:
        ValueError: The name is taken, or the folder can't be written.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise _name_taken(config) from error
    except OSError as error:
        raise ValueError(
            f"`--output-dir` must be a folder that can be written, got {config.output_dir!r} "
            f"({error.strerror}). Choose another one."
        ) from error
    return folder


def check_writable(config: StudyConfig) -> None:
    """Check that a new study of this name could be made, without making it.

    Raises:
        ValueError: The name is taken or too long, or the folder can't be written.
    """
    check_new_folder("--output-dir", Path(config.output_dir))
    check_new_folder("--name", config.folder)
    if config.folder.exists():
        raise _name_taken(config)


def check_new_folder(flag: str, folder: Path) -> None:
    """Check that a folder is there or could be made, without making it.

    Raises:
        ValueError: It can't be: the flag is named, with the reason.
    """
    try:
        wanted = folder.absolute()
        existing = next(path for path in (wanted, *wanted.parents) if path.exists())
        for part in folder.parts:
            # Only a folder that exists says which names are too long.
            (existing / part).exists()
        if not existing.is_dir():
            reason = f"{existing} is a file"
        elif not os.access(existing, os.W_OK | os.X_OK):
            reason = f"{existing} is not open to this user"
        else:
            return
    except OSError as error:
        reason = str(error.strerror)
    raise ValueError(
        f"`{flag}` must be a folder that can be written, got {str(folder)!r} ({reason}). "
        "Choose another one."
    )


def _name_taken(config: StudyConfig) -> ValueError:
    return ValueError(
        f"`--name` must be new, got {config.name!r}, which exists. "
        f"Continue it with --resume {config.folder}, or choose another name."
    )
