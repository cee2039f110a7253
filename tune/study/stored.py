"""Studies in a store: whether a new one can be kept there, and one brought here to go on with."""

import secrets
import shutil
from pathlib import Path

from alrq_core.files import partial_path
from tune.study.config import STUDIES_FOLDER, STUDY_FILE, StudyConfig
from tune.study.mirror import STARTS_END
from tune.study.owner import OWNER_FILE, SHORT_PATIENCE, check_silent, held, owner_of
from tune.study.store import Store, unusable


def check_storage(config: StudyConfig) -> None:
    """Check that a new study can be written to, read and deleted from its store.

    Raises:
        ValueError: It can't, or there is one of its name.
    """
    if config.storage is None:
        return
    name = f".alrq-{secrets.token_hex(8)}"
    try:
        store = Store(config.storage, SHORT_PATIENCE)
        store.write_text(name, name)
        same = store.read_text(name) == name
        store.remove(name)
        if not same:
            raise OSError("what was written was not read back")
        taken = store.below(config.name).read_text(STUDY_FILE) is not None
    except (OSError, ValueError) as error:
        raise unusable("--storage", config.storage, error) from error
    if taken:
        raise ValueError(
            f"`--name` must be new, got {config.name!r}, which {config.storage} has. Continue it "
            f"with --resume {store.below(config.name).uri!r}, or choose another name."
        )


def fetched_study(uri: str, output: Path) -> Path:
    """Return the folder of a study that a store has, brought here.

    Args:
        uri: Of the study.
        output: Below which it shall be, where there is none of its name.

    Raises:
        ValueError: It is no study, somebody works on it, or the folder is taken.
    """
    store = Store(uri, SHORT_PATIENCE)
    folder = output / STUDIES_FOLDER / uri.partition("?")[0].rstrip("/").rpartition("/")[2]
    if folder.exists():
        raise ValueError(
            f"`--resume` must name a study that is not here yet, got {uri!r} with {folder} here. "
            f"Go on with --resume {folder}, move it away, or give another --output-dir."
        )
    try:
        known = STUDY_FILE in store.names()
    except (OSError, ValueError) as error:
        raise unusable("--resume", uri, error) from error
    if not known:
        raise ValueError(
            f"`--resume` must be a study, got {uri!r} without {STUDY_FILE}. Give --storage and "
            "--name of the study, joined by a slash."
        )
    seen, partial = check_silent(store), partial_path(folder)
    try:
        for name in store.names():
            if name != OWNER_FILE and not name.endswith(STARTS_END):
                store.fetch(name, partial / name)
        now = owner_of(store)
        if now is not None and now != seen:
            raise held(store, now)
        # Nobody works on it, as is known now.
        store.remove(OWNER_FILE)
        partial.rename(folder)
    except OSError as error:
        raise unusable("--resume", uri, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
