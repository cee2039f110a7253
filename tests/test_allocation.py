"""Allocations and their two written forms."""

import pickle

import pytest

from search_spaces.allocation import Allocation, Choice, decode, from_json

MIXED = Allocation({"a.query": Choice(4, 8), "a.output": Choice(2, 0), "b.query": Choice(16, 16)})


def test_short_form_round_trip() -> None:
    assert MIXED.encode() == "4:8:gptq:64,2:0:gptq:64,16:16"
    assert decode(MIXED.encode(), tuple(MIXED.choices)) == MIXED


def test_what_was_written_without_a_format_keeps_its_meaning() -> None:
    names = tuple("abcde")
    read = decode("2:0,3:0,4:8,8:0,16:0", names)

    assert [c.method for c in read.choices.values()] == [
        "hqq",
        "hqq",
        "nf4-double",
        "int8",
        "plain",
    ]
    assert read.encode() == "2:0,3:0,4:8,8:0,16:0"


def test_json_round_trip_keeps_names() -> None:
    content = MIXED.to_json()

    assert content["modules"]["a.query"] == [4, 8, "gptq", 64]
    assert from_json(content) == MIXED


def test_pickle_round_trip_and_hash() -> None:
    copy = pickle.loads(pickle.dumps(MIXED))

    assert copy == MIXED
    assert len({copy, MIXED}) == 1


def test_rank_pattern_leaves_out_modules_without_an_adapter() -> None:
    assert MIXED.rank_pattern == {"a.query": 8, "b.query": 16}


def test_choices_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        MIXED.choices["a.query"] = Choice(2, 2)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4:8,2:0", "must have 3 modules, got 2"),
        ("4:8,2:0,16", r"size after them, got \['16'\] for b\.query"),
        ("4:8,2:0,x:1", "size after them, got"),
        ("", "must have 3 modules, got 1"),
    ],
)
def test_malformed_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(text, tuple(MIXED.choices))


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="`version` of an allocation must be 1, got 9"):
        from_json({**MIXED.to_json(), "version": 9})
