"""Ends a process of its own accord, as if killed, where `KILL_AT` says: once a place.

Python imports it by its name at the start of each process that has its folder on `PYTHONPATH`. A
place is `module:name:count`; the file of that name in `KILL_MARKS` tells that it was done.
"""

import os
import signal
import sys
from collections.abc import Sequence
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PLACES = [place.split(":") for place in os.environ.get("KILL_AT", "").split() if place]
MARKS = Path(os.environ.get("KILL_MARKS", "."))


class _Finder:
    """Finds modules as usual, and lets some be changed once they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        wanted = [(what, int(count)) for module, what, count in PLACES if module == name]
        spec = PathFinder.find_spec(name, path, target) if wanted else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            run(module)
            for what, count in wanted:
                _deadly(module, what, count)

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


def _deadly(module: ModuleType, what: str, count: int) -> None:
    """Let the function end its process when it is called for the n-th time."""
    owner: Any = module
    *outer, last = what.split(".")
    for name in outer:
        owner = getattr(owner, name)
    function, mark = getattr(owner, last), MARKS / f"{module.__name__}-{what}"
    calls = [0]

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] >= count and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, last, wrapped)


if PLACES:
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
