"""The effects model is Bayesian linear regression, and says so in draws."""

from collections.abc import Callable

import numpy as np
import pytest

from search_spaces.allocation import Allocation, Choice
from tune import effects
from tune.effects import EffectsModel, Factors, Observation

NAMES = ("a", "b", "c")
CHOICES = tuple(Choice(bits, rank) for bits in (2, 4) for rank in (0, 8))
PAIRS = [(name, choice) for name in NAMES for choice in CHOICES]
DAMAGE = {(n, c): (0.08 if c.bits == 2 else 0.01) * (1 + NAMES.index(n)) for n, c in PAIRS}
GAIN = {(n, c): 0.0 if c.rank == 0 else 0.03 * (3 - NAMES.index(n)) for n, c in PAIRS}
NOISE = 0.01


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> EffectsModel:
    monkeypatch.setattr(effects, "NOISE", (NOISE,))
    return EffectsModel(PAIRS, DAMAGE, GAIN, rungs=2)


def some(model: EffectsModel, count: int, seed: int = 0) -> list[Observation]:
    generator = np.random.default_rng(seed)
    found = []
    for trial in range(count):
        picked = {name: CHOICES[generator.integers(len(CHOICES))] for name in NAMES}
        loss = 0.5 + 0.1 * generator.standard_normal()
        rung = int(generator.integers(2))
        found.append(Observation(trial, model.index(Allocation(picked)), rung, loss))
    return found


def dense(model: EffectsModel, seen: list[Observation]) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance of the pairs' effects by the textbook, features spelt out."""
    formats = sorted({(n, c.bits) for n, c in PAIRS})
    ranks = sorted({(n, c.rank) for n, c in PAIRS})
    columns = 2 + 1 + 1 + len(formats) + len(ranks)
    effect = np.zeros((len(PAIRS), columns))
    variance = np.zeros(columns)
    mean = np.zeros(columns)
    variance[:2] = effects.LEVEL**2
    variance[2:4] = effects.DAMAGE_SCALE**2, effects.GAIN_SCALE**2
    mean[2:4] = 1.0, effects.GAIN_MEAN
    for row, (name, choice) in enumerate(PAIRS):
        effect[row, 2:4] = DAMAGE[name, choice], -GAIN[name, choice]
        for key, start, all_keys, table in (
            ((name, choice.bits), 4, formats, DAMAGE),
            ((name, choice.rank), 4 + len(formats), ranks, GAIN),
        ):
            column = start + all_keys.index(key)
            effect[row, column] = 1.0
            size = effects.OWN_PART * table[name, choice]
            variance[column] = max(variance[column], size**2 + effects.OWN_FLOOR**2)
    design = np.array([effect[o.choices].sum(axis=0) for o in seen]).reshape(len(seen), columns)
    for row, observation in enumerate(seen):
        design[row, observation.rung] = 1.0
    noise = np.array([NOISE**2 + (effects.RUNG_NOISE * o.rung) ** 2 for o in seen])
    losses = np.array([o.loss for o in seen])
    precision = np.diag(1 / variance) + design.T @ (design / noise[:, None])
    covariance = np.linalg.inv(precision)
    left = losses - losses.mean() - design @ mean
    found = mean + covariance @ design.T @ (left / noise)
    return effect @ found, effect @ covariance @ effect.T


def test_without_observations_the_table_speaks(model: EffectsModel) -> None:
    found = model.mean([])

    assert found == pytest.approx([DAMAGE[p] - effects.GAIN_MEAN * GAIN[p] for p in PAIRS])


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_mean_is_the_textbooks(model: EffectsModel, count: int) -> None:
    seen = some(model, count)

    np.testing.assert_allclose(model.mean(seen), dense(model, seen)[0], rtol=1e-6, atol=1e-9)


def test_draws_have_the_textbooks_mean_and_covariance(model: EffectsModel) -> None:
    seen = some(model, 12)
    generator = np.random.default_rng(1)
    draws = np.array([model.draw(seen, generator) for _ in range(4000)])
    mean, covariance = dense(model, seen)
    spread = np.sqrt(np.diag(covariance))

    assert np.abs((draws.mean(axis=0) - mean) / spread).max() < 0.08
    assert np.abs(np.cov(draws.T) - covariance).max() < 0.1 * covariance.max()


def test_the_noise_is_the_likeliest_of_a_few() -> None:
    model = EffectsModel(PAIRS, DAMAGE, GAIN, rungs=2)
    generator = np.random.default_rng(0)
    seen = [o for o in some(model, 60) if o.rung == 0]
    for noise in (effects.NOISE[0], effects.NOISE[-1]):
        exact = [sum(DAMAGE[PAIRS[n]] - 0.5 * GAIN[PAIRS[n]] for n in o.choices) for o in seen]
        noisy = [
            Observation(o.trial, o.choices, 0, loss + noise * generator.standard_normal())
            for o, loss in zip(seen, exact, strict=True)
        ]
        order = model._arranged(noisy)
        losses = np.array([noisy[number].loss for number in order])
        level = model._likeliest(losses - losses.mean() - model._expected)

        assert effects.NOISE[level] == noise


def check(model: EffectsModel, seen: list[Observation]) -> None:
    """A model that has seen others before says what the textbook and a new one say."""
    np.testing.assert_allclose(model.mean(seen), dense(model, seen)[0], rtol=1e-6, atol=1e-9)
    fresh = EffectsModel(PAIRS, DAMAGE, GAIN, rungs=2)
    draws = [m.draw(seen, np.random.default_rng(len(seen))) for m in (model, fresh)]
    np.testing.assert_allclose(*draws, rtol=1e-7, atol=1e-10)


def test_what_is_kept_from_call_to_call_changes_nothing(model: EffectsModel) -> None:
    seen = some(model, 150)
    for count in (3, 3, 11, 150):
        check(model, seen[:count])
    # Trials reach another rung: the first, the last, one between.
    for trial in (0, 149, 70):
        rung = 1 - seen[trial].rung
        seen[trial] = Observation(trial, seen[trial].choices, rung, seen[trial].loss - 0.01)
        check(model, seen)
    # A loss is another one at the same rung.
    seen[20] = Observation(20, seen[20].choices, seen[20].rung, 0.4)
    check(model, seen)
    # Trials fail; others have the same choices; what was forgotten comes back.
    gone = [seen.pop(place) for place in (140, 60, 0)]
    check(model, seen)
    seen += [Observation(500 + n, seen[n].choices, seen[n].rung, 0.5) for n in range(5)]
    check(model, seen)
    check(model, [*seen, *gone])
    check(model, seen[::-1])
    check(model, seen[:2])


def test_only_what_changed_is_computed(
    model: EffectsModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of factors that are added and taken away; no matrix is factorised."""
    counts = {"append": 0, "remove": 0}

    def counted(name: str, inner: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            counts[name] += 1
            inner(*args)

        return call

    for name in counts:
        monkeypatch.setattr(Factors, name, counted(name, getattr(Factors, name)))
    seen = some(model, 30)
    model.mean(seen[:29])
    assert counts == {"append": 29, "remove": 0}
    model.mean(seen)
    model.mean(seen)
    assert counts == {"append": 30, "remove": 0}
    seen[4] = Observation(4, seen[4].choices, 1 - seen[4].rung, 0.5)
    model.mean(seen)
    assert counts == {"append": 31, "remove": 1}


def test_factors_grow_and_shrink() -> None:
    generator = np.random.default_rng(0)
    root = generator.standard_normal((40, 15))
    covariance, noises = root @ root.T, np.array([0.01, 1.0])
    factors, rows = Factors(2), []
    for row in range(40):
        factors.append(covariance[row, rows], covariance[row, row] + noises)
        rows.append(row)
        if row % 3 == 2:
            factors.remove(row // 4)
            del rows[row // 4]
    factors.remove(len(rows) - 1)
    del rows[-1]
    values = generator.standard_normal(len(rows))
    for level, noise in enumerate(noises):
        lower = np.linalg.cholesky(covariance[np.ix_(rows, rows)] + noise * np.eye(len(rows)))
        white = np.linalg.solve(lower, values)
        np.testing.assert_allclose(factors.whiten(level, values), white, rtol=1e-8)
        found = factors.unwhiten(level, values)
        np.testing.assert_allclose(found, np.linalg.solve(lower.T, values), rtol=1e-8)
        assert factors.log_diagonal(level) == pytest.approx(np.log(np.diag(lower)).sum())
