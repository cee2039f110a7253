"""What a study's finalist is compared to: what nobody searched for, and other ways to train."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from search_spaces.allocation import Allocation
from search_spaces.controls import random_of_bytes, uniform_of_bytes
from search_spaces.spaces import Space
from tune.search.proposer import Proposer
from tune.study.state import TrialState


@dataclass(frozen=True, kw_only=True)
class Control:
    """One trial to compare with.

    Attributes:
        id: Of its trial.
        origin: The trial that it is a control of.
        allocation: Its bits and ranks.
        started: Whether it starts from the reference, as what it is compared with does.
        labels: See `Proposed`.
    """

    id: str
    origin: str
    allocation: Allocation
    started: bool
    labels: bool = False


def controls(space: Space, found: TrialState, proposer: Proposer, seed: int) -> list[Control]:
    """Return the controls of one finalist, such as `uniform-t007`.

    The uniform allocation of no fewer bytes that the visibility table expects most of, a random one
    and the table's best of no more, as far as there is a table, and, of what started from a
    reference, the finalist itself trained from nothing. A larger budget may lead to another
    finalist, which then has controls of its own.

    Args:
        space: Of the search.
        found: The finalist.
        proposer: Knows the table.
        seed: Of the study.
    """
    size, started = found.memory_bytes, found.reference is not None
    generator = Random(f"{seed}-{found.id}")
    allocations: Mapping[str, Allocation | None] = {
        "uniform": uniform_of_bytes(space, size, proposer.predicted),
        "random": random_of_bytes(space, size, generator),
        "table": proposer.tables_best(size),
    }
    made = [
        Control(id=f"{kind}-{found.id}", origin=found.id, allocation=allocation, started=started)
        for kind, allocation in allocations.items()
        if allocation is not None
    ]
    if started:
        plain = found.allocation
        made.append(
            Control(id=f"nothing-{found.id}", origin=found.id, allocation=plain, started=False)
        )
    return made


def longer(reference: str, allocation: Allocation) -> Control:
    """Return the reference, trained as many steps longer as finalists are: `B-FP+`.

    So that nobody mistakes more steps for a better allocation.
    """
    return Control(
        id=f"{reference}+", origin=reference, allocation=allocation, started=True, labels=True
    )
