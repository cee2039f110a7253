"""Says what is kept of models for later studies, and what was removed of it."""

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from alrq_core.caches import Entry, caches_folder, entries, keep_within, usual_limit
from search_spaces.costs import format_bytes


def caches_shown() -> tuple[str, Table]:
    """Return what the caches hold: in all, and a row a kind."""
    kept = entries()
    table = Table()
    table.add_column("what")
    for name in ("files", "size"):
        table.add_column(name, justify="right")
    table.add_column("last used")
    for kind in dict.fromkeys(entry.kind for entry in kept):
        own = [entry for entry in kept if entry.kind == kind]
        latest = datetime.fromtimestamp(max(entry.used for entry in own))
        table.add_row(kind, str(len(own)), _size(own), f"{latest:%Y-%m-%d %H:%M}")
    return f"{caches_folder()} holds {_size(kept)}", table


def removed_line(limit_bytes: int | None) -> str | None:
    """Bring the caches within a limit; return what was removed, None for nothing.

    Args:
        limit_bytes: What may stay; None for what a study keeps when it starts.
    """
    limit = usual_limit() if limit_bytes is None else limit_bytes
    removed = keep_within(limit)
    if not removed:
        return None
    return (
        f"removed {_size(removed)} that were unused longest from {caches_folder()}, "
        f"which keeps {format_bytes(limit)}"
    )


def _size(found: Sequence[Entry]) -> str:
    return format_bytes(sum(entry.size_bytes for entry in found))
