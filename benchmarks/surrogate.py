"""A model of the loss over allocations, fitted to recorded curves, to replay searches on.

It knows nothing of the visibility table, so that a searcher that does has no advantage by it.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.stats import kendalltau, spearmanr

from alrq_core.sensitivity.table import VisibilityTable
from search_spaces.allocation import Allocation, decode
from search_spaces.inventory import Inventory

FOLDS = 10
CURVES = "curves.parquet"


@dataclass(frozen=True)
class Curves:
    """Recorded learning curves.

    Attributes:
        allocations: Of each curve.
        seeds: Of each curve.
        sources: Of each curve.
        steps: Of the rungs.
        losses: curves x rungs.
        seconds: Of each curve, training and scoring.
    """

    allocations: tuple[Allocation, ...]
    seeds: np.ndarray
    sources: tuple[str, ...]
    steps: tuple[int, ...]
    losses: np.ndarray
    seconds: np.ndarray


def recorded_lines(folder: Path) -> list[dict[str, Any]]:
    """Return all recorded curves, each once, in order; lines that were cut short are left out."""
    found: dict[int, dict[str, Any]] = {}
    if (folder / CURVES).is_file():
        for line in pyarrow.parquet.read_table(folder / CURVES).to_pylist():
            found[line["number"]] = line
    for path in sorted(folder.glob("worker-*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                found[line["number"]] = line
    return [found[number] for number in sorted(found)]


def load_curves(folder: Path, inventory: Inventory) -> Curves:
    """Return what `record_curves.py` recorded."""
    lines = recorded_lines(folder)
    return Curves(
        allocations=tuple(decode(line["allocation"], inventory.names) for line in lines),
        seeds=np.array([line["seed"] for line in lines]),
        sources=tuple(line["source"] for line in lines),
        steps=tuple(lines[0]["steps"]),
        losses=np.array([line["losses"] for line in lines]),
        seconds=np.array([line["seconds"] for line in lines]),
    )


def recorded_table(folder: Path) -> VisibilityTable:
    """Return the visibility table that `record_curves.py` drew allocations by."""
    (path,) = folder.glob("visibility-*.json")
    return VisibilityTable.from_json(json.loads(path.read_text(encoding="utf-8")))


class Features:
    """Numbers of an allocation: each module's error and rank, and their means by block and part."""

    def __init__(self, inventory: Inventory) -> None:
        """Prepare the means over the model's modules."""
        modules = inventory.modules
        self._names = [module.name for module in modules]
        weights = np.array([float(module.weights) for module in modules])
        groups = {(module.part, None) for module in modules}
        groups |= {(None, module.block) for module in modules} | {(None, None)}
        rows = []
        for part, block in sorted(groups, key=str):
            inside = [part in (None, m.part) and block in (None, m.block) for m in modules]
            rows.append(weights * inside / (weights * inside).sum())
        self._means = np.array(rows)

    def __call__(self, allocation: Allocation) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of all modules, and those of all means."""
        chosen = [allocation.choices[name] for name in self._names]
        # The step of a uniform quantiser halves with each bit.
        error = np.array([2.0 ** (2 - c.bits) if c.bits < 16 else 0.0 for c in chosen])
        rank = np.array([np.log2(1 + c.rank) / 5 for c in chosen])
        single = np.concatenate((error, error**2, rank))
        means = np.concatenate((self._means @ error, self._means @ error**2, self._means @ rank))
        return single, means


class Surrogate:
    """A Gaussian process for the losses at one rung.

    Kernel: linear in each module's features, and smooth in the means by block and part, so that
    effects add up over modules and interact between blocks. Scales are those of the highest
    marginal likelihood (Rasmussen and Williams 2006, section 5.4.1).
    """

    def __init__(self, single: np.ndarray, means: np.ndarray, losses: np.ndarray) -> None:
        """Fit it.

        Args:
            single: curves x module features.
            means: curves x mean features.
            losses: Of each curve.
        """
        self._single, self._means = single, means
        self._centre = float(losses.mean())
        self._left = losses - self._centre
        start = np.log([0.05, 0.1, 1.0, 0.02])
        found = minimize(self._cost, start, method="L-BFGS-B", bounds=[(-9, 3)] * 4)
        self._scales = np.exp(found.x)
        self.noise = float(self._scales[3])
        kernel = self._kernel(single, means) + self.noise**2 * np.eye(len(losses))
        self._weights = cho_solve(cho_factor(kernel, lower=True), self._left)

    def __call__(self, single: np.ndarray, means: np.ndarray) -> np.ndarray:
        """Return the expected losses of allocations."""
        expected: np.ndarray = self._centre + self._kernel(single, means) @ self._weights
        return expected

    def _kernel(self, single: np.ndarray, means: np.ndarray) -> np.ndarray:
        return _kernel(np.log(self._scales), single, self._single, means, self._means)

    def _cost(self, scales: np.ndarray) -> float:
        kernel = _kernel(scales, self._single, self._single, self._means, self._means)
        kernel[np.diag_indices_from(kernel)] += np.exp(2 * scales[3]) + 1e-10
        factor = cho_factor(kernel, lower=True)
        half = 0.5 * self._left @ cho_solve(factor, self._left)
        return float(half + np.log(np.diag(factor[0])).sum())


def _kernel(
    scales: np.ndarray, a: np.ndarray, b: np.ndarray, means_a: np.ndarray, means_b: np.ndarray
) -> np.ndarray:
    linear, smooth, width = np.exp(scales[:3])
    squared = (means_a**2).sum(1)[:, None] + (means_b**2).sum(1) - 2 * means_a @ means_b.T
    smooth_part = smooth**2 * np.exp(-0.5 * np.maximum(squared, 0) / width**2)
    kernel: np.ndarray = linear**2 * (a @ b.T) / a.shape[1] + smooth_part
    return kernel


@dataclass(frozen=True)
class Quality:
    """How well losses are predicted for allocations that a fit has not seen.

    Attributes:
        rung: Steps.
        spearman, kendall: Rank correlations of prediction and loss.
        error: Root mean squared error.
        spread: Standard deviation of the losses.
        noise: Standard deviation of a loss with the training seed, from curves with two seeds.
    """

    rung: int
    spearman: float
    kendall: float
    error: float
    spread: float
    noise: float


class Landscape:
    """Losses of any allocation at every rung, for replays.

    Attributes:
        steps: Of the rungs.
        quality: Of each rung's fit, by cross-validation over allocations.
    """

    def __init__(self, curves: Curves, inventory: Inventory) -> None:
        """Fit a surrogate to each rung, and the noise to what is left."""
        self.steps = curves.steps
        self._features = Features(inventory)
        pairs = [self._features(allocation) for allocation in curves.allocations]
        single, means = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        self._rungs = [Surrogate(single, means, losses) for losses in curves.losses.T]
        self._noise = noise_covariance(curves)
        self.quality = [
            _quality(curves, rung, single, means, float(np.sqrt(self._noise[rung, rung])))
            for rung in range(len(self.steps))
        ]
        self._known: dict[Allocation, np.ndarray] = {}

    def expected(self, allocation: Allocation) -> np.ndarray:
        """Return the losses at all rungs, without noise."""
        if allocation not in self._known:
            single, means = self._features(allocation)
            at = [float(fit(single[None], means[None])[0]) for fit in self._rungs]
            self._known[allocation] = np.array(at)
        return self._known[allocation]

    def true_loss(self, allocation: Allocation) -> float:
        """Return the loss at the highest rung, without noise."""
        return float(self.expected(allocation)[-1])

    def observed(self, allocation: Allocation, seed: int) -> np.ndarray:
        """Return the losses at all rungs as one training with a seed would show them."""
        text = f"{seed} {allocation.encode()}".encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        noise = np.random.default_rng(number).multivariate_normal(
            np.zeros(len(self.steps)), self._noise
        )
        found: np.ndarray = self.expected(allocation) + noise
        return found

    def loss(self, allocation: Allocation, seed: int, rung: int) -> float:
        """Return what `observed` does at one rung."""
        return float(self.observed(allocation, seed)[rung])


def seed_pairs(curves: Curves) -> np.ndarray:
    """Return the places of both curves of each allocation with two seeds, pairs x 2, by seed."""
    places: dict[Allocation, list[int]] = {}
    for place in np.argsort(curves.seeds, kind="stable").tolist():
        places.setdefault(curves.allocations[place], []).append(place)
    return np.array([found[:2] for found in places.values() if len(found) > 1])


def noise_covariance(curves: Curves) -> np.ndarray:
    """Return the covariance, rungs x rungs, of one seed's losses around their expectation.

    From allocations that were trained with two seeds, whose mean difference (one seed's start is
    better for all) is taken out.
    """
    first, second = seed_pairs(curves).T
    covariance: np.ndarray = np.cov((curves.losses[second] - curves.losses[first]).T) / 2
    return covariance


def _quality(
    curves: Curves, rung: int, single: np.ndarray, means: np.ndarray, noise: float
) -> Quality:
    """Predict each fold from the others; curves of one allocation share a fold."""
    numbers = {a: n for n, a in enumerate(dict.fromkeys(curves.allocations))}
    fold = np.array([numbers[a] % FOLDS for a in curves.allocations])
    losses = curves.losses[:, rung]
    predicted = np.empty(len(losses))
    for number in range(FOLDS):
        inside = fold == number
        fit = Surrogate(single[~inside], means[~inside], losses[~inside])
        predicted[inside] = fit(single[inside], means[inside])
    return Quality(
        rung=curves.steps[rung],
        spearman=float(spearmanr(predicted, losses).statistic),
        kendall=float(kendalltau(predicted, losses).statistic),
        error=float(np.sqrt(np.mean((predicted - losses) ** 2))),
        spread=float(losses.std()),
        noise=noise,
    )
