"""Bytes, against values computed by hand from the formats."""

from dataclasses import replace

import pytest

from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import (
    adapter_bytes,
    average_bits,
    average_rank,
    format_bytes,
    memory_bytes,
    packable,
    parse_bytes,
    stored_bytes,
    target_bytes,
)
from search_spaces.formats import Format, default_format
from search_spaces.inventory import TargetModule
from tests.simulated import make_inventory


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (16, 2 * 147_456),
        # Whole bytes, and a scale of 2 bytes for each of 2,304 groups of 64.
        (8, 147_456 + 2_304 * 2),
        (4, 73_728 + 2_304 * 2),
        (3, 55_296 + 2_304 * 2),
        (2, 36_864 + 2_304 * 2),
    ],
)
def test_bytes_of_a_384_by_384_matrix(bits: int, expected: int) -> None:
    assert stored_bytes(default_format(bits), 384, 384) == expected


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        # One code a byte and a float32 for each of 384 rows.
        (Format(8, "int8", 0), 147_456 + 4 * 384),
        # Half a byte a code; 2,304 blocks with a byte each, whose scales are 9 float32 and an
        # offset of one more.
        (Format(4, "nf4-double", 64), 73_728 + 2_304 + 4 * 9 + 4),
        # 2,304 groups of 64, ten codes an int32 along the groups; scale and zero of 2 bytes.
        (Format(3, "hqq", 64), 4 * 64 * 231 + 2_304 * 4),
        (Format(2, "hqq", 64), 36_864 + 2_304 * 4),
        # 2,304 blocks with a float32 each.
        (Format(4, "nf4", 64), 73_728 + 4 * 2_304),
        (Format(4, "fp4", 128), 73_728 + 4 * 1_152),
        # 4,608 blocks of 32, in 18 nested blocks.
        (Format(4, "nf4-double", 32), 73_728 + 4_608 + 4 * 18 + 4),
        (Format(8, "hqq", 64), 147_456 + 2_304 * 4),
        (Format(4, "hqq", 128), 73_728 + 1_152 * 4),
        # 1,152 groups of 128 in 116 rows of int32.
        (Format(3, "hqq", 128), 4 * 128 * 116 + 1_152 * 4),
        (Format(2, "gptq", 128), 2 * 147_456 // 8 + 1_152 * 2),
        (Format(8, "gptq", 32), 147_456 + 4_608 * 2),
    ],
)
def test_bytes_of_other_formats(stored: Format, expected: int) -> None:
    assert stored_bytes(stored, 384, 384) == expected


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="`bits` must be one of 2, 3, 4, 8, 16, got 5"):
        default_format(5)
    with pytest.raises(ValueError, match="`format` must be one that is known"):
        stored_bytes(Format(4, "gptq", 0), 64, 64)


def test_an_adapter_keeps_two_narrow_matrices_in_16_bits() -> None:
    assert adapter_bytes(8, 128, 64) == 2 * 8 * (128 + 64)
    assert adapter_bytes(0, 128, 64) == 0


def test_a_model_is_the_sum_of_its_parts() -> None:
    inventory = make_inventory(blocks=1)
    allocation = Allocation(
        {inventory.names[0]: Choice(16, 4), inventory.names[1]: Choice(8, 0, "int8")}
    )
    targets = 2 * 4096 + 2 * 4 * 128 + 8192 + 4 * 128

    assert target_bytes(allocation, inventory) == targets
    assert memory_bytes(allocation, inventory) == targets + 2 * 1000


def test_average_bits_weigh_by_size_and_leave_out_adapters() -> None:
    inventory = make_inventory(blocks=1)
    choices = {inventory.names[0]: Choice(16, 32), inventory.names[1]: Choice(8, 0, "int8")}
    stored = 2 * 4096 + 8192 + 4 * 128

    assert average_bits(Allocation(choices), inventory) == pytest.approx(8 * stored / 12_288)


def test_shapes_that_fit_no_group_are_not_packable() -> None:
    def target(out_features: int) -> TargetModule:
        return TargetModule(
            name="m", out_features=out_features, in_features=10, part="attention", block=0
        )

    assert packable(Format(2, "hqq", 64), target(128))
    assert not packable(Format(2, "hqq", 64), target(32))
    assert packable(Format(3, "hqq", 64), target(32))
    assert not packable(Format(3, "hqq", 64), target(7))
    assert packable(Format(4, "nf4-double", 64), target(7))
    assert not any(packable(Format(2, "gptq", size), target(128)) for size in (32, 64, 128))
    assert packable(Format(2, "gptq", 64), replace(target(7), in_features=128))
    assert packable(Format(4, "hqq", 64), target(64))
    assert not packable(Format(4, "hqq", 64), target(32))


def test_an_embedding_needs_rows_that_can_be_read_alone() -> None:
    def embedding(width: int) -> TargetModule:
        return TargetModule(
            name="e", out_features=100, in_features=width, part="embedding", block=-1
        )

    assert packable(default_format(2), embedding(128))
    assert not packable(default_format(4), embedding(96))
    assert packable(Format(4, "nf4", 32), embedding(96))
    assert packable(Format(8, "int8", 0), embedding(7))
    assert not packable(Format(2, "hqq", 64), embedding(128))


def test_an_embedding_counts_in_memory_and_not_as_a_target() -> None:
    inventory = make_inventory(blocks=1)
    embedding = TargetModule(name="e", out_features=100, in_features=64, part="embedding", block=-1)
    larger = replace(inventory, embeddings=(embedding,))
    choices = dict.fromkeys(inventory.names, Choice(4, 2))
    small, large = Allocation(choices), Allocation({**choices, "e": Choice(8, 0, "int8")})

    assert memory_bytes(large, larger) - memory_bytes(small, inventory) == 6400 + 4 * 100
    assert target_bytes(large, larger) == target_bytes(small, inventory)
    assert average_bits(large, larger) == average_bits(small, inventory)
    assert average_rank(large, larger) == average_rank(small, inventory) == 2


def test_adalora_counts_at_its_final_average_rank() -> None:
    inventory = make_inventory(blocks=1)
    first, second = inventory.names
    adaptive = Allocation({first: Choice(16, 12), second: Choice(16, 0)}, final_rank=4)
    plain = Allocation({first: Choice(16, 4), second: Choice(16, 0)})

    assert memory_bytes(adaptive, inventory) == memory_bytes(plain, inventory)
    assert average_rank(adaptive, inventory) == average_rank(plain, inventory) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30MB", 30_000_000), ("1.5 GB", 1_500_000_000), ("512kb", 512_000), ("7B", 7)],
)
def test_sizes_are_read_with_their_units(text: str, expected: int) -> None:
    assert parse_bytes(text, "--max-memory") == expected


@pytest.mark.parametrize("text", ["30", "MB", "-1MB", "0MB", "nanMB", "infGB", "3TB!", ""])
def test_sizes_without_a_number_or_a_unit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`--max-memory` must be a positive number with a unit"):
        parse_bytes(text, "--max-memory")


def test_sizes_for_people_are_megabytes() -> None:
    assert format_bytes(29_765_000) == "29.77 MB"
