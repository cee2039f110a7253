"""Codes made for a module's inputs lose less of its output, and are sound whatever these are."""

import pytest
import torch
from torch import Tensor

from alrq_core.weights.calibrate import calibrated_codes, limits

BITS = (2, 3, 4, 8)


def dequantised(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales.float().repeat_interleave(codes.shape[1] // scales.shape[1], 1)


def loss(weight: Tensor, found: tuple[Tensor, Tensor], moment: Tensor) -> float:
    error = weight - dequantised(*found)
    return float((error @ moment * error).sum() / (weight @ moment * weight).sum())


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(48, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moment() -> Tensor:
    """Of inputs that go together, as those of a transformer do, and some of which are large."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(128, 128, generator=generator) / 128**0.5 + torch.eye(128)
    inputs = torch.randn(1000, 128, generator=generator) @ mixed
    inputs[:, :4] *= 8
    return inputs.T @ inputs / 1000


@pytest.mark.parametrize("bits", BITS)
def test_codes_and_scales_are_what_is_stored(bits: int, weight: Tensor, moment: Tensor) -> None:
    codes, scales = calibrated_codes(weight, bits, 32, moment)
    least, most = limits(bits)

    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float16)
    assert (codes.shape, scales.shape) == ((48, 128), (48, 4))
    assert least <= int(codes.min()) and int(codes.max()) <= most
    assert bool(torch.isfinite(scales).all()) and bool(scales.ne(0).all())


@pytest.mark.parametrize(("bits", "at_most"), [(2, 0.6), (3, 0.7), (4, 0.8)])
def test_the_output_loses_less_than_by_rounding(
    bits: int, at_most: float, weight: Tensor, moment: Tensor
) -> None:
    rounded = loss(weight, calibrated_codes(weight, bits, 32, None), moment)
    calibrated = loss(weight, calibrated_codes(weight, bits, 32, moment), moment)

    assert calibrated < at_most * rounded


def test_weights_on_the_grid_stay_as_they_are(moment: Tensor) -> None:
    codes = torch.randint(-2, 2, (48, 128), generator=torch.Generator().manual_seed(0))
    codes[:, ::64] = -2
    weight = codes * torch.tensor([0.5, -0.25]).repeat_interleave(64)
    found = calibrated_codes(weight, 2, 64, moment)

    assert loss(weight, found, moment) < 1e-4


def test_an_error_on_inputs_that_never_come_costs_nothing(weight: Tensor) -> None:
    moment = torch.zeros(128, 128)
    moment[:8, :8] = torch.eye(8)
    calibrated = loss(weight, calibrated_codes(weight, 2, 64, moment), moment)
    rounded = loss(weight, calibrated_codes(weight, 2, 64, None), moment)

    assert calibrated < 0.7 * rounded


@pytest.mark.parametrize(
    "moment",
    [
        torch.zeros(128, 128),
        torch.ones(128, 128),
        torch.diag(torch.arange(128) % 2).float(),
        1e-30 * torch.eye(128),
        1e12 * torch.eye(128),
    ],
    ids=["never seen", "constant", "half seen", "tiny", "huge"],
)
@pytest.mark.parametrize("bits", BITS)
def test_any_moment_gives_sound_codes(bits: int, weight: Tensor, moment: Tensor) -> None:
    found = dequantised(*calibrated_codes(weight, bits, 32, moment))

    assert bool(torch.isfinite(found).all())
    assert float((found - weight).norm() / weight.norm()) < {2: 1.0, 3: 0.5, 4: 0.25, 8: 0.02}[bits]


def test_fewer_tokens_than_inputs_do(weight: Tensor) -> None:
    inputs = torch.randn(10, 128, generator=torch.Generator().manual_seed(2))
    moment = inputs.T @ inputs / 10
    calibrated = loss(weight, calibrated_codes(weight, 2, 32, moment), moment)

    assert calibrated < 0.5 * loss(weight, calibrated_codes(weight, 2, 32, None), moment)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_and_single_large_weights_are_kept(bits: int, moment: Tensor) -> None:
    weight = torch.zeros(48, 128)
    weight[0, 0] = 3.0
    found = dequantised(*calibrated_codes(weight, bits, 32, moment))

    assert float(found[0, 0]) == pytest.approx(3.0, rel=0.02)
    assert float(found.abs().sum()) == pytest.approx(float(found[0, 0]), rel=1e-3)


def test_many_rows_give_what_each_gives_alone(
    weight: Tensor, moment: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = dequantised(*calibrated_codes(weight, 3, 32, moment))
    monkeypatch.setattr("alrq_core.weights.calibrate.ROWS_AT_ONCE", 16)

    torch.testing.assert_close(dequantised(*calibrated_codes(weight, 3, 32, moment)), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value: float, weight: Tensor, moment: Tensor) -> None:
    broken = weight.clone()
    broken[0, 0] = value
    with pytest.raises(ValueError, match="`weight` must be finite to make codes from"):
        calibrated_codes(broken, 2, 32, moment)
    moment[0, 0] = value
    with pytest.raises(ValueError, match="`moment` must be finite to make codes from"):
        calibrated_codes(weight, 2, 32, moment)
