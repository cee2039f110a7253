"""What it takes to dequantise a matrix in every format, side by side.

    python -m benchmarks.dequantise --rounds 9

Prints a Markdown table: milliseconds on one thread, and in parts of what HQQ and bitsandbytes take
at the same bits: the median over rounds, in each of which every format has its turn.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from alrq_core.weights.packing import pack
from search_spaces.formats import Format

FORMATS = (
    *(Format(bits, "gptq", 64) for bits in (2, 3, 4, 8)),
    *(Format(bits, "hqq", 64) for bits in (2, 3, 4, 8)),
    Format(4, "nf4-double", 64),
    Format(8, "int8", 0),
)
SHAPES = ((384, 1536), (2048, 2048))
# Weights that are dequantised in one turn.
TURN_WEIGHTS = 2**25


def turn(layer: Any, dtype: torch.dtype) -> float:
    """Return the milliseconds of one matrix."""
    count = max(1, TURN_WEIGHTS // (layer.in_features * layer.out_features))
    started = time.perf_counter()
    for _ in range(count):
        layer.weight_in(dtype)
    return 1e3 * (time.perf_counter() - started) / count


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| shape | type | format | ms | to HQQ | to bitsandbytes |\n|---|---|---|---|---|---|")
    for shape in SHAPES:
        plain = nn.Linear(shape[1], shape[0], bias=False)
        for dtype in (torch.float32, torch.bfloat16):
            layers = {stored: pack(plain, stored, dtype) for stored in FORMATS}
            rounds = [
                {stored: turn(layer, dtype) for stored, layer in layers.items()}
                for _ in range(given.rounds + 1)
            ][1:]
            for stored in FORMATS:
                hqq = Format(stored.bits, "hqq", 64)
                bnb = {4: FORMATS[-2], 8: FORMATS[-1]}.get(stored.bits)
                ratios = [
                    f"{np.median([r[stored] / r[other] for r in rounds]):.2f}" if other else ""
                    for other in (hqq, bnb)
                ]
                taken = np.median([r[stored] for r in rounds])
                name = f"{stored.method}, {stored.bits} bits"
                kind = str(dtype).removeprefix("torch.")
                cells = f"{shape[0]} x {shape[1]} | {kind} | {name} | {taken:.2f}"
                print(f"| {cells} | {ratios[0]} | {ratios[1]} |", flush=True)


if __name__ == "__main__":
    main()
