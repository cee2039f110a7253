"""The event log: round trips, sizes, and what a crash leaves behind."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import tune.study.events as recorded
from alrq_core.records import TestScore
from search_spaces.spaces import make_space
from tests.simulated import make_inventory, make_report
from tune.study.events import (
    Completed,
    Event,
    EventLog,
    Failed,
    Planned,
    Progressed,
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
RIGHT_AND_WRONG = TestScore(
    metric="accuracy",
    value=0.5,
    loss=0.7,
    f1=0.4,
    scores=(0.0, 1.0),
    losses=(1.25, 0.15),
    predictions=(1, 39),
)
WINDOWS = TestScore(
    metric="perplexity",
    value=9.5,
    loss=2.25,
    f1=None,
    scores=(2.0, 2.51234),
    losses=(2.0, 2.51234),
    context_tokens=128,
    stride_tokens=128,
)
EVENTS: list[Event] = [
    Started(time=1.25, budget=50),
    PROPOSED,
    Reported(trial="t001", rung=0, report=make_report(50, 0.512345)),
    Stopped(trial="t001", rung=0),
    Failed(trial="t002", reason='it said "no"\nand ended'),
    recorded.Tested(trial="t3", score=RIGHT_AND_WRONG),
    recorded.Tested(trial="t4", score=WINDOWS),
    Progressed(work="codes", made=3, wanted=144),
    Progressed(work="training", made=20, wanted=60, trial="t1"),
    Planned(started=25, plain=8),
    Completed(trial="t003"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back(event: Event) -> None:
    """But for predictions, which no line holds."""
    line = encode_event(event)
    if isinstance(event, recorded.Tested):
        event = recorded.Tested(
            trial=event.trial, score=replace(event.score, scores=(), losses=(), predictions=())
        )

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


def test_a_log_of_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Even where its lines are none of ours."""
    path = tmp_path / "e.jsonl"
    path.write_text(
        '{"event":"started","time":1.0,"budget":2,"version":1}\n'
        '{"event":"tested","trial":"t1","metric":"accuracy","value":0.5,"loss":0.7,"scores":"6"}\n'
    )
    with pytest.raises(ValueError, match=r"version 3, which keeps losses.*got version 1\."):
        list(EventLog(path).read())


def test_a_trial_takes_less_than_2000_bytes_and_a_report_less_than_300() -> None:
    """At the size of MiniLM."""
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
        recorded.Tested(trial="t050-s3", score=replace(RIGHT_AND_WRONG, value=0.8123456789)),
        Completed(trial="t050-s3"),
    ]
    report = Reported(trial="t050-s3", rung=2, report=make_report(200, 0.412345))

    assert sum(len(encode_event(event)) + 1 for event in trial) < 2000
    assert len(encode_event(report)) < 300
