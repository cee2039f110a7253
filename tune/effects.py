"""A Bayesian linear model of the loss over what each module's bits and rank do to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Format

# Standard deviations of the prior, as factors on what a table predicts: how far all damages and all
# gains may be from it together, and each one by itself.
DAMAGE_SCALE, GAIN_SCALE = 0.7, 0.5
GAIN_MEAN = 0.5
OWN_PART = 0.5
# Of the loss: what a module may do that no table foresees, and the level of each rung.
OWN_FLOOR, LEVEL = 1e-3, 0.5
# Standard deviation of a loss with everything else equal: seed, order of the data, interactions.
NOISE = (0.002, 0.004, 0.008, 0.016, 0.032)
# Standard deviation of a rung below the highest, on top, for each halving of the steps.
RUNG_NOISE = 0.02


@dataclass(frozen=True)
class Observation:
    """The loss of one allocation.

    Attributes:
        choices: Index of each module's choice, see `EffectsModel.index`.
        rung: 0 for the highest, 1 for the one below it, and so on.
        loss: Validation loss there.
    """

    choices: np.ndarray
    rung: int
    loss: float


class EffectsModel:
    """Loss = level of the rung + sum over modules of the effects of their format and rank.

    Prior: what a table predicts, times factors that are learned for all damages and all gains
    together, plus a deviation of each format and each rank of each module. The posterior is a
    Gaussian that is never formed: draws come from Matheron's rule (Wilson et al. 2020,
    arXiv:2002.09309, section 3), in time that grows with observations cubed and parameters once.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, Choice]],
        damage: Mapping[tuple[str, Choice], float],
        gain: Mapping[tuple[str, Choice], float],
        rungs: int,
    ) -> None:
        """Set up the prior.

        Args:
            pairs: All modules with all their choices.
            damage: Predicted damage of each pair, at least 0, in units of the loss.
            gain: Predicted gain of each pair, at least 0.
            rungs: Number of rungs.
        """
        self._pairs = {pair: number for number, pair in enumerate(pairs)}
        self._damage = np.array([damage[pair] for pair in pairs])
        self._gain = np.array([gain[pair] for pair in pairs])
        formats: dict[tuple[str, Format], int] = {}
        ranks: dict[tuple[str, int], int] = {}
        of_format = [formats.setdefault((n, c.format), len(formats)) for n, c in pairs]
        of_rank = [ranks.setdefault((n, c.rank), len(ranks)) for n, c in pairs]
        self._format = np.array(of_format)
        self._rank = np.array(of_rank)
        self._format_sd = self._deviation(self._format, self._damage, len(formats))
        self._rank_sd = self._deviation(self._rank, self._gain, len(ranks))
        self._rungs = rungs
        self._size = 2 + len(formats) + len(ranks)
        # What has been observed, in standardised parameters, and the products of all pairs of it.
        self._known: dict[bytes, int] = {}
        self._features = np.empty((0, self._size))
        self._gram = np.empty((0, 0))

    def index(self, allocation: Allocation) -> np.ndarray:
        """Return the number of each module's choice among the pairs."""
        return np.array([self._pairs[pair] for pair in allocation.choices.items()])

    def draw(
        self, observations: Sequence[Observation], generator: np.random.Generator
    ) -> np.ndarray:
        """Return a draw of every pair's effect."""
        sample = generator.standard_normal(self._size)
        levels = LEVEL * generator.standard_normal(self._rungs)
        return self._moved(observations, sample, levels, generator.standard_normal)

    def mean(self, observations: Sequence[Observation]) -> np.ndarray:
        """Return the posterior mean of every pair's effect."""
        return self._moved(observations, np.zeros(self._size), np.zeros(self._rungs), np.zeros)

    def _deviation(self, groups: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
        largest = np.zeros(count)
        np.maximum.at(largest, groups, predicted)
        deviation: np.ndarray = np.hypot(OWN_PART * largest, OWN_FLOOR)
        return deviation

    def _prior(self) -> np.ndarray:
        """Return the mean of every pair's effect."""
        prior: np.ndarray = self._damage - GAIN_MEAN * self._gain
        return prior

    def _effects(self, parameters: np.ndarray) -> np.ndarray:
        """Return every pair's effect for standardised parameters."""
        formats, ranks = np.split(parameters[2:], [len(self._format_sd)])
        effects: np.ndarray = (
            self._prior()
            + DAMAGE_SCALE * parameters[0] * self._damage
            - GAIN_SCALE * parameters[1] * self._gain
            + (self._format_sd * formats)[self._format]
            + (self._rank_sd * ranks)[self._rank]
        )
        return effects

    def _moved(
        self,
        observations: Sequence[Observation],
        sample: np.ndarray,
        levels: np.ndarray,
        noises: Callable[[int], np.ndarray],
    ) -> np.ndarray:
        """Return the effects of a draw of the prior, moved by what observations say against it."""
        if not observations:
            return self._effects(sample)
        rows = self._rows(observations)
        rung = np.array([seen.rung for seen in observations])
        losses = np.array([seen.loss for seen in observations])
        # Levels have next to no prior, so they are counted from the mean loss.
        middle = losses.mean()
        kernel = self._gram[np.ix_(rows, rows)] + LEVEL**2 * (rung[:, None] == rung)
        prior = np.array([self._prior()[seen.choices].sum() for seen in observations])
        noise = _likeliest_noise(kernel, losses - middle - prior, rung)
        features = self._features[rows]
        drawn = prior + features @ sample + levels[rung] + noise * noises(len(rows))
        factor = cho_factor(kernel + np.diag(noise**2), lower=True)
        weights = cho_solve(factor, losses - middle - drawn)
        return self._effects(sample + features.T @ weights)

    def _rows(self, observations: Sequence[Observation]) -> np.ndarray:
        """Return where each observation's features are, after adding those that are new."""
        new = {
            key: seen.choices
            for seen in observations
            if (key := seen.choices.tobytes()) not in self._known
        }
        if new:
            added = np.array([self._feature(choices) for choices in new.values()])
            cross = self._features @ added.T
            self._gram = np.block([[self._gram, cross], [cross.T, added @ added.T]])
            self._features = np.concatenate((self._features, added))
            self._known |= {key: len(self._known) + place for place, key in enumerate(new)}
        return np.array([self._known[seen.choices.tobytes()] for seen in observations])

    def _feature(self, choices: np.ndarray) -> np.ndarray:
        feature = np.zeros(self._size)
        feature[0] = DAMAGE_SCALE * self._damage[choices].sum()
        feature[1] = -GAIN_SCALE * self._gain[choices].sum()
        formats, ranks = self._format[choices], self._rank[choices]
        feature[2 + formats] = self._format_sd[formats]
        feature[2 + len(self._format_sd) + ranks] = self._rank_sd[ranks]
        return feature


def _likeliest_noise(kernel: np.ndarray, left: np.ndarray, rung: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each observation: the likeliest of a few.

    Args:
        kernel: Prior covariance of the losses without noise.
        left: Losses without their prior mean.
        rung: Of each.
    """
    best, found = -np.inf, np.full(len(left), NOISE[0])
    for level in NOISE:
        noise = np.hypot(level, RUNG_NOISE * rung)
        factor = cho_factor(kernel + np.diag(noise**2), lower=True)
        likelihood = -0.5 * left @ cho_solve(factor, left) - np.log(np.diag(factor[0])).sum()
        if likelihood > best:
            best, found = likelihood, noise
    return found
