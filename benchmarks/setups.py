"""How `real_search.py` and its like search a model: limits, trials, recipe."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from alrq_core.context import TrialContext, load_context
from alrq_core.recipe import Recipe
from search_spaces.formats import Formats
from search_spaces.spaces import Space, make_space
from search_spaces.ties import tied

CONTROLS = ("next uniform", "best uniform", "random", "table")


@dataclass(frozen=True)
class Setup:
    """How a model is searched.

    Attributes:
        limits: On the deployed model, in bytes.
        searches: The first is compared with the others and with `controls`.
        trials: Of each search.
        controls: Of `CONTROLS`, those that are trained too.
        recipe: Of all trials.
        sequences: Of validation and test split; None for all.
        tied: Whether fused modules take the same choice, as by default for decoders.
        largest: Limit on what searches propose, in bytes; None for none.
    """

    limits: tuple[int, ...]
    searches: tuple[str, ...]
    trials: int
    controls: tuple[str, ...]
    recipe: Recipe
    sequences: int | None = None
    tied: bool = False
    largest: int | None = None


SETUPS = {
    # Between the smallest allocation, 7.04 MB, and the smallest uniform one of 3 bits, 9.99 MB.
    "minilm": Setup(
        limits=(7_700_000, 8_300_000, 9_200_000),
        searches=("alrq", "tpe"),
        trials=50,
        controls=CONTROLS,
        recipe=Recipe(execution="dequantized", device="cpu"),
    ),
    # Exactly uniform 2 bits of rank 16 and uniform 3 bits of rank 2.
    "smollm2": Setup(
        limits=(47_661_696, 55_923_840),
        searches=("alrq",),
        trials=20,
        controls=("next uniform", "table"),
        recipe=Recipe(
            execution="dequantized", device="cpu", max_steps=60, batch_size=8, max_length=128
        ),
        sequences=200,
        tied=True,
        largest=55_923_840,
    ),
}


@cache
def load(task: str, data: Path | None, model: str = "minilm") -> tuple[TrialContext, Space]:
    """Return what all trials of a process share, and the space."""
    setup = SETUPS[model]
    context = load_context(model, task, setup.recipe, data)
    if setup.sequences is not None:
        context = replace(context, task=context.task.scored_on(setup.sequences))
    space = make_space("joint", context.inventory, Formats(backend="gptq"))
    return context, tied(space) if setup.tied else space
