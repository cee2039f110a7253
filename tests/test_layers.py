"""Every storage format: bytes, values, gradients, and that reading it tells the truth."""

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from hqq.core.quantize import Quantizer
from torch import Tensor, nn

from alrq_core.weights import quantise
from alrq_core.weights.layers import STORAGE_DTYPE, PackedEmbedding, keep_dequantised, packed_layers
from alrq_core.weights.packing import pack, read_layer, stored_tensors
from search_spaces.costs import stored_bytes
from search_spaces.formats import DEFAULT_METHODS, FOUR_BIT, ROWS, Format, default_format

BITS = sorted(DEFAULT_METHODS)
FORMATS = [default_format(bits) for bits in BITS] + [
    Format(4, "nf4", 64),
    Format(4, "fp4", 64),
    Format(4, "nf4-double", 32),
    Format(4, "nf4", 128),
    Format(8, "hqq", 64),
    Format(4, "hqq", 64),
    Format(3, "hqq", 32),
    Format(2, "hqq", 128),
    *(Format(bits, "gptq", 64) for bits in (8, 4, 3, 2)),
    Format(3, "gptq", 32),
]
SHAPES = [(64, 64), (128, 64), (384, 1536)]
# Relative error of the output for normally distributed weights: the step of each format.
LARGEST_ERROR = {16: 0.005, 8: 0.02, 4: 0.15, 3: 0.2, 2: 0.55}
any_format = pytest.mark.parametrize("stored", FORMATS, ids=str)


def make_linear(out_features: int, in_features: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(in_features, out_features, bias=bias)


def relative_error(result: Tensor, reference: Tensor) -> float:
    difference = (result.float() - reference).norm() / reference.norm()
    return float(difference.detach())


@pytest.mark.parametrize("shape", SHAPES)
@any_format
def test_stores_the_predicted_bytes_in_the_format(stored: Format, shape: tuple[int, int]) -> None:
    read = read_layer(pack(make_linear(*shape), stored, torch.float32), rank=0)

    assert Format(read.bits, read.method, read.group_size) == stored
    assert read.stored_bytes == stored_bytes(stored, *shape)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@any_format
def test_computes_what_the_plain_layer_does(stored: Format, compute_dtype: torch.dtype) -> None:
    linear = make_linear(128, 64)
    packed = pack(linear, stored, compute_dtype)
    x = torch.randn(4, 7, 64)
    result = packed(x.to(compute_dtype))

    assert relative_error(result, linear(x)) < LARGEST_ERROR[stored.bits]


def test_fewer_bits_lose_more() -> None:
    linear = make_linear(384, 1536, bias=False)
    x = torch.randn(16, 1536)
    errors = [
        relative_error(pack(linear, default_format(b), torch.float32)(x), linear(x)) for b in BITS
    ]

    assert errors == sorted(errors, reverse=True)
    assert min(errors) > 0


@any_format
def test_input_gets_the_gradient_of_the_stored_weights(stored: Format) -> None:
    packed = pack(make_linear(128, 64, bias=False), stored, torch.float32)
    x = torch.randn(5, 64, requires_grad=True)
    packed(x).sum().backward()
    weights = packed(torch.eye(64)).detach()

    assert x.grad is not None
    torch.testing.assert_close(x.grad, weights.sum(dim=1).expand(5, 64), rtol=1e-3, atol=1e-4)


@any_format
def test_evaluation_scores_the_function_that_is_trained(stored: Format) -> None:
    packed = pack(make_linear(128, 64), stored, torch.float32)
    x = torch.randn(5, 64)
    trained = packed.train()(x)
    evaluated = packed.eval()(x)

    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)


@any_format
def test_train_evaluate_train_changes_nothing_stored(stored: Format) -> None:
    packed = pack(make_linear(128, 64), stored, torch.bfloat16)
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


@pytest.mark.parametrize("shape", [(96, 128), (100, 640), (7, 10)])
def test_parts_of_a_matrix_give_what_bitsandbytes_makes_of_the_whole(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "CHUNK_WEIGHTS", 2**10)
    linear = make_linear(*shape, bias=False)
    for stored in (f for f in FORMATS if f.method in FOUR_BIT):
        whole = Linear4bit(
            1,
            1,
            bias=False,
            compress_statistics=stored.method == "nf4-double",
            quant_type=stored.method[:3],
        )
        whole.weight.blocksize = stored.group_size
        whole.weight.data = linear.weight.detach().clone()
        theirs, _, _ = stored_tensors(whole.to("cpu"))
        ours = pack(linear, stored, torch.float32)
        assert torch.equal(stored_tensors(ours)[0].flatten(), theirs.flatten())
        scales = zip(stored_tensors(ours)[1], stored_tensors(whole)[1], strict=True)
        assert all(torch.equal(a, b) for a, b in scales)
    whole = Linear8bitLt(*shape[::-1], bias=False, has_fp16_weights=False)
    whole.weight.data = linear.weight.detach().clone()
    whole = whole.to("cpu")
    ours = pack(linear, Format(8, "int8", 0), torch.float32)
    assert torch.equal(stored_tensors(ours)[0], stored_tensors(whole)[0])
    assert torch.equal(stored_tensors(ours)[1][0], stored_tensors(whole)[1][0])


def test_leaves_its_source_alone_and_trains_nothing() -> None:
    linear = make_linear(64, 64)
    weight, bias = linear.weight.clone(), linear.bias.clone()
    for stored in FORMATS:
        packed = pack(linear, stored, torch.bfloat16)
        packed(torch.randn(2, 64, dtype=torch.bfloat16))
        assert not any(parameter.requires_grad for parameter in packed.parameters())
    assert torch.equal(linear.weight, weight)
    assert torch.equal(linear.bias, bias)
    assert linear.weight.requires_grad


def test_a_plain_layer_reads_as_what_it_is() -> None:
    assert read_layer(make_linear(64, 64), rank=0).bits == 32
    assert read_layer(make_linear(64, 64).to(STORAGE_DTYPE), rank=0).bits == 16


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_scales_and_zero_points_of_hqq_lose_next_to_nothing(
    bits: int, compute_dtype: torch.dtype
) -> None:
    linear = make_linear(384, 384, bias=False)
    # Some groups have their zero point at one end, where a 16-bit type resolves the least.
    nn.init.trunc_normal_(linear.weight, mean=-0.5, std=0.5)
    weight = linear.weight.detach()
    codes, meta = Quantizer.quantize(weight, bits, group_size=64, axis=1, device="cpu")
    exact = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    packed: Any = pack(linear, Format(bits, "hqq", 64), compute_dtype)
    found = packed.dequantised()

    assert relative_error(found, weight) < 1.02 * relative_error(exact, weight)
    assert relative_error(packed.weight_in(compute_dtype), weight) < (
        1.02 * relative_error(exact.to(compute_dtype), weight)
    )


@pytest.mark.parametrize("stored", [f for f in FORMATS if f.method in FOUR_BIT], ids=str)
def test_four_bits_made_in_a_type_are_those_rounded_to_it(stored: Format) -> None:
    packed: Any = pack(make_linear(128, 64), stored, torch.bfloat16)

    assert packed.weight_in(torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(packed.weight_in(torch.bfloat16), packed.dequantised().bfloat16())


def test_checksum_tells_codes_apart() -> None:
    linear = make_linear(64, 64)
    first = read_layer(pack(linear, default_format(4), torch.float32), rank=0)
    with torch.no_grad():
        linear.weight.copy_(linear.weight.flip(0))
    second = read_layer(pack(linear, default_format(4), torch.float32), rank=0)

    assert first.checksum != second.checksum


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`format` must be one that is known, got 'awq' for 4"):
        pack(make_linear(64, 64), Format(4, "awq", 64), torch.float32)


@any_format
def test_forward_keeps_neither_the_input_nor_the_dequantised_weight(stored: Format) -> None:
    packed = pack(make_linear(384, 1536), stored, torch.float32)
    saved: list[int] = []
    x = torch.randn(4, 1536, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes), lambda t: t):
        packed(x)

    assert saved == []


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@any_format
def test_a_dequantised_copy_computes_the_very_same(
    stored: Format, compute_dtype: torch.dtype
) -> None:
    packed = pack(make_linear(128, 64), stored, compute_dtype)
    before = read_layer(packed, rank=0)
    x = torch.randn(5, 64)
    expected = packed(x)
    keep_dequantised(packed)

    assert all(layer.kept is not None for layer in packed_layers(packed))
    assert torch.equal(packed(x), expected)
    assert read_layer(packed, rank=0) == before


@pytest.mark.parametrize("stored", [f for f in FORMATS if f.method in ROWS], ids=str)
def test_an_embedding_looks_up_what_its_matrix_holds(stored: Format) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 128)
    packed = pack(embedding, stored, torch.float32)
    assert isinstance(packed, PackedEmbedding)
    ids = torch.tensor([[3, 7, 3], [49, 0, 1]])
    rows = packed(ids)

    assert read_layer(packed, rank=0).stored_bytes == stored_bytes(stored, 50, 128)
    torch.testing.assert_close(rows, packed.packed.dequantised().float()[ids], rtol=0, atol=0)
    assert relative_error(rows, embedding(ids)) < LARGEST_ERROR[stored.bits]
    keep_dequantised(packed)
    torch.testing.assert_close(packed(ids), rows, rtol=0, atol=0)


def test_an_embedding_refuses_formats_without_rows() -> None:
    with pytest.raises(ValueError, match="`format` of an embedding must be one of plain, int8"):
        pack(nn.Embedding(64, 64), Format(2, "hqq", 64), torch.float32)


def test_only_matrices_that_are_multiplied_are_copied() -> None:
    embedding = pack(nn.Embedding(50, 128), default_format(8), torch.float32)
    assert isinstance(embedding, PackedEmbedding)
    linear = pack(make_linear(128, 64), default_format(4), torch.float32)
    untied = nn.ModuleDict({"embedding": embedding, "linear": linear})
    keep_dequantised(untied)

    assert embedding.packed.kept is None
    assert linear.kept is not None
    keep_dequantised(nn.ModuleDict({"embedding": embedding, "head": embedding.packed}))

    assert embedding.packed.kept is not None
    assert len(packed_layers(untied)) == 2
