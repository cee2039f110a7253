"""What calibrating takes on one core of a CPU, for models of 0.1, 1 and 7 billion parameters.

    python -m benchmarks.calibration

Measured are the parts: codes of some rows under a moment, and matrix products, for each number of
inputs that the models have. The rest is arithmetic, by the number of rows, of matrices, of tokens,
and of passes, which follows from how many moments are held at once. Memory is that of the moments
and of one matrix at work on them, traced without computing; the base model comes on top.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from alrq_core.data.parts import CALIBRATION_TOKENS
from alrq_core.memory.live_bytes import LiveBytes
from alrq_core.recipe import Recipe
from alrq_core.weights.calibrate import calibrated_codes

BITS = (8, 4, 3, 2)
GROUP_SIZE = 64
# From two numbers of rows follows what a matrix takes by itself, and what each row adds.
FEW, MORE = 64, 320
# Tokens of one product.
PART_TOKENS = 1024
REPEATS = 2


@dataclass(frozen=True)
class Decoder:
    """A language model of Llama's kind.

    Attributes:
        name: One that has these blocks.
        blocks: How many.
        hidden, wide, keys: Inputs of attention, inputs of the last layer of a block, outputs of
            keys and of values.
    """

    name: str
    blocks: int
    hidden: int
    wide: int
    keys: int

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Outputs and inputs of the linear layers of a block."""
        attention = (*((self.hidden, self.hidden),) * 2, *((self.keys, self.hidden),) * 2)
        return (*attention, *((self.wide, self.hidden),) * 2, (self.hidden, self.wide))

    @property
    def weights(self) -> int:
        """Weights of all linear layers."""
        return self.blocks * sum(rows * inputs for rows, inputs in self.shapes)

    @property
    def blocks_held(self) -> int:
        """Blocks whose moments are held at once."""
        fitting = Recipe.held_bytes // sum(4 * inputs**2 for _, inputs in self.shapes)
        return min(self.blocks, max(1, fitting))


DECODERS = (
    Decoder("SmolLM2-135M", 30, 576, 1536, 192),
    Decoder("Llama 3.2 1B", 16, 2048, 8192, 512),
    Decoder("Llama 2 7B", 32, 4096, 11008, 4096),
)


def seconds(run: Callable[[], object]) -> float:
    """Return the least wall time of a few calls."""

    def once() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return min(once() for _ in range(REPEATS))


@cache
def codes_seconds(inputs: int, bits: int) -> tuple[float, float]:
    """Return what a matrix with so many inputs takes, and what each row adds."""
    moment, weight = moment_of(inputs), 0.02 * torch.randn(MORE, inputs)

    def timed(rows: int) -> float:
        return seconds(lambda: calibrated_codes(weight[:rows], bits, GROUP_SIZE, moment))

    few, more = timed(FEW), timed(MORE)
    row = (more - few) / (MORE - FEW)
    return max(0.0, few - FEW * row), row


@cache
def moment_of(inputs: int) -> Tensor:
    """Return a moment of inputs that hang together."""
    x = torch.randn(2 * inputs, inputs) * torch.logspace(0, -2, inputs)
    x[:, 1:] += 0.5 * x[:, :-1]
    return x.T @ x / len(x)


@cache
def flop_seconds(inputs: int) -> float:
    """Return the seconds of a multiplication and an addition in float32 products."""
    x, square = torch.randn(PART_TOKENS, inputs), torch.randn(inputs, inputs)
    return seconds(lambda: x @ square) / (PART_TOKENS * inputs**2)


def moments_seconds(model: Decoder) -> float:
    """Return the time of all passes, each up to its last block, and of sums of x x^T."""
    passes = ceil(model.blocks / model.blocks_held)
    ends = [min(model.blocks, (n + 1) * model.blocks_held) for n in range(passes)]
    forward = sum(ends) * sum(rows * inputs * flop_seconds(inputs) for rows, inputs in model.shapes)
    # Query, key and value share one input, gate and up another.
    distinct = (model.hidden,) * 3 + (model.wide,)
    sums = model.blocks * sum(inputs**2 * flop_seconds(inputs) for inputs in distinct)
    return CALIBRATION_TOKENS * (forward + sums)


def working_bytes(model: Decoder) -> int:
    """Return the most that the codes of one matrix take at once, with the moments that are held."""
    with FakeTensorMode(), LiveBytes() as followed:
        for rows, inputs in {(model.hidden, model.wide), (model.wide, model.hidden)}:
            weight, moment = torch.empty(rows, inputs), torch.empty(inputs, inputs)
            # Fewer bits take more rounds, which hold no more.
            calibrated_codes(weight, max(BITS), GROUP_SIZE, moment)
            del weight, moment
    held = model.blocks_held * sum(4 * inputs**2 for inputs in (model.hidden,) * 3 + (model.wide,))
    return followed.peak + held


def main() -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns = " | ".join(f"codes of {bits} bits, s" for bits in BITS)
    print(f"| blocks as in | weights, 1e9 | passes | moments, s | {columns} | memory, GB |")
    print("|" + "---|" * (5 + len(BITS)))
    for model in DECODERS:
        codes = []
        for bits in BITS:
            each = [(rows, *codes_seconds(inputs, bits)) for rows, inputs in model.shapes]
            codes.append(model.blocks * sum(fixed + rows * row for rows, fixed, row in each))
        passes = ceil(model.blocks / model.blocks_held)
        cells = (f"{model.weights / 1e9:.2f}", passes, f"{moments_seconds(model):.0f}")
        times = (f"{value:.0f}" for value in codes)
        print(
            f"| {model.name} | {' | '.join(map(str, (*cells, *times)))} "
            f"| {working_bytes(model) / 1e9:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
