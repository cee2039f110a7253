"""The event log: round trips, sizes, and what a crash leaves behind."""

from contextlib import closing
from pathlib import Path

import pytest

import tune.study.events as recorded
from search_spaces.spaces import make_space
from tests.simulated import make_inventory, make_report
from tune.study.answers import pack_answers, pack_classes
from tune.study.events import (
    Completed,
    Event,
    EventLog,
    Failed,
    Proposed,
    Reported,
    Started,
    Stopped,
    decode_event,
    encode_event,
)

PROPOSED = Proposed(
    trial="t001", role="search", origin="tpe", seed=0, allocation="4:8,2:0", memory_bytes=12345
)
EVENTS: list[Event] = [
    Started(time=1.25, budget=50),
    PROPOSED,
    Reported(trial="t001", rung=0, report=make_report(50, 0.512345)),
    Stopped(trial="t001", rung=0),
    Failed(trial="t002", reason='it said "no"\nand ended'),
    recorded.Tested(trial="t3", metric="accuracy", value=0.5, loss=0.7, f1=0.4, scores="1b"),
    recorded.Tested(
        trial="t5",
        metric="accuracy",
        value=0.5,
        loss=0.7,
        f1=0.4,
        scores="1b",
        predictions="3:1f",
    ),
    recorded.Tested(
        trial="t4",
        metric="perplexity",
        value=9.5,
        loss=2.2,
        f1=None,
        scores=(2.1, 2.3),
        context_tokens=128,
        stride_tokens=128,
    ),
    Completed(trial="t003"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back(event: Event) -> None:
    line = encode_event(event)

    assert "\n" not in line
    assert decode_event(line) == event


def test_log_round_trip(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e.jsonl")
    assert list(log.read()) == []
    for event in EVENTS:
        log.append(event)
    log.close()
    log.append(EVENTS[0])
    log.close()

    assert list(EventLog(tmp_path / "e.jsonl").read()) == [*EVENTS, EVENTS[0]]


def test_an_event_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e.jsonl")
    with closing(log):
        log.append(PROPOSED)

        assert list(EventLog(log.path).read()) == [PROPOSED]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    log = EventLog(tmp_path / "e.jsonl")
    for event in EVENTS[:3]:
        log.append(event)
    log.close()
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    again = EventLog(log.path)

    assert list(again.read()) == EVENTS[:2]
    with closing(again):
        again.append(EVENTS[3])
    assert list(again.read()) == [*EVENTS[:2], EVENTS[3]]


@pytest.mark.parametrize("left", [b"\0" * 4096, b'{"event":"stop' + b"\0" * 64, b"\xff\xfe"])
def test_what_a_crash_left_in_place_of_the_last_line_is_dropped(
    tmp_path: Path, left: bytes
) -> None:
    """Some file systems make a file longer before they write what it is longer by."""
    log = EventLog(tmp_path / "e.jsonl")
    with closing(log):
        log.append(PROPOSED)
    log.path.write_bytes(log.path.read_bytes() + left)
    again = EventLog(log.path)

    assert list(again.read()) == [PROPOSED]
    with closing(again):
        again.append(EVENTS[3])
    assert list(again.read()) == [PROPOSED, EVENTS[3]]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b'{"event":"unknown"}',
        b'{"event":"stopped"}',
        b"[]",
        b"5",
        b"null",
        b'"words"',
        b"",
        b"\0\0\0",
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "e.jsonl"
    whole = encode_event(PROPOSED).encode()
    path.write_bytes(b"\n".join((whole, line, whole, b"")))
    with pytest.raises(ValueError) as caught:
        list(EventLog(path).read())

    assert str(caught.value).startswith(f"`{path}` must hold one event a line, got line 2 that is")
    assert "Restore the line from a copy, or start a new study." in str(caught.value)


def test_a_tested_line_without_predictions_is_read() -> None:
    line = (
        '{"event":"tested","trial":"t1","metric":"accuracy","value":0.5,"loss":0.7,"f1":0.4,'
        '"scores":"6"}'
    )

    assert decode_event(line) == recorded.Tested(
        trial="t1", metric="accuracy", value=0.5, loss=0.7, f1=0.4, scores="6", predictions=""
    )


def test_a_trial_takes_less_than_2000_bytes_and_a_report_less_than_300() -> None:
    """At the size of MiniLM, with the 1,706 test sentences of Rotten Tomatoes."""
    allocation = make_space("joint", make_inventory(blocks=18)).largest()
    trial = [
        Proposed(
            trial="t050-s3",
            role="confirm",
            origin="t050",
            seed=3,
            allocation=allocation.encode(),
            memory_bytes=48_000_000,
        ),
        recorded.Tested(
            trial="t050-s3",
            metric="accuracy",
            value=0.8123456789,
            loss=0.4123456789,
            f1=0.8123456789,
            scores=pack_answers((1.0,) * 1706),
            predictions=pack_classes((1,) * 1706),
        ),
        Completed(trial="t050-s3"),
    ]
    report = Reported(trial="t050-s3", rung=2, report=make_report(200, 0.412345))

    assert sum(len(encode_event(event)) + 1 for event in trial) < 2000
    assert len(encode_event(report)) < 300
