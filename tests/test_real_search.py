"""Losses by training that are kept, and the report on what was trained."""

import json
import math
from pathlib import Path

import pytest

from alrq_core.context import TrialContext
from alrq_core.trial import TrialRun
from benchmarks.real_report import write_real_report
from benchmarks.real_search import Trained, offered
from benchmarks.replay import Replay
from search_spaces.spaces import make_space
from tests.tiny import make_context, uniform


@pytest.fixture
def context(bert_folder: Path) -> TrialContext:
    return make_context(bert_folder, "classification")


def test_losses_are_those_of_trials_and_are_trained_once(
    tmp_path: Path, context: TrialContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = uniform(context.inventory, 4, 4), uniform(context.inventory, 2, 8)
    run = TrialRun(context, first, 1)
    expected = [run.advance(step).loss for step in (2, 4, 8)]
    losses = Trained(context, tmp_path)
    assert losses.steps == (2, 4, 8)
    assert losses.loss(first, 1, 0) == expected[0]
    # Another one comes between, and another process goes on.
    assert losses.loss(second, 1, 0) != expected[0]
    again = Trained(context, tmp_path)
    assert [again.loss(first, 1, rung) for rung in (0, 1, 2)] == expected
    tested = again.test_loss(first, 2)
    assert 0 < tested < 2

    monkeypatch.setattr("benchmarks.real_search.TrialRun", None)
    known = Trained(context, tmp_path)
    assert [known.loss(first, 1, rung) for rung in (0, 1, 2)] == expected
    assert known.test_loss(first, 2) == tested
    assert len(list(tmp_path.glob("*.pt"))) == 1  # of the second, which may go on


def test_a_line_that_was_cut_short_is_trained_again(tmp_path: Path, context: TrialContext) -> None:
    allocation = uniform(context.inventory, 4, 4)
    before = Trained(context, tmp_path).loss(allocation, 1, 2)
    path = tmp_path / "losses.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")

    assert Trained(context, tmp_path).loss(allocation, 1, 2) == before
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [before]


def test_what_is_offered_is_what_was_known_by_then(context: TrialContext) -> None:
    space = make_space("joint", context.inventory)
    small, large = space.smallest(), space.largest()
    found = Replay([100.0, 200.0], [[small], [small, large]])

    assert offered(found, 99.0) == []
    assert offered(found, 199.0) == [small]
    assert offered(found, 200.0) == [small, large]


def test_the_report_by_hand(tmp_path: Path) -> None:
    """Areas to a loss of log 2 and to 4 MB; the peer has 0.1 x 1 after all of its cost."""
    chance, size = math.log(2), 2_000_000
    peer = [[], [], [], [[chance - 0.1, size]]]
    ours = [[], [[chance - 0.1, size]], [[chance - 0.1, size]], [[chance - 0.2, size]]]
    studies = [
        {"arm": arm, "seed": seed, "completed": 1, "fronts": fronts, "controls": controls}
        for arm, fronts, controls in (
            ("tpe", peer, []),
            ("alrq", ours, [[chance, chance - 0.3]]),
        )
        for seed in range(2)
    ]
    write_real_report(tmp_path, studies, 2.0 * size)
    text = (tmp_path / "real_search.md").read_text(encoding="utf-8")

    zero, tenth, fifth = (f"{v} [{v}, {v}]" for v in ("0.000", "0.100", "0.200"))
    assert f"| alrq | {zero} | {tenth} | {tenth} | {fifth} | {tenth} | 2 |" in text
    assert f"| tpe | {zero} | {zero} | {zero} | {tenth} | - | 2 |" in text
    assert "| tpe | all | all |" in text
    assert "| alrq | 1/5 | 1/5 |" in text
    assert "| alrq | 1 | 1 | -0.2000 | 1 | +0.1000 | 0 |" in text
    less, more = "-0.2000 [-0.2000, -0.2000]", "+0.1000 [+0.1000, +0.1000]"
    assert f"| alrq | all | 2 | {less} | 2 | {more} | 0 |" in text
    assert "| tpe | 0 | 1 |" not in text
    assert (tmp_path / "real_search.png").stat().st_size > 10_000
