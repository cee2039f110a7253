"""Every storage format: bytes, values, gradients, and that reading it tells the truth."""

import pytest
import torch
from torch import Tensor, nn

from alrq_core.layers import PACKERS, STORAGE_DTYPE, pack_linear, read_layer
from search_spaces.costs import stored_bytes

BITS = sorted(PACKERS)
SHAPES = [(64, 64), (128, 64), (384, 1536)]
# Relative error of the output for normally distributed weights: the step of each format.
LARGEST_ERROR = {16: 0.005, 8: 0.02, 4: 0.12, 3: 0.2, 2: 0.5}


def make_linear(out_features: int, in_features: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(in_features, out_features, bias=bias)


def relative_error(result: Tensor, reference: Tensor) -> float:
    difference = (result.float() - reference).norm() / reference.norm()
    return float(difference.detach())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_stores_the_predicted_bytes_and_bits(bits: int, shape: tuple[int, int]) -> None:
    read = read_layer(pack_linear(make_linear(*shape), bits, torch.float32), rank=0)

    assert read.bits == bits
    assert read.stored_bytes == stored_bytes(bits, *shape)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_computes_what_the_plain_layer_does(bits: int, compute_dtype: torch.dtype) -> None:
    linear = make_linear(128, 64)
    packed = pack_linear(linear, bits, compute_dtype)
    x = torch.randn(4, 7, 64)
    result = packed(x.to(compute_dtype))

    assert relative_error(result, linear(x)) < LARGEST_ERROR[bits]


def test_fewer_bits_lose_more() -> None:
    linear = make_linear(384, 1536, bias=False)
    x = torch.randn(16, 1536)
    errors = [
        relative_error(pack_linear(linear, bits, torch.float32)(x), linear(x)) for bits in BITS
    ]

    assert errors == sorted(errors, reverse=True)
    assert min(errors) > 0


@pytest.mark.parametrize("bits", BITS)
def test_input_gets_the_gradient_of_the_stored_weights(bits: int) -> None:
    packed = pack_linear(make_linear(128, 64, bias=False), bits, torch.float32)
    x = torch.randn(5, 64, requires_grad=True)
    packed(x).sum().backward()
    weights = packed(torch.eye(64)).detach()

    assert x.grad is not None
    torch.testing.assert_close(x.grad, weights.sum(dim=1).expand(5, 64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_evaluation_scores_the_function_that_is_trained(bits: int) -> None:
    packed = pack_linear(make_linear(128, 64), bits, torch.float32)
    x = torch.randn(5, 64)
    trained = packed.train()(x)
    evaluated = packed.eval()(x)

    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_train_evaluate_train_changes_nothing_stored(bits: int) -> None:
    packed = pack_linear(make_linear(128, 64), bits, torch.bfloat16)
    before = read_layer(packed, rank=0)
    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    packed.train()(x).sum().backward()
    with torch.inference_mode():
        packed.eval()(x.detach())
    x.grad = None
    packed.train()(x).sum().backward()

    assert x.grad is not None
    assert bool(x.grad.count_nonzero())
    assert read_layer(packed, rank=0) == before


def test_leaves_its_source_alone_and_trains_nothing() -> None:
    linear = make_linear(64, 64)
    weight, bias = linear.weight.clone(), linear.bias.clone()
    for bits in BITS:
        packed = pack_linear(linear, bits, torch.bfloat16)
        packed(torch.randn(2, 64, dtype=torch.bfloat16))
        assert not any(parameter.requires_grad for parameter in packed.parameters())
    assert torch.equal(linear.weight, weight)
    assert torch.equal(linear.bias, bias)
    assert linear.weight.requires_grad


def test_a_plain_layer_reads_as_what_it_is() -> None:
    assert read_layer(make_linear(64, 64), rank=0).bits == 32
    assert read_layer(make_linear(64, 64).to(STORAGE_DTYPE), rank=0).bits == 16


def test_checksum_tells_codes_apart() -> None:
    linear = make_linear(64, 64)
    first = read_layer(pack_linear(linear, 4, torch.float32), rank=0)
    with torch.no_grad():
        linear.weight.neg_()
    second = read_layer(pack_linear(linear, 4, torch.float32), rank=0)

    assert first.checksum != second.checksum


def test_unknown_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`bits` must be one of 16, 8, 4, 3, 2, got 5"):
        pack_linear(make_linear(64, 64), 5, torch.float32)
