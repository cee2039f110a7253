"""What a decoder's study did, by its log, and what as much would take of larger ones on GPUs.

    python -m benchmarks.study_cost --study results/studies/NAME [--tokens 512]

By arithmetic: a token's products are 2 N operations forward and 2 N back, with N weights, as frozen
ones have no gradient. To them comes the dequantising of all weights twice a step, and a step is
never faster than its kernels can be started. The parts were measured on an H100 (docs/gpu.md); the
24 GB card is NVIDIA's statement for an RTX 4090, in the same part of its peak. Making codes and
the visibility table are not in it. Nothing of the second table was run.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from alrq_core.data.parts import CALIBRATION_TOKENS, TrainParts
from tune.study.config import resumed_config
from tune.study.events import LOG_NAME, EventLog
from tune.study.prepare import prepare
from tune.study.state import StudyState

# Weights and blocks of Llama 3.2 1B, Llama 2 7B and 70B.
MODELS = {"1B": (1.24e9, 16), "7B": (6.74e9, 32), "70B": (69.0e9, 80)}
# Measured: a step of 16 blocks in 117.4 ms, where the products need 22.
BLOCK_SECONDS = 0.1174 / 16
# Measured: 8192 x 8192 weights of 2 to 4 bits.
DEQUANTISED_A_SECOND = 8192 * 8192 / 105e-6


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: With its memory.
        count: Of them.
        products: Operations a second, in large products in bfloat16.
        slower: Its dequantising, in parts of an H100's: by the bandwidth of both.
        holds: Models that fit, by `--dry-run`.
    """

    name: str
    count: int
    products: float
    slower: float
    holds: tuple[str, ...]


CARDS = (
    Card("24 GB (RTX 4090)", 1, 770e12 * 165 / 989, 3.35 / 1.01, ("1B", "7B")),
    Card("8 x 80 GB (H100)", 8, 770e12, 1.0, ("1B", "7B", "70B")),
)


@dataclass(frozen=True)
class Counts:
    """What a study did.

    Attributes:
        steps: Training steps of all trials.
        batch_size: Sequences of a step.
        scored: Sequences that were scored or asked for answers.
        references: Fine-tunes that others started from.
    """

    steps: int
    batch_size: int
    scored: int
    references: int

    def seconds(self, card: Card, weights: float, blocks: int, tokens: int) -> float:
        """Return what it takes, all cards at work all the time."""
        trained = self.steps * self.batch_size * tokens
        probed = self.references * CALIBRATION_TOKENS
        passes = 2 * self.steps + (self.scored + probed // tokens) / self.batch_size
        products = weights * (4 * (trained + probed) + 2 * self.scored * tokens) / card.products
        dequantising = passes * weights / DEQUANTISED_A_SECOND * card.slower
        started = blocks * BLOCK_SECONDS * passes / 2
        return max(products + dequantising, started) / card.count


def counted(study: Path) -> tuple[Counts, dict[str, float]]:
    """Return what a study did, and the seconds of its processes by kind."""
    prepared = prepare(resumed_config(study, {}))
    state = StudyState(prepared.inventory.names).replay(EventLog(study / LOG_NAME).read())
    recipe, scored, references = prepared.config.recipe, 0, 0
    parts = TrainParts(prepared.task, recipe.tuning.max_steps * recipe.batch_size)
    seconds = dict.fromkeys(("training", "scoring"), 0.0)
    for trial in state.trials.values():
        for report in trial.reports:
            scored += report.sequences
            scored += len(parts.scored) if report.divergence is not None else 0
        scored += len(prepared.task.test) if trial.test is not None else 0
        if trial.reference is None and (
            trial.role == "reference" or trial.source == prepared.config.reference
        ):
            references += 1
            scored += len(parts.scored) + len(parts.tuned)
        seconds["training"] += trial.train_seconds
        seconds["scoring"] += sum(report.eval_seconds for report in trial.reports)
    steps = sum(max((r.step for r in trial.reports), default=0) for trial in state.trials.values())
    return Counts(steps, recipe.batch_size, scored, references), seconds


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    given = parser.parse_args()
    counts, seconds = counted(given.study)
    print(counts)
    print("; ".join(f"{kind} {value:.0f} s" for kind, value in seconds.items()))
    print(f"\nAs many steps with {given.tokens} tokens a sequence:\n")
    print(f"| cards | {' | '.join(MODELS)} |\n|{'---|' * (1 + len(MODELS))}")
    for card in CARDS:
        cells = [
            f"{counts.seconds(card, *about, given.tokens) / 60:.0f} min"
            if name in card.holds
            else "does not fit"
            for name, about in MODELS.items()
        ]
        print(f"| {card.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
