"""The effects model is Bayesian linear regression on relative losses, and says so in draws."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from search_spaces.allocation import Allocation, Choice
from tune.search import effects
from tune.search.effects import Effects, EffectsModel, Observations, _likeliest, moved

NAMES = ("a", "b", "c")
CHOICES = tuple(Choice(bits, rank) for bits in (2, 4) for rank in (0, 8))
PAIRS = [(name, choice) for name in NAMES for choice in CHOICES]
DAMAGE = {
    (n, c): (0.08 if c.bits == 2 else 0.01) * (1 + NAMES.index(n)) / (1 + 0.1 * c.rank)
    for n, c in PAIRS
}
NOISE, RUNGS = 0.1, 2


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> EffectsModel:
    monkeypatch.setattr(effects, "NOISE", (NOISE,))
    monkeypatch.setattr(effects, "OWN", {effects.TRUSTED: 0.0})
    return EffectsModel(PAIRS, DAMAGE, RUNGS)


@dataclass(frozen=True)
class Observation:
    """One of `Observations`, with its choices."""

    choices: np.ndarray
    rung: int
    excess: float


def together(model: EffectsModel, seen: list[Observation]) -> Observations:
    choices = np.array([one.choices for one in seen], dtype=int).reshape(-1, len(NAMES))
    rung = np.array([one.rung for one in seen], dtype=int)
    return Observations(model.rows(choices), rung, np.array([one.excess for one in seen]))


def mean(model: EffectsModel, seen: list[Observation]) -> Effects:
    return model.mean(together(model, seen))


def some(model: EffectsModel, count: int, seed: int = 0) -> list[Observation]:
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        picked = {name: CHOICES[generator.integers(len(CHOICES))] for name in NAMES}
        table = sum(DAMAGE[pair] for pair in picked.items())
        excess = 3.0 * table * float(np.exp(0.1 * generator.standard_normal()))
        found.append(Observation(model.index(Allocation(picked)), number % RUNGS, excess))
    return found


def design(seen: list[Observation]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Features, logarithms of losses over predicted ones, those of the rungs, and the middle."""
    tables = [sum(DAMAGE[PAIRS[n]] for n in o.choices) for o in seen]
    middle = float(np.exp(np.mean(np.log(tables))))
    rows, logs = [], []
    for o, table in zip(seen, tables, strict=True):
        parts = {PAIRS[n][0]: (PAIRS[n][1], DAMAGE[PAIRS[n]] / table) for n in o.choices}
        rank = {name: np.log2(1 + choice.rank) / np.log2(33) for name, (choice, _) in parts.items()}
        ranked = {name: part * rank[name] for name, (_, part) in parts.items()}
        shared = [sum(part for c, part in parts.values() if c.bits == bits) for bits in (2, 4)]
        shared += [sum(ranked.values()), np.log(table / middle), 1.0]
        on = 1.0 if o.rung == 0 else 0.0
        own = [part for _, part in parts.values()]
        rows.append([*shared, *(on * value for value in shared), *own, *ranked.values()])
        logs.append(np.log(o.excess / table))
    rungs = np.array([o.rung for o in seen])
    scales = np.array([np.mean([logs[i] for i in np.flatnonzero(rungs == r)]) for r in (0, 1)])
    return np.array(rows), np.array(logs) - scales[rungs], scales, middle


def deviations() -> np.ndarray:
    """Of the prior: shared at all rungs, shared at the highest alone, each module's own."""
    last = [effects.EXPONENT, effects.LEVEL]
    shared = [effects.SHARED] * 3 + last + [effects.TRAINED] * 3 + last
    return np.array(shared + [effects.TRUSTED] * 2 * len(NAMES))


def factor_rows() -> np.ndarray:
    """What the parameters make of the factor of each pair, at the highest rung."""
    rows = []
    for name, choice in PAIRS:
        place, rank = NAMES.index(name), np.log2(1 + choice.rank) / np.log2(33)
        shared = [float(choice.bits == 2), float(choice.bits == 4), rank, 0.0, 0.0]
        own = [float(place == other) for other in range(3)]
        rows.append(shared + shared + own + [rank * one for one in own])
    return np.array(rows)


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_mean_is_the_textbooks(model: EffectsModel, count: int) -> None:
    seen = some(model, count)
    features, left, scales, middle = design(seen)
    prior = np.diag(1 / deviations() ** 2)
    inverse = np.linalg.inv(features.T @ features / NOISE**2 + prior)
    found = inverse @ features.T @ left / NOISE**2
    belief = mean(model, seen)
    table = np.array([DAMAGE[pair] for pair in PAIRS])

    np.testing.assert_allclose(belief.values, table * (1 + factor_rows() @ found), rtol=1e-6)
    assert belief.exponent == pytest.approx(found[3] + found[8])
    level = np.exp(scales[0] + found[4] + found[9]) * middle**-belief.exponent
    assert belief.scale == pytest.approx(level)


@pytest.mark.parametrize("count", [0, 5, 40])
def test_draws_have_the_textbooks_covariance(model: EffectsModel, count: int) -> None:
    seen, generator = some(model, count), np.random.default_rng(1)
    table = np.array([DAMAGE[pair] for pair in PAIRS])
    draws = np.array(
        [model.draw(together(model, seen), generator).values / table for _ in range(4000)]
    )
    precision = np.diag(1 / deviations() ** 2)
    if count:
        features = design(seen)[0]
        precision = precision + features.T @ features / NOISE**2
    rows = factor_rows()

    np.testing.assert_allclose(draws.mean(axis=0), mean(model, seen).values / table, atol=0.05)
    expected = rows @ np.linalg.inv(precision) @ rows.T
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.02)


def test_only_the_tables_proportions_count(model: EffectsModel) -> None:
    large = EffectsModel(PAIRS, {pair: 1000 * damage for pair, damage in DAMAGE.items()}, RUNGS)
    seen = some(model, 5)
    choices = np.array([one.choices for one in seen])

    np.testing.assert_allclose(mean(large, seen).values, 1000 * mean(model, seen).values)
    np.testing.assert_allclose(
        mean(large, seen).losses(choices),
        mean(model, seen).losses(choices),
    )


def test_a_table_that_predicts_nothing_leaves_numbers(model: EffectsModel) -> None:
    blind = EffectsModel(PAIRS, dict.fromkeys(PAIRS, 0.0), RUNGS)
    belief = mean(blind, some(model, 5))

    assert np.isfinite(belief.values).all()
    assert np.isfinite(belief.losses(np.array([one.choices for one in some(model, 5)]))).all()


def test_nothing_lost_is_learned_from(model: EffectsModel) -> None:
    """As by an allocation that is the reference itself."""
    seen = [replace(one, excess=0.0) for one in some(model, 1)] + some(model, 6, seed=1)
    losses = mean(model, seen).losses(np.array([one.choices for one in seen]))

    assert np.isfinite(losses).all()
    assert (losses >= 0).all()


def test_no_effect_helps_by_hurting(model: EffectsModel) -> None:
    for seed in range(200):
        values = model.draw(together(model, []), np.random.default_rng(seed)).values
        assert (values > 0).all()


def test_what_was_never_trained_is_expected_from_what_was_scored(model: EffectsModel) -> None:
    """Only the lower rung is known: the highest then has its scale."""
    seen = [replace(one, rung=1) for one in some(model, 20)]
    choices = np.array([one.choices for one in seen])
    observed = np.array([one.excess for one in seen])

    np.testing.assert_allclose(mean(model, seen).losses(choices), observed, rtol=0.4)


def test_losses_are_predicted_once_there_are_enough() -> None:
    """One module is far worse than the table says, and training mends what has a rank."""
    model = EffectsModel(PAIRS, DAMAGE, RUNGS)
    table = np.array([DAMAGE[pair] for pair in PAIRS])
    factor = np.array([3.0 if name == "a" else 0.9 for name, _ in PAIRS])
    mended = np.array([0.4 if choice.rank else 1.0 for _, choice in PAIRS])

    def excess(one: Observation) -> float:
        values = table * factor * (mended if one.rung == 0 else 1.0)
        return float(2 * values[one.choices].sum())

    seen = [replace(one, excess=excess(one)) for one in some(model, 120)]
    unseen = np.array([one.choices for one in some(model, 50, seed=9)])
    expected = np.array([excess(Observation(choices, 0, 0.0)) for choices in unseen])
    found = mean(model, seen).losses(unseen)

    assert np.corrcoef(np.log(found), np.log(expected))[0, 1] > 0.97


def test_a_loss_by_hand() -> None:
    belief = Effects(np.array([1.0, 2.0]), np.array([2.0, 2.0]), scale=3.0, exponent=0.5)

    assert belief.losses(np.array([[0, 1]])).tolist() == [3.0 * 3.0 * 2.0]


@pytest.mark.parametrize("noise", effects.NOISE)
@pytest.mark.parametrize("scale", effects.OWN)
def test_the_likeliest_scale_and_noise_are_found(scale: float, noise: float) -> None:
    generator = np.random.default_rng(0)
    shared, own = generator.standard_normal((2, 300, 30))
    left = shared @ generator.standard_normal(30) + noise * generator.standard_normal(300)
    left += scale * own @ generator.standard_normal(30)

    assert _likeliest(shared, own, left) == (scale, noise)


@pytest.mark.parametrize("observations", [3, 7, 8, 40])
def test_the_smaller_of_two_systems_gives_the_same(observations: int) -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((observations, 7))
    missed = generator.standard_normal(observations)
    kernel = features @ features.T + 0.3**2 * np.eye(observations)
    expected = features.T @ np.linalg.solve(kernel, missed)

    np.testing.assert_allclose(moved(features, 0.3, missed), expected, rtol=1e-8)
