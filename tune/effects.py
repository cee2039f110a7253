"""A Bayesian linear model of the loss over what each module's bits and rank do to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dtpsv

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
        trial: Whose loss: a number that stands for one allocation in all calls.
        choices: Index of each module's choice, see `EffectsModel.index`.
        rung: 0 for the highest, 1 for the one below it, and so on.
        loss: Validation loss there.
    """

    trial: int
    choices: np.ndarray
    rung: int
    loss: float


class EffectsModel:
    """Loss = level of the rung + sum over modules of the effects of their format and rank.

    Prior: what a table predicts, times factors that are learned for all damages and all gains
    together, plus a deviation of each format and each rank of each module. The posterior is a
    Gaussian that is never formed: draws come from Matheron's rule (Wilson et al. 2020,
    arXiv:2002.09309, section 3). What was computed for observations is kept, so that a new one
    costs time that grows with their number squared.
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
        self._numbers: dict[str, dict[Choice, int]] = {}
        for number, (name, choice) in enumerate(pairs):
            self._numbers.setdefault(name, {})[choice] = number
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
        self._prior = self._damage - GAIN_MEAN * self._gain
        self._rungs = rungs
        self._size = 2 + len(formats) + len(ranks)
        # What each row of the factors is: trial and rung, choices, expected loss. There is room for
        # more choices than rows.
        self._keys: list[tuple[int, int]] = []
        self._choices = np.empty((64, len(self._numbers)), dtype=np.int64)
        self._expected = np.empty(0)
        self._factors = Factors(len(NOISE))

    def index(self, allocation: Allocation) -> np.ndarray:
        """Return the number of each module's choice among the pairs."""
        chosen = allocation.choices.items()
        return np.array([self._numbers[name][choice] for name, choice in chosen])

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

    def _changes(self, parameters: np.ndarray) -> np.ndarray:
        """Return what standardised parameters change of every pair's effect."""
        formats, ranks = np.split(parameters[2:], [len(self._format_sd)])
        changes: np.ndarray = (
            DAMAGE_SCALE * parameters[0] * self._damage
            - GAIN_SCALE * parameters[1] * self._gain
            + (self._format_sd * formats)[self._format]
            + (self._rank_sd * ranks)[self._rank]
        )
        return changes

    def _parameters(self, weights: np.ndarray) -> np.ndarray:
        """Return each parameter's part in a weighted sum of every pair's effect."""
        common = DAMAGE_SCALE * self._damage @ weights, -GAIN_SCALE * self._gain @ weights
        formats = self._format_sd * np.bincount(self._format, weights, len(self._format_sd))
        ranks = self._rank_sd * np.bincount(self._rank, weights, len(self._rank_sd))
        parts: np.ndarray = np.concatenate((common, formats, ranks))
        return parts

    def _moved(
        self,
        observations: Sequence[Observation],
        sample: np.ndarray,
        levels: np.ndarray,
        noises: Callable[[int], np.ndarray],
    ) -> np.ndarray:
        """Return the effects of a draw of the prior, moved by what observations say against it."""
        effects: np.ndarray = self._prior + self._changes(sample)
        if not observations:
            return effects
        order = self._arranged(observations)
        losses = np.array([seen.loss for seen in observations])[order]
        rung = np.array([seen.rung for seen in observations])[order]
        choices = self._choices[: len(order)]
        # Levels have next to no prior, so they are counted from the mean loss.
        losses -= losses.mean()
        level = self._likeliest(losses - self._expected)
        noise = np.hypot(NOISE[level], RUNG_NOISE * rung) * noises(len(observations))[order]
        drawn = effects[choices].sum(axis=1) + levels[rung] + noise
        weights = self._factors.unwhiten(level, self._factors.whiten(level, losses - drawn))
        # Of each pair, the sum over the observations that have it.
        weights = np.repeat(weights, choices.shape[1])
        weights = np.bincount(choices.ravel(), weights, len(self._prior))
        moved: np.ndarray = effects + self._changes(self._parameters(weights))
        return moved

    def _likeliest(self, left: np.ndarray) -> int:
        """Return the number of the likeliest noise.

        Args:
            left: Losses without their prior mean.
        """
        likelihoods = []
        for level in range(len(NOISE)):
            white = self._factors.whiten(level, left)
            likelihoods.append(-0.5 * white @ white - self._factors.log_diagonal(level))
        return int(np.argmax(likelihoods))

    def _arranged(self, observations: Sequence[Observation]) -> np.ndarray:
        """Bring the factors up to date; return the number of each row's observation."""
        waiting = {(seen.trial, seen.rung): n for n, seen in enumerate(observations)}
        # Backwards, since the last rows are the cheapest to forget.
        for row in reversed(range(len(self._keys))):
            if self._keys[row] not in waiting:
                self._forget(row)
        order = [waiting.pop(key) for key in self._keys]
        for number in waiting.values():
            self._learn(observations[number])
        return np.array([*order, *waiting.values()])

    def _forget(self, row: int) -> None:
        self._factors.remove(row)
        self._choices[row:-1] = self._choices[row + 1 :]
        self._expected = np.delete(self._expected, row)
        del self._keys[row]

    def _learn(self, seen: Observation) -> None:
        """Append a row, whose covariances are those of its parameters and its level."""
        rows = len(self._keys)
        if rows == len(self._choices):
            self._choices = np.concatenate((self._choices, np.empty_like(self._choices)))
        self._choices[rows] = seen.choices
        self._expected = np.append(self._expected, self._prior[seen.choices].sum())
        self._keys.append((seen.trial, seen.rung))
        counts = np.bincount(seen.choices, minlength=len(self._prior))
        changes = self._changes(self._parameters(counts))
        covariances = changes[self._choices[: rows + 1]].sum(axis=1)
        covariances += LEVEL**2 * np.array([rung == seen.rung for _, rung in self._keys])
        noise = np.hypot(NOISE, RUNG_NOISE * seen.rung)
        self._factors.append(covariances[:-1], covariances[-1] + noise**2)


class Factors:
    """Cholesky factors of one covariance under several noises, which gain and lose rows.

    Lower factors, packed row by row: a new row goes to the end of what BLAS reads.
    """

    def __init__(self, levels: int) -> None:
        """Start without rows.

        Args:
            levels: Number of noises.
        """
        self._rows = 0
        self._packed = np.empty((levels, 8))

    def append(self, covariances: np.ndarray, variances: np.ndarray) -> None:
        """Add a row.

        Args:
            covariances: With the rows that are there.
            variances: Of the row, noise included, at each level.
        """
        start = self._rows * (self._rows + 1) // 2
        end = start + self._rows + 1
        if end > self._packed.shape[1]:
            self._packed = np.concatenate((self._packed, np.empty_like(self._packed)), axis=1)
        for level, variance in enumerate(variances):
            white = self.whiten(level, covariances)
            self._packed[level, start : end - 1] = white
            self._packed[level, end - 1] = np.sqrt(variance - white @ white)
        self._rows += 1

    def remove(self, row: int) -> None:
        """Forget a row: what it explained of later rows goes to these, by plane rotations.

        Golub and Van Loan 2013, "Matrix computations", section 6.5.4.
        """
        starts = np.cumsum(np.arange(self._rows + 1))
        column = starts[row + 1 : -1] + row
        explained = self._packed[:, column]
        later = self._packed[:, starts[row + 1] : starts[-1]]
        later = np.delete(later, column - starts[row + 1], axis=1)
        self._packed[:, starts[row] : starts[row] + later.shape[1]] = later
        self._rows -= 1
        for place in range(row, self._rows):
            column = starts[place : self._rows] + place
            old = self._packed[:, column]
            length = np.hypot(old[:, :1], explained[:, :1])
            cosine, sine = old[:, :1] / length, explained[:, :1] / length
            self._packed[:, column] = cosine * old + sine * explained
            explained = (cosine * explained - sine * old)[:, 1:]

    def whiten(self, level: int, values: np.ndarray) -> np.ndarray:
        """Return what the factor turns into the values."""
        return self._solved(level, values, transposed=1)

    def unwhiten(self, level: int, values: np.ndarray) -> np.ndarray:
        """Return what the transposed factor turns into the values."""
        return self._solved(level, values, transposed=0)

    def log_diagonal(self, level: int) -> float:
        """Return half the logarithm of the determinant."""
        ends = np.cumsum(np.arange(1, self._rows + 1))
        return float(np.log(self._packed[level, ends - 1]).sum())

    def _solved(self, level: int, values: np.ndarray, transposed: int) -> np.ndarray:
        if not self._rows:
            return values
        # To BLAS, rows of a lower factor are columns of an upper one.
        solved: np.ndarray = dtpsv(self._rows, self._packed[level], values, trans=transposed)
        return solved
