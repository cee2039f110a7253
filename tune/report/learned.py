"""What a study's trials say of its modules, beside what the visibility table had predicted."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Choice
from tune.search.effects import LEAST, EffectsModel, Observations
from tune.search.thompson import FLOOR
from tune.study.state import StudyState


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """What a module's fewest bits cost, all else as in the reference.

    Attributes:
        choice: These bits, at the least rank of the space that is no less than the commonest one of
            the trials.
        predicted: By the table, brought to the trials' unit by one factor for all modules.
        learned: By table and trials together.
    """

    choice: Choice
    predicted: float
    learned: float


def module_costs(state: StudyState, table: VisibilityTable) -> dict[str, ModuleCost]:
    """Return the costs of all modules by name; nothing before a trial was judged.

    They are posterior means of the model that the search proposes by (`EffectsModel`), at the
    highest fidelity.
    """
    pairs = [
        (name, Choice.of(stored, rank))
        for name, module in table.modules.items()
        for stored in module.damage
        for rank in module.ranks
    ]
    known = set(pairs)
    seen = [
        (trial, trial.judged.objective)
        for trial in state.trials.values()
        if trial.searched and trial.comparable and trial.judged is not None
        if known.issuperset(trial.allocation.choices.items())
    ]
    if not seen:
        return {}
    model = EffectsModel(pairs, {pair: table.damage(*pair) for pair in pairs}, 1)
    choices = np.array([model.index(trial.allocation) for trial, _ in seen])
    objectives = np.array([objective for _, objective in seen])
    if seen[0][0].reference is None:
        objectives = objectives - FLOOR * objectives.min()
    rungs = np.zeros(len(seen), dtype=int)
    effects = model.mean(Observations(model.rows(choices), rungs, objectives))
    # At the middle of what was tried: what is lost is not quite the sum of its parts.
    factor = float(np.median(effects.losses(choices) / effects.values[choices].sum(axis=1)))
    looked_at = _looked_at(table, [trial.allocation.choices for trial, _ in seen])
    numbers = {pair: number for number, pair in enumerate(pairs)}
    at = np.array([numbers[pair] for pair in looked_at.items()])
    learned, predicted = factor * effects.values[at], effects.predicted[at]
    unit = float(np.median(learned / np.maximum(predicted, LEAST)))
    return {
        name: ModuleCost(choice=choice, predicted=unit * float(p), learned=float(found))
        for (name, choice), p, found in zip(looked_at.items(), predicted, learned, strict=True)
    }


def _looked_at(table: VisibilityTable, tried: list[Mapping[str, Choice]]) -> dict[str, Choice]:
    """Return each module's fewest bits, at the rank that trials gave it most often."""
    found = {}
    for name, module in table.modules.items():
        ranks = [choices[name].rank for choices in tried]
        stored = min(module.damage, key=lambda one: (one.bits, one.group_size))
        found[name] = Choice.of(stored, max(module.ranks, key=ranks.count))
    return found
