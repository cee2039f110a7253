"""A study is not resumed with other texts, labels, names or weights, wherever they lie."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alrq_core.data.splits import TextSplit
from alrq_core.data.task import Task
from alrq_core.recipe import Recipe
from tests.tiny import save_bert, save_reviews
from tune.report.describe import describe_plan
from tune.study.config import StudyConfig, resumed_config
from tune.study.digests import combined, digests_of
from tune.study.folders import prepare_folder
from tune.study.prepare import Prepared, prepare
from tune.study.record import check_same_study, study_content

Rows = list[list[str]]


def config(folder: Path, bert: Path | str, reviews: Path | str) -> StudyConfig:
    return StudyConfig(
        model=str(bert),
        task="custom",
        data=str(reviews),
        text_column="review",
        label_column="verdict",
        recipe=Recipe(max_steps=8, batch_size=8, max_length=16),
        output_dir=str(folder / "results"),
        name="s",
    )


def begin(made: StudyConfig) -> Prepared:
    prepared = prepare(made)
    folder = prepare_folder(prepared.config)
    (folder / "study.json").write_text(json.dumps(study_content(prepared)))
    return prepared


def resume(study: Path, **places: Path) -> None:
    given = {name: str(path) for name, path in places.items()}
    check_same_study(prepare(resumed_config(study, given)), study)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save_reviews(tmp_path / "reviews.csv", rows=80)


def swapped(rows: Rows) -> Rows:
    return [[text, {"no": "yes", "yes": "no"}[label]] for text, label in rows]


def renamed(rows: Rows) -> Rows:
    return [[text, {"no": "never", "yes": "yes"}[label]] for text, label in rows]


def edited(rows: Rows) -> Rows:
    return [[text.replace("film", "plot"), label] for text, label in rows]


def one_edited(rows: Rows) -> Rows:
    return [[rows[0][0] + " the", rows[0][1]], *rows[1:]]


@pytest.mark.parametrize("change", [swapped, renamed, edited, one_edited])
def test_other_texts_labels_and_names_are_refused(
    tmp_path: Path, bert: Path, data: Path, change: Callable[[Rows], Rows]
) -> None:
    """With the same number of rows and classes each."""
    before = begin(config(tmp_path, bert, data))
    resume(before.config.folder)
    with data.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *change(rows)])
    old = combined(before.digests.data)
    refusal = rf"`--data` must hold what it held when the study began \(digest {old}\), got .*csv'"
    with pytest.raises(ValueError, match=rf"{refusal} with digest \w{{12}}: another .*Restore it"):
        resume(before.config.folder)


def test_other_weights_of_equal_shape_are_refused(tmp_path: Path, bert: Path, data: Path) -> None:
    before = begin(config(tmp_path, bert, data))
    path = bert / "model.safetensors"
    weights = load_file(path)
    weights["bert.pooler.dense.bias"] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    old = combined(before.digests.model)
    refusal = rf"`--model` must hold .*digest {old}.*another model.safetensors\. Restore it"
    with pytest.raises(ValueError, match=refusal):
        resume(before.config.folder)


def test_another_tokenizer_is_refused(tmp_path: Path, bert: Path, data: Path) -> None:
    before = begin(config(tmp_path, bert, data))
    path = bert / "tokenizer.json"
    path.write_text(path.read_text().replace('"good"', '"goof"'))
    with pytest.raises(ValueError, match=r"`--model` must hold .*another tokenizer\.json\."):
        resume(before.config.folder)


def test_what_was_moved_is_accepted_where_it_lies_now(
    tmp_path: Path, bert: Path, data: Path
) -> None:
    study = begin(config(tmp_path, bert, data)).config.folder
    moved = {"data": tmp_path / "else.csv", "model": tmp_path / "else"}
    data.rename(moved["data"])
    bert.rename(moved["model"])
    with pytest.raises(ValueError, match=r"`--model` must be|`--data` must exist"):
        resume(study)
    resume(study, **moved)


def test_relative_paths_hold_in_any_folder(
    tmp_path: Path, bert: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = begin(config(tmp_path, "bert", "reviews.csv")).config.folder
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    resume(study)
    shutil.copy(data, tmp_path / "other")
    resume(study, data=Path("reviews.csv"))


def test_a_study_file_without_digests_is_named(tmp_path: Path, bert: Path, data: Path) -> None:
    study = begin(config(tmp_path, bert, data)).config.folder
    content = json.loads((study / "study.json").read_text())
    del content["digests"]["model"]
    (study / "study.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"study.json` must hold the digests .*Restore the file"):
        resume(study)


def test_the_plan_prints_both(tmp_path: Path, bert: Path, data: Path) -> None:
    prepared = prepare(config(tmp_path, bert, data))
    digests = prepared.digests
    line = f"digests          data {combined(digests.data)}, model {combined(digests.model)}"

    assert line in describe_plan(prepared)


def test_the_same_letters_cut_in_another_way_are_other_texts(bert_folder: Path) -> None:
    def digest(*texts: str, labels: tuple[int, ...] = (0, 1)) -> str:
        split = TextSplit(texts=texts, labels=labels)
        task = Task(
            name="t",
            kind="classification",
            label_names=("a", "b"),
            splits="",
            train=split,
            validation=split,
            test=split,
        )
        return combined(digests_of(task, bert_folder).data)

    known = {digest("ab", "c"), digest("a", "bc"), digest("\ud800", "c"), digest("", "abc")}
    known |= {digest("ab", "c", labels=(1, 0)), digest("abc", labels=(0,))}
    assert len(known) == 6
    assert digest("ab", "c") in known
