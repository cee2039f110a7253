"""Names of classes, from the file to an export and back."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from alrq_core.context import load_context
from alrq_core.data.task import Task
from alrq_core.data.tasks import load_task
from alrq_core.export.exact import load, save
from alrq_core.trial import TrialRun
from search_spaces.spaces import make_space
from tests.tiny import RECIPE


def write(path: Path, labels: list[str], rows: int) -> Path:
    """Write texts of which each names its own label."""
    named = [labels[n % len(labels)] for n in range(rows)]
    lines = [
        f"the film was a good plot and {n} is {label},{label}" for n, label in enumerate(named)
    ]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Task:
    return load_task("custom", path, {"text": "text", "label": "label"})


@pytest.mark.parametrize(
    "names",
    [
        ["no", "yes"],
        ["False", "True"],
        ["false", "true"],
        ["👍", "👎"],
        ["-1", "0", "1"],
        ["-10", "-9", "+2", "11"],
        [str(n) for n in range(12)],
        [str(n) for n in range(1, 13)],
        [f"{n}.0" for n in range(12)],
        ["1.1", "1.10", "1.2"],
        ["007", "7", "8"],
        ["nan", "no"],
        ["1e5", "2", "nan"],
        [f"class {n:03}" for n in range(150)],
        [str(n) for n in range(150)],
    ],
    ids=lambda names: f"{len(names)} from {names[0].encode('unicode_escape').decode()}",
)
def test_every_label_keeps_its_name(tmp_path: Path, names: list[str]) -> None:
    task = read(write(tmp_path / "d.csv", names[::-1], 12 * len(names)))
    wanted = sorted(names, key=float) if "0" in names else names

    assert list(task.label_names) == wanted
    for split in (task.train, task.validation, task.test):
        for text, label in zip(split.texts, split.labels, strict=True):
            assert text.endswith(f"is {task.label_names[label]}")


def test_blanks_around_a_label_make_no_class(tmp_path: Path) -> None:
    task = read(write(tmp_path / "d.csv", ["pos", " neg", "pos ", "neg\t", "neg\xa0"], 100))

    assert task.label_names == ("neg", "pos")


def test_an_export_names_classes_as_the_file_does(tmp_path: Path, bert_folder: Path) -> None:
    names = [str(n) for n in range(12)]
    path = write(tmp_path / "d.csv", names, 240)
    context = load_context(
        str(bert_folder), "custom", RECIPE, path, {"text": "text", "label": "label"}
    )
    texts = read(path).test.texts
    allocation = make_space("B-Q4", context.inventory).largest()
    loaded = load(save(TrialRun(context, allocation, seed=0), tmp_path / "export"))

    config = AutoConfig.from_pretrained(tmp_path / "export")
    assert list(loaded.label_names) == names == [config.id2label[n] for n in range(12)]
    for text, label in zip(texts, context.task.test.labels, strict=True):
        assert text.endswith(f"is {loaded.label_names[label]}")


def test_numbers_that_are_no_classes_are_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must name classes, got 40 different numbers, such as 0\."
    ):
        read(write(tmp_path / "d.csv", [f"{n}.5" for n in range(40)], 80))
