"""A Bayesian linear model of what each module's bits and rank do to what is minimised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from search_spaces.allocation import Allocation, Choice

# Standard deviations of factors, as shares: shared by all modules, at the lowest rung and on top at
# those where trials were trained; of the exponent; of a rung's level.
SHARED, TRAINED, EXPONENT, LEVEL = 0.1, 0.3, 0.3, 0.5
# Of each module alone, and of an observation: what interactions and, after training, luck do to it.
# The likeliest pair of the last observations is taken, but a wide prior has to be likelier by so
# much, in nats: else interactions of good allocations are taken for what modules do. With MiniLM's
# table of half of the sequences, the best by 50 scores lost on the others 0.98 to 1.02 times
# what the table's own best did, with the likeliest prior 1.1 times.
OWN, NOISE, LAST = {0.1: 0.0, 1.0: 20.0}, (0.06, 0.12, 0.25, 0.5), 200
TRUSTED = min(OWN)
LARGEST_RANK = 32
# Of a predicted effect: none is drawn that helps by hurting.
LEAST_FACTOR = 0.1
LEAST = 1e-9
# Logarithm of the most that an observation may differ from what is predicted and still be believed.
FARTHEST = 3.0
_Normal = Callable[[int], np.ndarray]


@dataclass(frozen=True, eq=False)
class Observations:
    """What was measured of allocations.

    Attributes:
        rows: What the model reads of each, see `EffectsModel.rows`.
        rung: 0 for the highest, 1 for the one below it, and so on.
        excess: What each loses there against the reference, above 0.
    """

    rows: np.ndarray
    rung: np.ndarray
    excess: np.ndarray


@dataclass(frozen=True)
class Effects:
    """One belief about what every choice of every module does.

    Attributes:
        values: Of each pair of module and choice; the smaller the better.
        predicted: The table's.
        scale, exponent: What is lost is a multiple of the sum of values, times this power of the
            predicted sum.
    """

    values: np.ndarray
    predicted: np.ndarray
    scale: float
    exponent: float

    def losses(self, choices: np.ndarray) -> np.ndarray:
        """Return what allocations x modules, by index, lose at full fidelity."""
        sums = self.values[choices].sum(axis=-1)
        return self.losses_of_sums(sums, self.predicted[choices].sum(axis=-1))

    def losses_of_sums(self, values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Return what is lost where values, and what is predicted, add up to so much."""
        sums, tables = np.maximum(values, LEAST), np.maximum(predicted, LEAST)
        found: np.ndarray = self.scale * sums * tables**self.exponent
        return found


class EffectsModel:
    """excess = level of the rung x p^e x sum over modules of what the table predicts x a factor.

    A factor is one plus a part of the bits and a part that grows with the logarithm of the rank,
    which are shared by all modules, and both again for each module alone. Above the lowest rung the
    shared ones have a part of their own: training mends more of some errors than of others.
    p is the sum that the table predicts; interactions make what is lost grow faster or slower
    than it. Only the table's proportions count, and not its scale.

    The logarithm of an excess over what is predicted of it is the mean of these parts over modules,
    weighted by what each is predicted to do, as long as they are small. The posterior is a Gaussian
    that is never formed: draws come from Matheron's rule (Wilson et al. 2020, arXiv:2002.09309,
    section 3).
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, Choice]],
        damage: Mapping[tuple[str, Choice], float],
        rungs: int,
    ) -> None:
        """Set up the prior.

        Args:
            pairs: All modules with all their choices.
            damage: What the table predicts of each pair, at least 0, in any unit.
            rungs: Number of rungs.
        """
        self._numbers: dict[str, dict[Choice, int]] = {}
        for number, (name, choice) in enumerate(pairs):
            self._numbers.setdefault(name, {})[choice] = number
        places = {name: place for place, name in enumerate(self._numbers)}
        self._module = np.array([places[name] for name, _ in pairs])
        every = sorted({choice.bits for _, choice in pairs})
        self._bits = np.array([every.index(choice.bits) for _, choice in pairs])
        ranks = np.array([choice.rank for _, choice in pairs])
        self._rank = np.log2(1 + ranks) / np.log2(1 + LARGEST_RANK)
        self._damage = np.array([damage[pair] for pair in pairs], dtype=float)
        self._rungs = rungs
        # Of each bits, of rank, of the exponent, of the level.
        parts = len(every) + 1
        self._shared = np.array([SHARED] * parts + [EXPONENT, LEVEL])
        self._trained = np.array([TRAINED] * parts + [EXPONENT, LEVEL])

    def index(self, allocation: Allocation) -> np.ndarray:
        """Return the number of each module's choice among the pairs."""
        chosen = allocation.choices.items()
        return np.array([self._numbers[name][choice] for name, choice in chosen])

    @property
    def columns(self) -> int:
        """How many numbers the model reads of an allocation."""
        return len(self._shared) + 2 * len(self._numbers)

    def rows(self, choices: np.ndarray) -> np.ndarray:
        """Return what the model reads of allocations x modules, by index, of each `columns`.

        These are the parts of what is predicted that fall to each bits, those times the rank summed
        over modules, the logarithm of all that is predicted, 1, each module's part, and that times
        its rank. None depends on other allocations, so that they are computed once.
        """
        damage = self._damage[choices]
        sums = np.maximum(damage.sum(axis=1), LEAST)
        parts = damage / sums[:, None]
        ranked = parts * self._rank[choices]
        bits = self._bits[choices]
        shared = [(parts * (bits == b)).sum(axis=1) for b in range(len(self._shared) - 3)]
        shared += [ranked.sum(axis=1), np.log(sums), np.ones(len(sums))]
        return np.hstack([np.column_stack(shared), parts, ranked])

    def draw(self, seen: Observations, generator: np.random.Generator) -> Effects:
        """Return a draw of the posterior."""
        return self._believed(seen, generator.standard_normal)

    def mean(self, seen: Observations) -> Effects:
        """Return the mean of the posterior."""
        return self._believed(seen, np.zeros)

    def _believed(self, seen: Observations, normal: _Normal) -> Effects:
        """Return a draw of the prior, moved by what observations say against it."""
        own = 2 * len(self._numbers)
        parameters = normal(self._rungs * len(self._shared) + own)
        if not len(seen.rung):
            parameters[-own:] *= TRUSTED
            return self._effects(parameters, 1.0, 1.0)
        predicted = seen.rows[:, len(self._shared) - 2]
        middle = float(predicted.mean())
        features = self._features(seen, middle)
        logs = np.log(np.maximum(seen.excess, LEAST)) - predicted
        scales = self._scales(logs, seen.rung)
        # Logarithms, which are the shares themselves where these are small, and tame where not.
        left = np.clip(logs - scales[seen.rung], -FARTHEST, FARTHEST)
        scale, noise = _likeliest(features[-LAST:, :-own], features[-LAST:, -own:], left[-LAST:])
        features[:, -own:] *= scale
        drawn = features @ parameters + noise * normal(len(left))
        parameters += moved(features, noise, left - drawn)
        parameters[-own:] *= scale
        return self._effects(parameters, float(np.exp(scales[0])), float(np.exp(middle)))

    def _features(self, seen: Observations, middle: float) -> np.ndarray:
        """Return observations x parameters, in units of the prior's standard deviations; the last
        ones, of each module alone, in units of 1.
        """
        size = len(self._shared)
        shared = seen.rows[:, :size].copy()
        shared[:, -2] -= middle
        trained = [
            shared * self._trained * (seen.rung == number)[:, None]
            for number in range(self._rungs - 1)
        ]
        return np.hstack([shared * self._shared, *trained, seen.rows[:, size:]])

    def _scales(self, logs: np.ndarray, rung: np.ndarray) -> np.ndarray:
        """Return the mean logarithm of observed over predicted at each rung; where there is none,
        that of the nearest rung below it, or else above it.
        """
        found = np.full(self._rungs, np.nan)
        for number in set(rung.tolist()):
            found[number] = logs[rung == number].mean()
        known = np.flatnonzero(np.isfinite(found))
        for number in np.flatnonzero(np.isnan(found)):
            below = known[known > number]
            found[number] = found[below[0] if len(below) else known[-1]]
        return found

    def _effects(self, parameters: np.ndarray, scale: float, middle: float) -> Effects:
        """Return what parameters say of the highest rung; only shared ones are standardised."""
        size = len(self._shared)
        shared = parameters[:size] * self._shared
        if self._rungs > 1:
            shared = shared + parameters[size : 2 * size] * self._trained
        own, slopes = parameters[self._rungs * size :].reshape(2, -1)
        *bits, slope, exponent, level = shared
        factor = 1 + np.array(bits)[self._bits] + own[self._module]
        factor += (slope + slopes[self._module]) * self._rank
        return Effects(
            values=self._damage * np.maximum(factor, LEAST_FACTOR),
            predicted=self._damage,
            scale=scale * float(np.exp(level)) * middle**-exponent,
            exponent=float(exponent),
        )


def moved(features: np.ndarray, noise: float, missed: np.ndarray) -> np.ndarray:
    """Return how far parameters of a standard normal prior move for what they missed.

    F' (F F' + s^2 I)^-1 m, or as much, (F' F + s^2 I)^-1 F' m: whichever system is smaller.

    Args:
        features: F, observations x parameters.
        noise: s, the standard deviation of an observation.
        missed: m, of each observation.
    """
    narrow = features.shape[1] < features.shape[0]
    kernel = features.T @ features if narrow else features @ features.T
    kernel[np.diag_indices_from(kernel)] += noise**2
    factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
    known = features.T @ missed if narrow else missed
    found: np.ndarray = cho_solve(factor, known, check_finite=False)
    return found if narrow else features.T @ found


def _likeliest(shared: np.ndarray, own: np.ndarray, left: np.ndarray) -> tuple[float, float]:
    """Return the standard deviations of modules' own factors and of observations.

    Args:
        shared: Features of observations, standardised.
        own: Those of modules alone, in units of 1.
        left: Observations without their prior mean.
    """
    alike, alone = shared @ shared.T, own @ own.T

    def likelihood(pair: tuple[float, float]) -> float:
        scale, noise = pair
        kernel = alike + scale**2 * alone + noise**2 * np.eye(len(left))
        factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
        fit = 0.5 * left @ cho_solve(factor, left, check_finite=False)
        return float(-fit - np.log(np.diag(factor[0])).sum()) - OWN[scale]

    return max(product(OWN, NOISE), key=likelihood)
