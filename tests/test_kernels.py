"""Kernels for a GPU do what plain torch does: on a GPU, or in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from alrq_core.weights import calibrate
from alrq_core.weights.layers import scaled
from alrq_core.weights.packing import assemble
from alrq_core.weights.planes import pack_codes, unpack_codes
from alrq_core.weights.quantise import quantise
from search_spaces.formats import Format

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# Set where this file runs itself in the interpreter, which rounds to bfloat16 in its own way.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    not find_spec("triton") or not (GPU or INTERPRETED), reason="no CUDA device with Triton"
)
SHAPES = ((8, 64, 32), (13, 96, 32), (100, 640, 64), (1, 32, 32), (64, 512, 128))
TYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.bfloat16)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_is_dequantised_number_for_number(bits: int, shape: tuple[int, int, int]) -> None:
    from alrq_core.weights.kernels import fused_weight

    rows, columns, group = shape
    generator = torch.Generator().manual_seed(0)
    least = -(2 ** (bits - 1))
    codes = torch.randint(least, -least, (rows, columns), dtype=torch.int8, generator=generator)
    scales = torch.randn(rows, columns // group, generator=generator).half().to(DEVICE)
    packed = pack_codes(codes, bits).to(DEVICE)
    for dtype in TYPES:
        plain = scaled(unpack_codes(packed, bits, rows), scales, dtype)

        assert torch.equal(fused_weight(packed, scales, bits, rows, dtype), plain)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_hqqs_codes_are_dequantised_number_for_number(
    bits: int, shape: tuple[int, int, int]
) -> None:
    from alrq_core.weights.kernels import hqq_weight

    rows, columns, group = shape
    torch.manual_seed(0)
    # HQQ packs whole words only.
    weight = torch.randn(8 * rows, columns)
    tensors = quantise(weight, Format(bits, "hqq", group))
    layer = assemble(Format(bits, "hqq", group), weight.shape, tensors, torch.float32)
    moved = [tensors[name].to(DEVICE) for name in ("codes", "scales", "zeros")]
    for dtype in TYPES:
        found = hqq_weight(*moved, bits, weight.shape, dtype)

        assert torch.equal(found.cpu(), layer.dequantised().to(dtype))


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 50), (32, 7), (64, 96)])
def test_codes_are_chosen_alike(bits: int, inputs: int, outputs: int) -> None:
    from alrq_core.weights import kernels

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(inputs, outputs, generator=generator)
    scales = 0.1 + torch.rand(inputs, outputs, generator=generator)
    seen = torch.randn(200, inputs, generator=generator)
    moment = seen.T @ seen / 200
    factor = torch.linalg.cholesky(moment, upper=True)
    least = -(2 ** (bits - 1))
    before = torch.randint(least, -least, weight.shape, generator=generator).float()
    pull = moment @ (weight - before * scales)
    weight, scales, moment, factor, before, pull = (
        tensor.to(DEVICE) for tensor in (weight, scales, moment, factor, before, pull)
    )

    codes, errors = calibrate._fed_back_block(weight, scales, factor, bits)
    found, left = kernels.fed_back_block(weight, scales, factor, bits)
    new = calibrate._descended_block(before, pull.clone(), scales, moment, bits)
    descended = kernels.descended_block(before, pull.clone(), scales, moment, bits)

    # Sums in another order may end on the other side of a half.
    assert (codes != found).float().mean() < 0.01
    assert (new != descended).float().mean() < 0.01
    same = codes == found
    torch.testing.assert_close(left[same], errors[same], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(GPU or INTERPRETED or not find_spec("triton"), reason="no Triton, or a GPU")
def test_the_interpreter_agrees() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", __file__]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert process.returncode == 0, process.stdout
    assert "52 passed" in process.stdout
