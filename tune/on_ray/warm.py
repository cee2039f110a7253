"""Imports all that trials need, so that each process can do it as early as possible.

HQQ and bitsandbytes compile functions as they are imported, of which trials call none. That loads
torch's compiler, a second and 46 MB a process (driver and workers); here it waits for the first
call. On a cluster workers import nothing beforehand, and trials run as well. Python's garbage
collector would go through all that was imported so far again and again, for another second.
"""

import gc
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib import import_module
from typing import Any

import torch

# Python's own is 700, in some versions 2,000.
OBJECTS_BEFORE_COLLECTION = 20_000

_compile = torch.compile


def _compile_when_called(model: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Return what `torch.compile` returns, but compile nothing before the first call."""
    if model is None:
        return partial(_compile_when_called, **options)

    @cache
    def compiled() -> Any:
        return _compile(model, **options)

    @wraps(model)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


_, *_older = _thresholds = gc.get_threshold()
gc.set_threshold(OBJECTS_BEFORE_COLLECTION, *_older)
torch.compile = _compile_when_called
try:
    import_module("alrq_core.trial")
finally:
    torch.compile = _compile
    gc.set_threshold(*_thresholds)
# What was imported stays, so later collections need not look at it: 0.4 s each.
gc.freeze()
