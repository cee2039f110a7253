"""What a study says of its own means: by hand, and on whole simulated studies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alrq_core.sensitivity.table import flat_table
from tests.simulated import LABELS, bytes_help, drive, make_inventory, make_report, make_study
from tune.report.confirmation import confirmed
from tune.report.controls import agreements, comparisons, evidence_json, evidence_lines
from tune.study.finalists import compared_finalist
from tune.study.state import StudyState, TrialState
from tune.study.study import Study

INVENTORY = make_inventory()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = make_study(tmp_path, budget=20, searcher="alrq", scheduler="none")
    drive(study)
    return study


def compared(study: Study) -> TrialState:
    found = compared_finalist(study.state, study.plan.proposer.expected_losses())
    assert found is not None
    return found


def with_losses(state: StudyState, losses: list[tuple[float, float, float]]) -> None:
    done = [trial for trial in state.of_role("search") if trial.status == "completed"]
    for trial, each in zip(done, losses, strict=True):
        trial.reports = [make_report(s, loss) for s, loss in zip((2, 4, 8), each, strict=True)]


def test_rungs_that_order_trials_alike_or_not_at_all(study: Study) -> None:
    with_losses(study.state, [(float(n), -float(n), float(n)) for n in range(20)])
    first, second = agreements(study.state, None)

    assert (first.source, first.kendall, first.trials) == ("step 2", 1.0, 20)
    assert first.interval is not None
    assert first.interval == pytest.approx((1.0, 1.0), abs=0.1)
    assert (second.source, second.kendall) == ("step 4", -1.0)


def test_the_table_is_compared_by_what_it_predicts(study: Study) -> None:
    table = flat_table(study.plan.space)
    done = study.state.of_role("search")
    with_losses(study.state, [(1.0, 1.0, table.predict(trial.allocation)) for trial in done])
    found = {one.source: one for one in agreements(study.state, table)}

    assert found["visibility table"].kendall > 0.99
    assert found["step 2"].kendall == 0.0
    assert found["step 2"].interval is None
    assert "visibility table +1.00" in evidence_lines(list(found.values()), [])[0]


def test_three_trials_order_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=3, scheduler="none")
    drive(study)

    assert agreements(study.state, None) == []


def test_every_control_is_compared_on_the_same_seeds(study: Study) -> None:
    rows = confirmed(study.state, INVENTORY, LABELS)
    found = comparisons(study.state, rows, compared(study))

    assert {one.control for one in found} == {t.id for t in study.state.of_role("control")}
    assert all(one.seeds == 3 for one in found)
    # `score` gives all trials the same test loss.
    assert all(one.difference_interval == (0.0, 0.0) and not one.beaten for one in found)
    lines = evidence_lines([], found)
    assert len(lines) == len(found) + 1
    assert "is not shown to differ from the random allocation of its size" in "\n".join(lines)
    assert lines[-1] == (
        "The search is not shown to beat the uniform allocation and the random allocation, which "
        "nobody searched for."
    )
    assert not evidence_json([], found)["comparisons"][0]["beaten"]


def test_a_search_that_beats_its_controls_says_so(study: Study) -> None:
    for trial in study.state.confirmed_runs():
        assert trial.test is not None
        lower = trial.source.startswith("t0")
        losses = (0.3 if lower else 0.5,) * len(LABELS)
        trial.test = replace(trial.test, loss=losses[0], losses=losses)
    found = comparisons(study.state, confirmed(study.state, INVENTORY, LABELS), compared(study))
    lines = evidence_lines([], found)

    assert found
    assert all(one.beaten for one in found)
    assert (
        "beats the random allocation of its size: test loss (lower is better) 0.3000 at"
        in "\n".join(lines)
    )
    assert "not shown" not in "\n".join(lines)


def test_changed_answers_are_counted_against_what_takes_the_place_of_b_fp(study: Study) -> None:
    rows = confirmed(study.state, INVENTORY, LABELS, "B-Q4")
    found = comparisons(study.state, rows, compared(study), "B-Q4")

    assert {one.changed.comparator for one in found if one.changed is not None} == {"B-Q4"}
    assert "of B-Q4's answers" in "\n".join(evidence_lines([], found))


def test_changed_answers_are_counted_against_the_reference_of_the_seed(study: Study) -> None:
    """The found ones change every tenth answer of theirs, all others every fifth."""
    for trial in study.state.confirmed_runs():
        assert trial.test is not None
        answers = np.array(LABELS)
        if trial.source != "B-FP":
            answers[:: 10 if trial.source.startswith("t0") else 5] ^= 1
        trial.test = replace(trial.test, predictions=tuple(answers.tolist()))
    found = comparisons(study.state, confirmed(study.state, INVENTORY, LABELS), compared(study))

    assert found
    for one in found:
        assert one.changed is not None
        assert one.changed.share == pytest.approx(0.1)
        assert one.changed.control_share == pytest.approx(0.1 if one.kind == "nothing" else 0.2)
    uniform = next(one for one in found if one.kind == "uniform")
    assert uniform.changed is not None
    assert uniform.changed.difference_interval[1] < 0
    line = next(x for x in evidence_lines([], found) if "the uniform allocation" in x)
    assert "It changes 10.0 % of B-FP's answers, the other 20.0 %; difference -10.0 [" in line


def test_answers_that_are_no_classes_are_not_counted(study: Study) -> None:
    for trial in study.state.confirmed_runs():
        assert trial.test is not None
        trial.test = replace(trial.test, predictions=())
    found = comparisons(study.state, confirmed(study.state, INVENTORY, LABELS), compared(study))

    assert found
    assert all(one.changed is None for one in found)
    assert "answers" not in "\n".join(evidence_lines([], found))


def test_controls_have_the_bytes_of_their_finalist(study: Study) -> None:
    def size(trial: TrialState) -> int:
        return trial.memory_bytes

    for control in study.state.of_role("control"):
        finalist = study.state.trials[control.origin]
        assert size(control) >= size(finalist) if control.id.startswith("uniform") else True
        assert size(control) <= size(finalist) if control.id[0] in "rt" else True


def test_a_larger_budget_whose_smallest_finalist_is_another_has_controls_of_that_one(
    tmp_path: Path,
) -> None:
    """All that the second run finds is better than what the first did."""
    first = make_study(tmp_path, budget=6, scheduler="none")
    drive(first)
    (former,) = {trial.origin for trial in first.state.of_role("control")}
    study = make_study(tmp_path, budget=12, scheduler="none")
    drive(study, lambda trial, step: bytes_help(trial, step) - (trial.id > "t006") / 2)
    now = compared(study)
    found = comparisons(study.state, confirmed(study.state, INVENTORY, LABELS), now)

    assert now.id != former
    assert {one.trial for one in found} == {now.id}
    assert {one.control for one in found} == {f"uniform-{now.id}", f"random-{now.id}"}
    assert all(one.seeds == 3 for one in found)
    assert {former, now.id} == {trial.origin for trial in study.state.of_role("control")}
