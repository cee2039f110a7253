"""What a CUDA GPU makes of the project, in one run: checks, then speeds. Needs no network, no Ray.

    python -m benchmarks.gpu --out gpu.json

Checks that every format is dequantised as on a CPU, and that a small decoder is built, trained,
scored, saved and loaded in each. Then measures: dequantising against the card's own bandwidth, the
making of codes, and a training step of a decoder of 1.04 billion parameters (random weights)
against PEFT's with the same batch, 16-bit and with bitsandbytes' NF4. Prints a Markdown table for
each; a part that fails says why, and the run ends with status 1. `--device cpu` tries all of it in
small.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import alrq_core
from alrq_core.export.exact import save
from alrq_core.memory.machine import pick_device
from alrq_core.trial import TrialRun
from alrq_core.weights.calibrate import calibrated_codes
from alrq_core.weights.layers import scaled
from alrq_core.weights.packing import assemble
from alrq_core.weights.planes import unpack_codes
from alrq_core.weights.quantise import quantise
from benchmarks.gpu_steps import FORMATS, GROUP, Bench, Rows, named, steps, uniform
from search_spaces.costs import packable
from search_spaces.formats import Format
from search_spaces.inventory import TargetModule
from tests.tiny import RECIPE, make_context, save_llama

# Of which all but the last have rows that don't fill a byte or a block of the kernel. The last is
# timed.
SHAPES = ((13, 64), (1000, 192), (8192, 8192))


def machine(bench: Bench) -> Rows:
    """Return what was measured on, and its ceilings."""
    cuda = bench.device.type == "cuda"
    row = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory, GB": torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else 0,
        "torch": torch.__version__,
        "type": str(bench.dtype).removeprefix("torch."),
        f"product of {bench.product_size}, TFLOP/s": bench.peak / 1e12,
        "copy, TB/s read and written": bench.bandwidth / 1e12,
    }
    return [row]


def kernels(bench: Bench) -> Rows:
    """Return how each format is dequantised, after checking it against the plain form on a CPU."""
    rows = []
    for stored in FORMATS[1:]:
        worst = 0.0
        for shape in SHAPES[: 2 if bench.small else 3]:
            size = {"out_features": shape[0], "in_features": shape[1]}
            target = TargetModule(name="", part="feed-forward", block=0, **size)
            if not packable(stored, target):
                continue
            layer, there = layers(stored, shape, bench)
            found, wanted = there.weight_in(bench.dtype).cpu(), layer.weight_in(bench.dtype)
            worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
            ids = torch.tensor([0, shape[0] - 1, shape[0] // 2])
            if stored.method != "hqq":
                picked = there.rows(ids.to(bench.device)).to(bench.dtype).cpu()
                worst = max(worst, float((picked - wanted[ids]).abs().max() / wanted.abs().max()))
        # One rounding of bfloat16 is 2^-8; libraries may round twice.
        if worst > (2**-7 if bench.dtype == torch.bfloat16 else 1e-6):
            raise AssertionError(f"{named(stored)} differs from the plain form by {worst}")
        taken = bench.seconds(partial(there.weight_in, bench.dtype), calls=20)
        moved = sum(t.nbytes for t in there.buffers()) + sum(p.nbytes for p in there.parameters())
        moved += shape[0] * shape[1] * bench.dtype.itemsize
        row = {"format": named(stored), "shape": f"{shape[0]} x {shape[1]}", "differs by": worst}
        row |= {"microseconds": 1e6 * taken, "of the bandwidth": moved / taken / bench.bandwidth}
        if stored.method == "gptq":
            plain = bench.seconds(partial(plain_form, there, bench.dtype), calls=20)
            row["plain form, microseconds"] = 1e6 * plain
        rows.append(row)
    return rows


def layers(stored: Format, shape: tuple[int, int], bench: Bench) -> tuple[Any, Any]:
    """Return the same codes as a layer on the CPU, and as one on the device."""
    weight = torch.randn(shape, device=bench.device)
    tensors = quantise(weight, stored)
    here = {name: tensor.cpu() for name, tensor in tensors.items()}
    return tuple(assemble(stored, weight.shape, t, bench.dtype) for t in (here, tensors))


def plain_form(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return a weight of `gptq` without the kernel."""
    return scaled(unpack_codes(layer.weight, layer.bits, layer.out_features), layer.scales, dtype)


def calibration(bench: Bench) -> Rows:
    """Return the seconds that the codes of a matrix take, and their error against a CPU's."""
    rows = []
    sizes = ((96, 128),) if bench.small else ((2048, 2048), (8192, 2048), (2048, 8192))
    for shape in sizes:
        weight, inputs = torch.randn(shape), torch.randn(2 * shape[1], shape[1])
        inputs *= torch.linspace(0.1, 3, shape[1])
        moment = inputs.to(bench.device).T @ inputs.to(bench.device) / len(inputs)
        moved = weight.to(bench.device)
        for bits in (2, 3, 4, 8):
            bench.wait()
            started = time.perf_counter()
            made = calibrated_codes(moved, bits, GROUP, moment)
            bench.wait()
            row = {"matrix": f"{shape[0]} x {shape[1]}", "bits": bits}
            row |= {"seconds": time.perf_counter() - started, "error": lost(moved, made, moment)}
            if shape == sizes[0] and bits in (2, 4):
                other = calibrated_codes(weight, bits, GROUP, moment.cpu())
                row["error of a CPU's"] = lost(weight, other, moment.cpu())
                if row["error"] > 1.02 * row["error of a CPU's"]:
                    raise AssertionError(f"codes are worse than a CPU's: {row}")
            rows.append(row)
    return rows


def lost(weight: Tensor, made: tuple[Tensor, Tensor], moment: Tensor) -> float:
    """Return the relative error of a module's output."""
    error = weight - scaled(*made, torch.float32)
    return float(((error @ moment) * error).sum() / ((weight @ moment) * weight).sum())


def decoders(bench: Bench) -> Rows:
    """Return what a tiny decoder does in every format, from building to loading."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        recipe = replace(RECIPE, device=bench.device.type)
        context = make_context(save_llama(Path(name)), "language-modelling", recipe)
        for stored in FORMATS:
            before = bench.held_bytes
            run = TrialRun(context, uniform(context.inventory, stored), seed=0)
            first, last = run.advance(1), run.advance(recipe.max_steps)
            score = run.test()
            loaded = alrq_core.load(save(run, Path(name) / named(stored).replace(" ", "")))
            ids = torch.arange(4, 12, device=bench.device)[None]
            with torch.inference_mode():
                one, two = (m(input_ids=ids).logits for m in (loaded.model, run.model.eval()))
            if not torch.equal(one, two):
                raise AssertionError(f"{named(stored)}: loaded answers differ by {one - two}")
            del run, loaded
            row = {"format": named(stored), "first loss": first.loss, "last loss": last.loss}
            rows.append(row | {"test": score.value, "left, bytes": bench.held_bytes - before})
    return rows


PARTS: tuple[Callable[[Bench], Rows], ...] = (machine, kernels, decoders, calibration, steps)


def table(rows: Rows) -> str:
    """Return rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: object) -> str:
    """Return a cell for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run all parts, print their tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--parts", nargs="+", default=[part.__name__ for part in PARTS])
    given = parser.parse_args()
    bench, found, failed = Bench(pick_device(given.device)), {}, False
    for part in PARTS:
        if part.__name__ not in given.parts:
            continue
        started = time.perf_counter()
        try:
            found[part.__name__] = part(bench)
            print(f"\n{table(found[part.__name__])}", flush=True)
        except Exception:
            failed = True
            found[part.__name__] = [{"failed": traceback.format_exc()}]
            print(f"\n{part.__name__} failed:\n{traceback.format_exc()}", flush=True)
        print(f"\n{part.__name__}: {time.perf_counter() - started:.0f} s", flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
