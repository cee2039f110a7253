"""A Bayesian linear model of the loss over what each module's bits and rank do to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular

from search_spaces.allocation import Allocation, Choice

# All in the logarithm of the loss above its floor, in which effects of modules add up: 64 recorded
# curves of MiniLM were predicted with a rank correlation of 0.76 in it and of 0.66 without.
# What a standard deviation, over random allocations, of the predicted damage and gain does, and how
# far that may be off, as a share of it.
DAMAGE, GAIN, SCALE = 0.25, 0.27, 0.5
# What no table foresees: all modules at their fewest bits, and all at rank 32, together and each
# by itself. Were the latter wide, every draw would look best somewhere new, and what was found
# would never be followed up.
COMMON, OWN = 0.5, 0.1
LEVEL = 2.0
# Standard deviation of an observation: seed, order of the data, interactions. And on top, for each
# halving of the steps.
NOISE, NOISE_OBSERVATIONS = (0.05, 0.1, 0.2, 0.4), 200
RUNG_NOISE = 0.22
# Of the lowest loss seen at a rung.
FLOOR = 0.93
LEAST = 1e-6
ROOM = 64
_Normal = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Observation:
    """The loss of one allocation.

    Attributes:
        choices: Index of each module's choice, see `EffectsModel.index`.
        rung: 0 for the highest, 1 for the one below it, and so on.
        loss: Validation loss there, at least 0.
    """

    choices: np.ndarray
    rung: int
    loss: float


@dataclass(frozen=True)
class Effects:
    """One belief about what every choice of every module does.

    Attributes:
        values: Of each pair of module and choice; the smaller the better.
        level: What is added to their sum.
        floor: Loss that nothing falls below.
    """

    values: np.ndarray
    level: float
    floor: float

    def losses(self, choices: np.ndarray) -> np.ndarray:
        """Return the losses at full fidelity of allocations x modules, by index."""
        found: np.ndarray = self.floor + np.exp(self.level + self.values[choices].sum(axis=-1))
        return found


class EffectsModel:
    """log(loss - floor) = level of the rung + sum over modules of the effects of format and rank.

    Prior: what a table predicts, times factors that are learned for all damages and all gains
    together, plus a deviation of each module's sensitivity to its error and to its rank. Only the
    table's proportions count, and not its scale. The posterior is a Gaussian that is never formed:
    draws come from Matheron's rule (Wilson et al. 2020, arXiv:2002.09309, section 3).
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, Choice]],
        damage: Mapping[tuple[str, Choice], float],
        gain: Mapping[tuple[str, Choice], float],
        error: Mapping[tuple[str, Choice], float],
        share: Mapping[str, float],
        rungs: int,
    ) -> None:
        """Set up the prior.

        Args:
            pairs: All modules with all their choices.
            damage: Predicted damage of each pair, at least 0, in any unit.
            gain: Predicted gain of each pair, at least 0, in any unit.
            error: Size of each pair's quantisation error, as a share of the module's largest.
            share: Each module's part in all weights.
            rungs: Number of rungs.
        """
        self._numbers: dict[str, dict[Choice, int]] = {}
        for number, (name, choice) in enumerate(pairs):
            self._numbers.setdefault(name, {})[choice] = number
        places = {name: place for place, name in enumerate(self._numbers)}
        self._module = np.array([places[name] for name, _ in pairs])
        self._damage = DAMAGE * self._standardised([damage[pair] for pair in pairs])
        self._gain = GAIN * self._standardised([gain[pair] for pair in pairs])
        part = np.array([share[name] for name, _ in pairs])
        errors = np.array([error[pair] for pair in pairs])
        ranks = np.array([np.log2(1 + choice.rank) for _, choice in pairs]) / np.log2(1 + 32)
        # Sums over all modules have these standard deviations, whatever their number.
        self._common = (
            SCALE * self._damage,
            -SCALE * self._gain,
            COMMON * part * errors,
            COMMON * ranks / len(places),
        )
        self._own = OWN * np.sqrt(part) * errors, OWN * ranks / np.sqrt(len(places))
        self._prior = self._damage - self._gain
        self._rungs = rungs
        self._size = len(self._common) + len(self._own) * len(places) + rungs
        # Features of all allocations at the rungs where they were observed, and the products of
        # each two of them.
        self._known: dict[tuple[bytes, int], int] = {}
        self._features = np.empty((ROOM, self._size))
        self._products = np.empty((ROOM, ROOM))
        self._factor = _Factor()

    def index(self, allocation: Allocation) -> np.ndarray:
        """Return the number of each module's choice among the pairs."""
        chosen = allocation.choices.items()
        return np.array([self._numbers[name][choice] for name, choice in chosen])

    def draw(self, observations: Sequence[Observation], generator: np.random.Generator) -> Effects:
        """Return a draw of the posterior."""
        return self._believed(observations, generator.standard_normal)

    def mean(self, observations: Sequence[Observation]) -> Effects:
        """Return the mean of the posterior."""
        return self._believed(observations, np.zeros)

    def _standardised(self, values: Sequence[float]) -> np.ndarray:
        """Divide by the standard deviation of the sum over modules that choose evenly."""
        array = np.array(values, dtype=float)
        numbers = np.bincount(self._module)
        mean = np.bincount(self._module, array) / numbers
        variance = np.bincount(self._module, (array - mean[self._module]) ** 2) / numbers
        spread = float(np.sqrt(variance.sum()))
        return array / spread if spread else array

    def _believed(self, observations: Sequence[Observation], normal: _Normal) -> Effects:
        """Return a draw of the prior, moved by what observations say against it."""
        parameters = normal(self._size)
        if not observations:
            return self._effects(parameters, 0.0, 0.0)
        rung = np.array([seen.rung for seen in observations])
        values, floor = self._logarithms(observations, rung)
        # Levels have next to no prior, so they are counted from the mean.
        middle = float(values.mean())
        rows = self._rows(observations)
        features = self._features[: len(self._known)]
        # The first two features are those of the prior's two parts, times their uncertainty.
        prior = features[rows, :2].sum(axis=1) / SCALE
        last = rows[-NOISE_OBSERVATIONS:]
        kernel = self._products[np.ix_(last, last)]
        noise = _likeliest_noise(kernel, values - middle - prior, rung)
        drawn = prior + (features @ parameters)[rows] + noise * normal(len(rows))
        lower = self._factor.update(self._products, rows, noise)
        weights = cho_solve((lower, True), values - middle - drawn, check_finite=False)
        parameters += features.T @ np.bincount(rows, weights, len(features))
        return self._effects(parameters, middle, floor)

    def _effects(self, parameters: np.ndarray, middle: float, floor: float) -> Effects:
        """Return what standardised parameters say."""
        parts = [len(self._common), self._size - self._rungs]
        common, own, levels = np.split(parameters, parts)
        effects = self._prior + common @ np.array(self._common)
        for values, effect in zip(np.split(own, len(self._own)), self._own, strict=True):
            effects += values[self._module] * effect
        return Effects(effects, middle + LEVEL * float(levels[0]), floor)

    def _logarithms(
        self, observations: Sequence[Observation], rung: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Return the logarithms of the losses above the floors of their rungs, and the highest
        rung's floor: the lowest one where no trial got there.
        """
        losses = np.array([seen.loss for seen in observations])
        floors = np.full(self._rungs, np.inf)
        np.minimum.at(floors, rung, FLOOR * losses)
        highest = floors[0] if np.isfinite(floors[0]) else floors.min()
        # A loss may be rounded to 0, and its floor with it.
        return np.log(np.maximum(losses - floors[rung], LEAST)), float(highest)

    def _rows(self, observations: Sequence[Observation]) -> np.ndarray:
        """Return where each observation's features are, after adding those that are new."""
        rows = []
        for seen in observations:
            key = seen.choices.tobytes(), seen.rung
            if key not in self._known:
                self._add(seen, len(self._known))
                self._known[key] = len(self._known)
            rows.append(self._known[key])
        return np.array(rows)

    def _add(self, seen: Observation, row: int) -> None:
        if row == len(self._features):
            self._features = np.concatenate((self._features, np.empty_like(self._features)))
            self._products = np.pad(self._products, (0, row))
        common = [effect[seen.choices].sum() for effect in self._common]
        own = [effect[seen.choices] for effect in self._own]
        level = LEVEL * (np.arange(self._rungs) == seen.rung)
        self._features[row] = np.concatenate((common, *own, level))
        products = self._features[: row + 1] @ self._features[row]
        self._products[row, : row + 1] = self._products[: row + 1, row] = products


class _Factor:
    """The lower Cholesky factor of a covariance, of which what stays the same is kept."""

    def __init__(self) -> None:
        self._rows, self._noise = np.empty(0, dtype=np.int64), np.empty(0)
        self._lower = np.empty((0, 0))

    def update(self, products: np.ndarray, rows: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the factor of the products of these rows, plus noise on the diagonal.

        What the last call factorised is kept up to the first row or noise that is another one.

        Args:
            products: Covariances without noise; those of known rows never change.
            rows: Which of them, in this order.
            noise: Standard deviation of each.
        """
        both = min(len(rows), len(self._rows))
        same = (rows[:both] == self._rows[:both]) & (noise[:both] == self._noise[:both])
        kept = both if same.all() else int(same.argmin())
        before, new = rows[:kept], rows[kept:]
        old = self._lower[:kept, :kept]
        cross = products[np.ix_(before, new)]
        cross = solve_triangular(old, cross, lower=True, check_finite=False)
        # By columns, as LAPACK has its matrices: else it works on copies.
        lower = np.zeros((len(rows), len(rows)), order="F")
        lower[:kept, :kept], lower[kept:, :kept] = old, cross.T
        left = products[np.ix_(new, new)] - cross.T @ cross
        left[np.diag_indices_from(left)] += noise[kept:] ** 2
        left = cholesky(left.T, lower=True, overwrite_a=True, check_finite=False)
        lower[kept:, kept:] = left
        self._rows, self._noise, self._lower = rows, noise, lower
        return lower


def _likeliest_noise(kernel: np.ndarray, left: np.ndarray, rung: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each observation: the likeliest of a few, by the last ones.

    Args:
        kernel: Prior covariance without noise of the last observations.
        left: Observations without their prior mean.
        rung: Of each.
    """
    left, lower = left[-NOISE_OBSERVATIONS:], RUNG_NOISE * rung[-NOISE_OBSERVATIONS:]

    def likelihood(level: float) -> float:
        factor = cho_factor(kernel + np.diag(level**2 + lower**2), lower=True)
        fit = 0.5 * left @ cho_solve(factor, left)
        return float(-fit - np.log(np.diag(factor[0])).sum())

    return np.hypot(max(NOISE, key=likelihood), RUNG_NOISE * rung)
