"""A whole study without Ray: phases, stops, failures, fronts, and going on from the log."""

import json
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from alrq_core.records import ModuleReceipt, Receipt
from alrq_core.sensitivity.table import flat_table
from search_spaces.costs import memory_bytes
from search_spaces.fixed import FIXED
from search_spaces.spaces import make_space
from tests.simulated import (
    RUNGS,
    START_RUNGS,
    advance,
    bytes_help,
    drive,
    luck,
    make_inventory,
    make_report,
    make_study,
    score,
)
from tune.search.searchers import SEARCHERS
from tune.study.confirming import CONFIRM_SEEDS, START_SEEDS
from tune.study.events import (
    LOG_NAME,
    Completed,
    Event,
    EventLog,
    Failed,
    Paused,
    Progressed,
    Promoted,
    Proposed,
    Reported,
    Started,
    Stopped,
)
from tune.study.finalists import TOLERANCES, compared_finalist
from tune.study.schedulers import SCHEDULERS, START_FACTOR
from tune.study.state import StudyState, TrialState
from tune.study.study import WORKER_RESTARTS, Outcome, Progress, Study, load_study_table

INVENTORY = make_inventory()


def events(folder: Path) -> list[Event]:
    return list(EventLog(folder / "events.jsonl").read())


def ends(folder: Path) -> Counter[str]:
    kinds = Completed | Stopped | Failed
    return Counter(event.trial for event in events(folder) if isinstance(event, kinds))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_every_searcher_and_scheduler_ends_every_trial_once(
    tmp_path: Path, searcher: str, scheduler: str
) -> None:
    study = make_study(tmp_path, budget=12, searcher=searcher, scheduler=scheduler)
    drive(study)

    assert study.finished
    assert len(study.state.of_role("search")) == 12
    assert set(ends(tmp_path).values()) == {1}
    assert set(ends(tmp_path)) == set(study.state.trials)
    assert not study.state.with_status("running")


def test_phases_come_in_order(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=10)
    drive(study)
    roles = [event.role for event in events(tmp_path) if isinstance(event, Proposed)]
    finals = study.plan.confirmation.finalists()

    assert roles[:2] == ["baseline", "baseline"]
    assert roles[2:12] == ["search"] * 10
    # The fixed configurations were trained on the first of the fresh seeds before.
    controls = study.state.of_role("control")
    ours = {trial.id for trial in finals if trial.role == "search"}
    assert {control.origin for control in controls} <= ours
    confirmed = CONFIRM_SEEDS * (len(finals) + len(controls))
    assert Counter(roles[12:]) == {
        "control": len(controls),
        "confirm": confirmed - 2 - len(controls),
    }
    assert len(study.state.confirmed_runs()) == confirmed
    assert {trial.id for trial in finals} >= {"B-FP", "B-Q4"}
    assert len(finals) <= 2 + len(TOLERANCES)


def test_finalists_are_chosen_by_what_the_model_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two finalists were lucky, says this model."""
    study = make_study(tmp_path, budget=10, scheduler="none")
    drive(study)
    done = study.state.of_role("search")
    first = min(done, key=lambda trial: trial.reports[-1].loss)
    before = [trial for trial in study.plan.confirmation.finalists() if trial.role == "search"]
    assert first in before

    lucky = {trial.id: 9.0 for trial in before}
    expected = {trial.id: trial.reports[-1].loss for trial in done} | lucky
    monkeypatch.setattr(study.plan.proposer, "expected_losses", lambda: expected)
    after = [trial for trial in study.plan.confirmation.finalists() if trial.role == "search"]

    assert not set(lucky) & {trial.id for trial in after}
    assert min(done, key=lambda trial: expected[trial.id]) in after
    assert after == sorted(after, key=lambda trial: trial.memory_bytes)


def test_confirmation_uses_fresh_seeds_at_full_fidelity(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    drive(study)
    runs = study.state.confirmed_runs()
    for source in {trial.source for trial in runs}:
        assert [t.seed for t in runs if t.source == source] == [1, 2, 3]
    for trial in runs:
        assert [report.step for report in trial.reports] == [RUNGS[-1]]
        assert trial.allocation == study.state.trials[trial.source].allocation
        assert trial.test is not None


def test_a_front_holds_trials_of_full_fidelity_only(tmp_path: Path) -> None:
    """The stopped trials have lower losses than any that completed."""
    study = make_study(tmp_path, budget=20)
    drive(study, lambda t, step: step / 100 + luck(t))
    front = study.state.front()

    assert study.state.with_status("stopped")
    assert front
    assert all(trial.last and trial.last.step == RUNGS[-1] for trial in front)


def test_the_scheduler_never_stops_baselines_or_confirmation(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=15)
    drive(study, lambda t, step: 99.0 if t.role != "search" else bytes_help(t, step))
    stopped = {trial.role for trial in study.state.with_status("stopped")}

    assert stopped == {"search"}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_fails_the_trial_at_once(tmp_path: Path, loss: float) -> None:
    def fails_at_the_second_rung(trial: TrialState, step: int) -> float:
        if trial.id != "t003":
            return bytes_help(trial, step)
        return 0.0 if step == 2 else loss

    study = make_study(tmp_path)
    drive(study, fails_at_the_second_rung)
    trial = study.state.trials["t003"]

    assert trial.status == "failed"
    assert trial.reason == f"validation loss became {loss} at step 4"
    assert [report.step for report in trial.reports] == [2]
    assert study.finished


def test_an_error_fails_one_trial_and_the_study_goes_on(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    first = study.next_trial()
    assert first is not None
    assert study.take(first.id, Outcome(error="it broke")) == "stop"
    assert study.take(first.id, Outcome(report=make_report(2, 0.1))) == "stop"
    drive(study)

    assert study.state.trials[first.id].reason == "it broke"
    assert study.state.trials[first.id].reports == []
    assert study.finished
    assert "B-FP-s2" not in study.state.trials


def fails(study: Study, *reasons: str) -> list[str]:
    """Fail one new trial after another; return their ids."""
    failed = []
    for reason in reasons:
        trial = study.next_trial()
        if trial is None:
            break
        assert study.take(trial.id, Outcome(error=reason)) == "stop"
        failed.append(trial.id)
    return failed


def test_a_study_ends_after_three_failures_in_a_row_for_one_reason(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20)
    with closing(study.log):
        running = study.next_trial()
        assert running is not None
        failed = fails(study, *(f"out of memory: {n} MB at 0x{n}f, step {n}" for n in range(20)))
        assert not advance(study, running, bytes_help)

    assert failed == ["B-Q4", "t001", "t002"]
    assert study.halted == "out of memory: 2 MB at 0x2f, step 2"
    assert not study.finished
    assert running.status == "completed"


def test_what_fails_for_several_reasons_or_now_and_then_goes_on(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20)
    with closing(study.log):
        fails(study, *("a", "b") * 4, "a", "a")
        good = study.next_trial()
        assert good is not None
        advance(study, good, bytes_help)
        fails(study, "a", "a")

    assert study.halted is None
    drive(study)
    assert study.finished


def test_a_study_that_was_ended_by_failures_goes_on_and_tries_its_baselines_again(
    tmp_path: Path,
) -> None:
    broken = make_study(tmp_path, budget=6)
    with closing(broken.log):
        assert fails(broken, *["no space left"] * 9) == ["B-FP", "B-Q4", "t001"]
    study = make_study(tmp_path, budget=6)
    drive(study)

    assert study.finished
    assert {study.state.trials[name].status for name in ("B-FP", "B-Q4")} == {"completed"}
    assert study.state.trials["t001"].reason == "no space left"
    assert len(study.state.of_role("search")) == 6
    assert StudyState(INVENTORY.names).replay(events(tmp_path)) == study.state


def test_a_repeated_report_is_logged_once(tmp_path: Path) -> None:
    study = make_study(tmp_path, scheduler="none")
    with closing(study.log):
        trial = [study.next_trial() for _ in range(3)][-1]
        assert trial is not None
        for _ in range(2):
            assert study.take(trial.id, Outcome(report=make_report(2, 0.5))) == "continue"

    assert len(trial.reports) == 1


def test_reports_that_are_told_again_end_nothing_before_the_last(tmp_path: Path) -> None:
    """As from the checkpoint of a run whose end was measured, and not logged."""
    study = make_study(tmp_path)
    with closing(study.log):
        trial = study.next_trial()
        assert trial is not None and trial.role == "baseline"
        for step in RUNGS:
            trial.reports.append(make_report(step, 0.5))
        for step in RUNGS[:-1]:
            assert study.take(trial.id, Outcome(report=make_report(step, 0.5))) == "continue"
        assert trial.status == "running"
        last = Outcome(report=make_report(RUNGS[-1], 0.5), test=score(trial))
        assert study.take(trial.id, last) == "stop"

    assert trial.status == "completed"
    assert trial.test is not None
    assert len(trial.reports) == len(RUNGS)


def test_a_trial_whose_worker_was_lost_before_it_began_is_tried_again(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    first = study.next_trial()
    assert first is not None
    again = [study.try_again(first.id) and study.next_trial() for _ in range(WORKER_RESTARTS + 1)]
    study.fail(first.id, "worker lost")
    drive(study)

    assert again == [first] * WORKER_RESTARTS + [False]
    assert study.finished
    assert [t.id for t in study.state.with_status("failed")] == [first.id]


def test_how_far_codes_are_is_logged_by_tenths(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with closing(study.log):
        first, second = study.next_trial(), study.next_trial()
        assert first is not None
        assert second is not None
        for made in range(25):
            for trial in (first, second):
                assert (
                    study.take(trial.id, Outcome(progress=Progress("codes", made, 25)))
                    == "continue"
                )
        for made in range(20):
            assert (
                study.take(first.id, Outcome(progress=Progress("starts", made, 20))) == "continue"
            )
    told = [event for event in events(tmp_path) if isinstance(event, Progressed)]
    codes, starts = told[:10], told[10:]

    assert [event.made for event in codes] == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]
    assert {(event.wanted, event.trial) for event in codes} == {(25, None)}
    assert [event.made for event in starts] == [*range(0, 20, 2)]
    assert {(event.wanted, event.trial) for event in starts} == {(20, first.id)}
    assert StudyState(INVENTORY.names).replay(events(tmp_path)) == study.state


def test_a_paused_trial_that_goes_on_may_wait_for_codes(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=12, searcher="random")
    with closing(study.log):
        while (trial := study.next_trial()) is not None and trial.promoted_step < 0:
            while advance(study, trial, bytes_help):
                pass
        assert trial is not None
        assert study.take(trial.id, Outcome(progress=Progress("codes", 1, 2))) == "continue"

    assert trial.status == "running"


def test_a_receipt_is_kept_for_each_trial(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    trial = study.next_trial()
    assert trial is not None
    receipt = Receipt(
        modules={},
        memory_bytes=1,
        target_bytes=1,
        average_bits=4.0,
        trainable_parameters=1,
        lora_pairs=0,
        lora_pairs_with_gradient=0,
        compute_dtype="float32",
    )
    with closing(study.log):
        study.take(trial.id, Outcome(receipt=receipt, error="late"))
    content = json.loads((tmp_path / f"receipts/{trial.id}.json").read_text())

    assert Receipt.from_json(content) == receipt


@pytest.mark.parametrize("reports", [1, 7, 15, 30])
def test_a_study_cut_anywhere_goes_on_from_its_log(tmp_path: Path, reports: int) -> None:
    """Trials that were running go on; nothing is lost and nothing reported twice."""
    drive(make_study(tmp_path, budget=9), reports=reports)
    before = events(tmp_path)
    study = make_study(tmp_path, budget=9)
    drive(study)

    assert events(tmp_path)[: len(before)] == before
    assert len(study.state.of_role("search")) == 9
    assert set(ends(tmp_path).values()) == {1}
    assert set(ends(tmp_path)) == set(study.state.trials)
    for trial in study.state.trials.values():
        steps = [report.step for report in trial.reports]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("searcher", "part", "reference"),
    [
        ("tpe", 0.6, None),
        ("alrq", 0.6, None),
        ("alrq", 0.9, None),
        ("nsga2", 0.2, "B-FP"),
        ("tpe", 0.2, "B-FP"),
        ("alrq", 0.2, "B-FP"),
        ("alrq", 0.6, "B-FP"),
    ],
)
def test_a_cut_study_ends_as_an_uncut_one(
    tmp_path: Path, searcher: str, part: float, reference: str | None
) -> None:
    """With one worker the order is fixed, so the same trials are proposed. Cut within the search,
    and while its finalists are confirmed."""
    for name in ("cut", "whole"):
        (tmp_path / name).mkdir()

    def made(name: str) -> Study:
        return make_study(tmp_path / name, budget=12, searcher=searcher, reference=reference)

    whole = made("whole")
    reports = round(part * drive(whole, workers=1))
    begun = made("cut")
    assert drive(begun, workers=1, reports=reports) == reports
    assert bool(begun.state.of_role("confirm")) == (part > (0.5 if reference else 0.8))
    assert not begun.finished
    cut = made("cut")
    drive(cut, workers=1)

    assert cut.state.trials == whole.state.trials


def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    drive(make_study(tmp_path, budget=6))
    study = make_study(tmp_path, budget=9)
    drive(study)

    assert len(study.state.of_role("search")) == 9
    assert [e.budget for e in events(tmp_path) if isinstance(e, Started)] == [6, 9]


def test_nothing_is_proposed_after_the_time_limit(tmp_path: Path) -> None:
    study = make_study(tmp_path, deadline=time.monotonic() - 1)
    drive(study)

    assert study.finished
    assert not study.state.of_role("search")
    assert {trial.origin for trial in study.state.of_role("confirm")} == {"B-FP", "B-Q4"}


def test_all_proposals_fit_into_memory(tmp_path: Path) -> None:
    limit = round(1.2 * memory_bytes(make_space("joint", INVENTORY).smallest(), INVENTORY))
    study = make_study(tmp_path, max_memory_bytes=limit)
    drive(study)

    assert all(trial.memory_bytes <= limit for trial in study.state.of_role("search"))


@pytest.mark.parametrize("space", FIXED)
def test_a_fixed_space_runs_its_one_point_and_confirms_it(tmp_path: Path, space: str) -> None:
    study = make_study(tmp_path, space=space, budget=50)
    drive(study)

    assert [trial.id for trial in study.state.of_role("baseline")] == [space]
    assert len(study.state.confirmed_runs()) == CONFIRM_SEEDS
    assert not study.state.of_role("search")


def test_the_matrix_runs_all_six_to_the_end_and_confirms_them(tmp_path: Path) -> None:
    study = make_study(tmp_path, space="matrix", budget=50)
    drive(study)
    ended = study.state.of_role("baseline")

    assert [trial.id for trial in ended] == list(FIXED)
    assert {trial.status for trial in ended} == {"completed"}
    assert len(study.state.confirmed_runs()) == CONFIRM_SEEDS * len(FIXED)
    assert not study.state.of_role("search")


def receipt_of(ranks: dict[str, int]) -> Receipt:
    modules = {
        name: ModuleReceipt(
            module_class="c",
            bits=4,
            method="nf4-double",
            group_size=64,
            stored_bytes=1,
            rank=rank,
            checksum=1,
        )
        for name, rank in ranks.items()
    }
    return Receipt(
        modules=modules,
        memory_bytes=777,
        target_bytes=700,
        average_bits=4.1,
        trainable_parameters=99,
        lora_pairs=5,
        lora_pairs_with_gradient=5,
        compute_dtype="float32",
    )


def test_a_completed_trial_is_what_its_receipt_says(tmp_path: Path) -> None:
    """AdaLoRA's ranks and bytes are only known then, and a resumed study knows them too."""
    study = make_study(tmp_path, space="Joint-1")
    trial = study.next_trial()
    assert trial is not None
    ranks = {name: number for number, name in enumerate(INVENTORY.names)}
    report = make_report(RUNGS[-1], 0.5)
    study.take(trial.id, Outcome(report=report, receipt=receipt_of(ranks)))
    study.log.close()
    again = StudyState(INVENTORY.names).replay(EventLog(tmp_path / LOG_NAME).read())

    for known in (trial, again.trials["Joint-1"]):
        assert (known.memory_bytes, known.trainable_parameters) == (777, 99)
        assert known.final == trial.allocation.with_ranks(ranks)
        assert known.allocation.final_rank == 4


@pytest.mark.parametrize("lost", range(4))
def test_what_a_kill_left_of_an_end_is_completed_and_not_repeated(
    tmp_path: Path, lost: int
) -> None:
    """Report, receipt, test and end are logged one after another."""
    study = make_study(tmp_path, space="B-FP")
    trial = study.next_trial()
    assert trial is not None
    report, receipt = make_report(RUNGS[-1], 0.5), receipt_of(dict.fromkeys(INVENTORY.names, 8))
    outcome = Outcome(report=report, receipt=receipt, test=score(trial))
    study.take(trial.id, outcome)
    study.log.close()
    log = tmp_path / LOG_NAME
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: len(lines) - lost]))
    again = make_study(tmp_path, space="B-FP")
    again.take(trial.id, outcome)
    again.log.close()
    ends = Counter(json.loads(line)["event"] for line in log.read_text().splitlines())

    assert {ends[kind] for kind in ("reported", "realised", "tested", "completed")} == {1}
    assert again.state.trials[trial.id] == study.state.trials[trial.id]


def test_state_is_made_from_the_log_alone(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    drive(study)

    assert StudyState(INVENTORY.names).replay(events(tmp_path)) == study.state


def test_listeners_hear_every_event_after_it_took_effect(tmp_path: Path) -> None:
    heard: list[Event] = []

    def listen(event: Event, state: StudyState) -> None:
        if isinstance(event, Completed):
            assert state.trials[event.trial].status == "completed"
        heard.append(event)

    drive(make_study(tmp_path, listeners=(listen,)))

    assert heard == events(tmp_path)[1:]


def test_a_trial_that_was_stopped_early_is_never_on_the_front() -> None:
    """A low-rung value is no value at full fidelity, however good it looks."""
    allocation = make_space("joint", INVENTORY).smallest().encode()
    state = StudyState(INVENTORY.names)
    for trial, loss, end in (
        ("t001", 0.1, Stopped(trial="t001", rung=0)),
        ("t002", 0.5, Completed(trial="t002")),
        ("t003", 0.2, None),
    ):
        proposed = Proposed(
            trial=trial, role="search", origin="tpe", seed=0, allocation=allocation, memory_bytes=9
        )
        step = RUNGS[-1] if isinstance(end, Completed) else RUNGS[0]
        report = Reported(trial=trial, rung=0, report=make_report(step, loss))
        state.replay([proposed, report] if end is None else [proposed, report, end])

    assert [trial.id for trial in state.front()] == ["t002"]


def test_fixed_configurations_are_confirmed_while_the_search_still_runs(tmp_path: Path) -> None:
    """They are finalists whatever it finds, and no worker waits."""
    study = make_study(tmp_path, budget=2)
    drive(study, workers=1, reports=2)
    with closing(study.log):
        searched = [study.next_trial() for _ in range(2)]
        more = [study.next_trial() for _ in range(5)]

    assert [trial.role for trial in searched if trial] == ["search"] * 2
    assert [trial.id for trial in more if trial] == ["B-FP-s2", "B-Q4-s2", "B-FP-s3", "B-Q4-s3"]


def test_a_study_whose_fixed_configurations_were_not_tested_confirms_them_thrice(
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path, space="B-FP")
    first = study.next_trial()
    assert first is not None
    study.take("B-FP", Outcome(report=make_report(RUNGS[-1], 0.5)))
    drive(study)

    assert [t.id for t in study.state.confirmed_runs()] == ["B-FP-s1", "B-FP-s2", "B-FP-s3"]


def test_a_paused_trial_goes_on_from_its_rung_or_is_stopped_at_the_end(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20)
    drive(study, workers=3)
    log = events(tmp_path)
    paused = [event for event in log if isinstance(event, Paused)]
    promoted = [event for event in log if isinstance(event, Promoted)]
    stopped = [event for event in log if isinstance(event, Stopped)]

    waited = {(e.trial, e.rung) for e in paused}
    late = [event for event in promoted if (event.trial, event.rung) in waited]
    assert 0 < len(late) < len(promoted)
    assert len(paused) == len(late) + len(stopped)
    # What passed among the first may not be in the better half of all: 10 to 17 pass the first rung
    # and 6 to 14 the second, by the order in which allocations come.
    searched = study.state.of_role("search")
    second = sum(len(trial.reports) >= 2 for trial in searched)
    assert 10 <= second <= 17
    assert 5 <= sum(trial.status == "completed" for trial in searched) < second


def test_what_goes_on_is_decided_by_all_that_came_and_not_by_the_first(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=9, space="bits")
    drive(study, lambda t, step: 1.0 if t.role != "search" else 20.0 - int(t.id[1:]), workers=1)
    done = [t.id for t in study.state.of_role("search") if t.status == "completed"]

    # Each was the best of those before it, and the first of them waited.
    assert "t009" in done
    assert len(done) < 9


def test_no_paused_trial_goes_on_after_the_time_limit(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=12)
    drive(study, workers=1, reports=16)
    assert study.state.with_status("paused")
    again = make_study(tmp_path, budget=12, deadline=time.monotonic() - 1)
    drive(again)

    assert not again.state.with_status("paused")
    assert again.finished
    assert any(trial.status == "stopped" for trial in again.state.of_role("search"))


def test_the_search_waits_for_its_table_and_no_one_else_does(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=4, searcher="alrq")
    reference, *others = [study.next_trial() for _ in range(3)]
    assert reference is not None
    assert (reference.role, reference.origin) == ("reference", "B-FP")
    assert [trial.id for trial in others if trial] == ["B-FP", "B-Q4"]
    assert study.next_trial() is None
    for trial in others:
        assert trial is not None
        assert not advance(study, trial, bytes_help)
    # What needs no search is confirmed meanwhile.
    repeats = [trial.id for trial in (study.next_trial() for _ in range(5)) if trial]
    assert repeats == ["B-FP-s2", "B-Q4-s2", "B-FP-s3", "B-Q4-s3"]
    assert not advance(study, reference, bytes_help)
    first = study.next_trial()
    study.log.close()

    assert first is not None
    assert first.role == "search"
    assert load_study_table(tmp_path) == flat_table(study.plan.space)


def test_a_search_whose_table_failed_goes_on_and_keeps_the_reason(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=6, searcher="alrq")
    table = study.next_trial()
    assert table is not None
    study.take(table.id, Outcome(error="out of memory"))
    drive(study)

    assert study.finished
    assert study.state.trials[table.id].reason == "out of memory"
    assert len(study.state.of_role("search")) == 6


def test_a_study_without_its_table_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"readable visibility.json.*Restore the file"):
        load_study_table(tmp_path)
    (tmp_path / "visibility.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="Restore the file"):
        load_study_table(tmp_path)


def test_what_starts_from_a_reference_waits_for_that_of_its_seed(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20, searcher="alrq", reference="B-FP")
    drive(study)
    known: set[str] = set()
    for event in events(tmp_path):
        if isinstance(event, Proposed) and event.reference is not None:
            assert event.reference in known
            assert study.state.trials[event.reference].seed == event.seed
        elif isinstance(event, Completed):
            known.add(event.trial)
    searched = study.state.of_role("search")

    assert study.finished
    assert {trial.reference for trial in searched} == {"reference"}
    assert [r.step for t in searched for r in t.reports][:1] == [0]
    done = [t for t in searched if t.status == "completed"]
    assert all([r.step for r in t.reports] == list(START_RUNGS) for t in done)
    assert len(done) == 20 // START_FACTOR
    assert set(ends(tmp_path).values()) == {1}


@pytest.mark.parametrize("reports", [25, 40, 50, 60])
def test_a_resumed_search_trains_no_more_starts(tmp_path: Path, reports: int) -> None:
    flags: dict[str, Any] = {"budget": 30, "searcher": "alrq", "reference": "B-FP"}
    drive(make_study(tmp_path, **flags), reports=reports)
    study = make_study(tmp_path, **flags)
    drive(study)
    trained = [trial for trial in study.state.of_role("search") if len(trial.reports) > 1]

    assert study.finished and len(trained) == 30 // START_FACTOR


def test_a_larger_search_trains_a_fifth_of_all_its_starts(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"searcher": "alrq", "reference": "B-FP"}
    drive(make_study(tmp_path, budget=20, **flags))
    study = make_study(tmp_path, budget=40, **flags)
    drive(study)
    trained = {trial.id for trial in study.state.of_role("search") if len(trial.reports) > 1}

    assert len(trained) == 40 // START_FACTOR
    assert len([trial for trial in trained if trial > "t020"]) == 4


def test_a_start_that_went_on_goes_on_after_a_loss(tmp_path: Path) -> None:
    """Its worker tells the start again, and better ones may have come since."""
    flags: dict[str, Any] = {"budget": 30, "searcher": "alrq", "reference": "B-FP"}
    study = make_study(tmp_path, **flags)

    def later_is_better(trial: TrialState, step: int) -> float:
        return 10.0 / (trial.number + 1)

    with closing(study.log):
        while (trial := study.next_trial()) is not None:
            goes_on = advance(study, trial, later_is_better)
            if trial.role == "search" and goes_on:
                break
            while goes_on:
                goes_on = advance(study, trial, later_is_better)
        assert trial is not None and [report.step for report in trial.reports] == [0]
        start = trial.reports[0]
        for loss in (1e-3, 1e-4):
            other = study.next_trial()
            assert other is not None
            study.take(other.id, Outcome(report=make_report(0, loss, loss)))
        assert study.take(trial.id, Outcome(report=start)) == "continue"
    resumed = make_study(tmp_path, **flags)
    with closing(resumed.log):
        assert resumed.take(trial.id, Outcome(report=start)) == "continue"
        assert resumed.take(trial.id, Outcome(error="lost")) == "stop"
    drive(resumed)
    gone = [t for t in resumed.state.of_role("search") if t.promoted_step == 0]

    assert len(gone) == 30 // START_FACTOR and trial.id in {t.id for t in gone}
    assert sum(t.status == "completed" for t in gone) == len(gone) - 1


def test_starts_are_judged_by_what_all_of_them_have(tmp_path: Path) -> None:
    """Whatever training makes of a trial, and also where it fails: the search has its start."""

    def ends_anywhere(trial: TrialState, step: int) -> float:
        if step == 0 or not trial.searched:
            return bytes_help(trial, step)
        return float("nan") if trial.id == "t002" else 100 * luck(trial)

    study = make_study(
        tmp_path, budget=20, searcher="alrq", scheduler="none", reference="B-FP", screen=2
    )
    drive(study, ends_anywhere)
    searched = [trial for trial in study.state.trials.values() if trial.searched]
    starts = {trial.id: trial.reports[0].divergence for trial in searched}
    told = {t.user_attrs["trial"]: t.values[0] for t in study.plan.proposer._journal._study.trials}
    front = study.state.front()

    assert told == starts
    assert study.state.trials["t002"].status == "failed"
    assert "t002" not in {trial.id for trial in front}
    values = [starts[trial.id] or 0.0 for trial in front]
    assert len(values) > 3
    assert values == sorted(values, reverse=True)
    assert set(study.plan.proposer.expected_losses()) == set(starts)


def test_a_finalist_is_compared_to_what_it_must_beat(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=20, searcher="alrq", reference="B-FP")
    drive(study)
    found = compared_finalist(study.state, study.plan.proposer.expected_losses())
    assert found is not None
    controls = {trial.id: trial for trial in study.state.of_role("control")}
    runs = Counter(trial.source for trial in study.state.confirmed_runs())

    kinds = {name.removesuffix(f"-{found.id}") for name in controls}
    assert {"nothing", "B-FP+"} < kinds <= {"uniform", "random", "table", "nothing", "B-FP+"}
    longer, plain = controls["B-FP+"], controls[f"nothing-{found.id}"]
    assert (longer.labels, longer.reference) == (True, "B-FP")
    assert longer.allocation == study.state.trials["B-FP"].allocation
    assert (plain.reference, plain.allocation) == (None, found.allocation)
    assert {runs[name] for name in (plain.id, "B-Q4")} == {CONFIRM_SEEDS}
    assert {count for name, count in runs.items() if name not in (plain.id, "B-Q4")} == {
        START_SEEDS
    }
    repeats = [t for t in study.state.of_role("confirm") if t.origin == "B-FP+"]
    assert all(t.labels and t.reference == f"B-FP-s{t.seed}" for t in repeats)


def test_a_seed_whose_reference_failed_is_left_out(tmp_path: Path) -> None:
    def second_fails(trial: TrialState, step: int) -> float:
        return float("nan") if trial.id == "B-FP-s2" else bytes_help(trial, step)

    study = make_study(tmp_path, budget=6, searcher="alrq", reference="B-FP")
    drive(study, second_fails)
    started = [t for t in study.state.of_role("confirm") if t.reference is not None]

    assert study.finished
    assert {trial.seed for trial in started} == {1, 3}
    # The next run tries it again, and all that depends on it.
    again = make_study(tmp_path, budget=6, searcher="alrq", reference="B-FP")
    drive(again)
    assert {t.seed for t in again.state.of_role("confirm") if t.reference} == {1, 2, 3}


def test_without_its_reference_nothing_is_searched(tmp_path: Path) -> None:
    def never_learns(trial: TrialState, step: int) -> float:
        return float("inf") if trial.role == "reference" else bytes_help(trial, step)

    study = make_study(tmp_path, budget=6, searcher="random", reference="B-FP")
    drive(study, never_learns)

    assert study.finished
    assert not study.state.of_role("search")
    assert study.state.trials["reference"].reason == "validation loss became inf at step 8"
    assert {t.source for t in study.state.confirmed_runs()} == {"B-FP", "B-Q4"}


def test_screened_allocations_are_scored_and_are_no_trials(tmp_path: Path) -> None:
    study = make_study(tmp_path, budget=6, searcher="alrq", reference="B-FP", screen=9)
    drive(study)
    screened = study.state.of_role("screen")

    assert [trial.id for trial in screened] == [f"s{n:03d}" for n in range(1, 10)]
    assert all([r.step for r in trial.reports] == [0] for trial in screened)
    assert {trial.status for trial in screened} == {"stopped"}
    assert len(study.state.of_role("search")) == 6
    assert len({t.allocation for t in study.state.trials.values() if t.searched}) == 15


@pytest.mark.parametrize("searcher", ["tpe", "alrq"])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_study_with_a_reference_cut_anywhere_ends_as_an_uncut_one(
    tmp_path: Path, searcher: str, part: float
) -> None:
    def made(name: str) -> Study:
        (tmp_path / name).mkdir(exist_ok=True)
        folder = tmp_path / name
        return make_study(folder, budget=9, searcher=searcher, reference="B-FP", screen=3)

    whole = made("whole")
    reports = round(part * drive(whole, workers=1))
    drive(made("cut"), workers=1, reports=reports)
    cut = made("cut")
    assert not cut.finished
    drive(cut, workers=1)

    assert cut.state.trials == whole.state.trials
