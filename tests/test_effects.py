"""The effects model is Bayesian linear regression on logarithms, and says so in draws."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import cholesky

from search_spaces.allocation import Allocation, Choice
from tune.search import effects
from tune.search.effects import EffectsModel, Observation, _likeliest_noise

NAMES = ("a", "b", "c")
CHOICES = tuple(Choice(bits, rank) for bits in (2, 4) for rank in (0, 8))
PAIRS = [(name, choice) for name in NAMES for choice in CHOICES]
DAMAGE = {(n, c): (0.08 if c.bits == 2 else 0.01) * (1 + NAMES.index(n)) for n, c in PAIRS}
GAIN = {(n, c): 0.0 if c.rank == 0 else 0.03 * (3 - NAMES.index(n)) for n, c in PAIRS}
ERROR = {(n, c): (1.0 if c.bits == 2 else 0.3) for n, c in PAIRS}
SHARE = {"a": 0.5, "b": 0.3, "c": 0.2}
NOISE = 0.1


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> EffectsModel:
    monkeypatch.setattr(effects, "NOISE", (NOISE,))
    return EffectsModel(PAIRS, DAMAGE, GAIN, ERROR, SHARE, rungs=2)


def some(model: EffectsModel, count: int, seed: int = 0) -> list[Observation]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        picked = {name: CHOICES[generator.integers(len(CHOICES))] for name in NAMES}
        loss = 0.5 + 0.1 * generator.random()
        rung = int(generator.integers(2))
        found.append(Observation(model.index(Allocation(picked)), rung, loss))
    return found


def standardised(table: dict[tuple[str, Choice], float]) -> np.ndarray:
    """By the spread of the sums over every allocation there is."""
    each = [[table[name, choice] for choice in CHOICES] for name in NAMES]
    sums = [a + b + c for a in each[0] for b in each[1] for c in each[2]]
    return np.array([table[pair] for pair in PAIRS]) / np.std(sums)


def dense(model: EffectsModel, seen: list[Observation]) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior mean and covariance of the pairs' effects by the textbook, features spelt out."""
    columns = 2 + 4 + 2 * len(NAMES)
    effect = np.zeros((len(PAIRS), columns))
    variance, mean = np.ones(columns), np.zeros(columns)
    variance[:2] = effects.LEVEL**2
    variance[2:4], mean[2:4] = effects.SCALE**2, 1.0
    variance[4:6], variance[6:] = effects.COMMON**2, effects.OWN**2
    effect[:, 2] = effects.DAMAGE * standardised(DAMAGE)
    effect[:, 3] = -effects.GAIN * standardised(GAIN)
    for row, (name, choice) in enumerate(PAIRS):
        place = NAMES.index(name)
        rank = np.log2(1 + choice.rank) / np.log2(33)
        effect[row, 4] = SHARE[name] * ERROR[name, choice]
        effect[row, 5] = rank / len(NAMES)
        effect[row, 6 + place] = np.sqrt(SHARE[name]) * ERROR[name, choice]
        effect[row, 6 + len(NAMES) + place] = rank / np.sqrt(len(NAMES))
    design = np.array([effect[o.choices].sum(axis=0) for o in seen]).reshape(len(seen), columns)
    rungs = np.array([o.rung for o in seen], dtype=int)
    design[np.arange(len(seen)), rungs] = 1.0
    losses = np.array([o.loss for o in seen])
    floor = {rung: effects.FLOOR * losses[rungs == rung].min() for rung in set(rungs.tolist())}
    values = np.log(losses - np.array([floor[rung] for rung in rungs.tolist()]))
    precision = 1 / (NOISE**2 + (effects.RUNG_NOISE * rungs) ** 2)
    inverse = np.linalg.inv(design.T @ (precision[:, None] * design) + np.diag(1 / variance))
    mean[:2] = values.mean() if len(values) else 0.0
    found = inverse @ (design.T @ (precision * values) + mean / variance)
    return effect @ found, effect @ inverse @ effect.T, float(found[0])


@pytest.mark.parametrize("count", [0, 1, 4, 40])
def test_the_mean_is_the_textbooks(model: EffectsModel, count: int) -> None:
    seen = some(model, count)
    belief = model.mean(seen)
    mean, _, level = dense(model, seen)

    np.testing.assert_allclose(belief.values, mean, atol=1e-8)
    assert belief.level == pytest.approx(level, abs=1e-8)


@pytest.mark.parametrize("count", [0, 4, 40])
def test_draws_have_the_textbooks_covariance(model: EffectsModel, count: int) -> None:
    seen, generator = some(model, count), np.random.default_rng(1)
    draws = np.array([model.draw(seen, generator).values for _ in range(4000)])
    mean, covariance, _ = dense(model, seen)

    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.05)


def test_what_is_kept_changes_nothing(model: EffectsModel) -> None:
    """Observations come in any order, change their rung, vanish, and come twice."""
    seen = some(model, 150)
    promoted = [
        replace(o, rung=0, loss=0.9 * o.loss) if n % 40 == 3 else o for n, o in enumerate(seen)
    ]
    parts = [seen[:3], seen[:4], seen, promoted, promoted[:70] + promoted[71:], seen[50:]]
    for part in (*parts, seen[::-1], [seen[0], *seen], seen[10:12], []):
        fresh = EffectsModel(PAIRS, DAMAGE, GAIN, ERROR, SHARE, rungs=2)
        np.testing.assert_allclose(
            model.mean(part).values, fresh.mean(part).values, rtol=1e-6, atol=1e-9
        )
        draws = [m.draw(part, np.random.default_rng(0)) for m in (model, fresh)]
        np.testing.assert_allclose(draws[0].values, draws[1].values, rtol=1e-6, atol=1e-9)
        assert draws[0].level == pytest.approx(draws[1].level)


def test_only_what_changed_is_factorised(
    model: EffectsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(matrix: np.ndarray, **options: bool) -> np.ndarray:
        sizes.append(len(matrix))
        found: np.ndarray = cholesky(matrix, **options)
        return found

    monkeypatch.setattr(effects, "cholesky", counted)
    seen = some(model, 30)
    for part in (seen[:20], seen[:20], seen[:21], seen, seen[:25] + seen[26:]):
        model.mean(part)
    seen[27] = replace(seen[27], loss=0.9)
    model.mean(seen[:25] + seen[26:])
    seen[27] = replace(seen[27], rung=1 - seen[27].rung)
    model.mean(seen[:25] + seen[26:])

    # Each by itself: the first 20, none, one, nine, those after the one that vanished, none though
    # a loss is another one, and those from the one that is at another rung.
    assert sizes == [20, 0, 1, 9, 4, 0, 3]


def test_only_the_tables_proportions_count(model: EffectsModel) -> None:
    large = {pair: 1000 * damage for pair, damage in DAMAGE.items()}
    scaled = EffectsModel(PAIRS, large, GAIN, ERROR, SHARE, rungs=2)
    seen = some(model, 5)

    np.testing.assert_allclose(scaled.mean(seen).values, model.mean(seen).values)


def test_a_table_that_predicts_nothing_leaves_the_rest(model: EffectsModel) -> None:
    nothing = dict.fromkeys(PAIRS, 0.0)
    blind = EffectsModel(PAIRS, nothing, nothing, ERROR, SHARE, rungs=2)

    assert np.isfinite(blind.mean(some(blind, 5)).values).all()


def make_losses(model: EffectsModel, true: np.ndarray) -> Callable[[int], list[Observation]]:
    def observed(count: int) -> list[Observation]:
        return [
            Observation(o.choices, o.rung, 0.4 + float(np.exp(-2 + true[o.choices].sum())))
            for o in some(model, count, seed=3)
        ]

    return observed


def test_a_loss_that_was_rounded_to_zero_is_learned_from(model: EffectsModel) -> None:
    seen = [replace(one, loss=0.0, rung=0) for one in some(model, 1)] + some(model, 5, seed=1)
    losses = model.mean(seen).losses(np.array([one.choices for one in seen]))

    assert np.isfinite(losses).all()


def test_losses_are_predicted_once_there_are_enough(model: EffectsModel) -> None:
    true = dense(model, [])[0] + 0.3 * np.array([ERROR[pair] for pair in PAIRS])
    observed = make_losses(model, true)
    belief, unseen = model.mean(observed(200)), some(model, 50, seed=9)
    choices = np.array([o.choices for o in unseen])
    expected = 0.4 + np.exp(-2 + true[choices].sum(axis=1))

    assert np.corrcoef(belief.losses(choices), expected)[0, 1] > 0.98


@pytest.mark.parametrize("noise", effects.NOISE)
def test_the_likeliest_noise_is_found(noise: float) -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((300, 5))
    kernel = features @ features.T
    factor = np.linalg.cholesky(kernel + noise**2 * np.eye(300))
    left, rung = factor @ generator.standard_normal(300), np.arange(300) % 2

    last = effects.NOISE_OBSERVATIONS
    kernel = kernel[-last:, -last:]
    found = _likeliest_noise(kernel, left, 0 * rung)
    assert set(found.tolist()) == {noise}
    lower = _likeliest_noise(kernel, left, rung)[rung == 1]
    assert (lower > effects.RUNG_NOISE).all()
