"""Flags as typed values: their checks, their JSON form, and what a resumed study may change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alrq_core.recipe import Recipe
from tune.flags import build_parser
from tune.study.config import (
    CHANGEABLE,
    STUDY_VERSION,
    StudyConfig,
    load_study_file,
    resumed_config,
)
from tune.study.folders import check_writable, prepare_folder

FLAGS = {
    "--space",
    "--model",
    "--task",
    "--data",
    "--text-column",
    "--label-column",
    "--messages-column",
    "--prompt-column",
    "--completion-column",
    "--instruction-column",
    "--input-column",
    "--output-column",
    "--text-pair-column",
    "--max-memory",
    "--bits",
    "--ranks",
    "--device-memory",
    "--max-training-memory",
    "--budget",
    "--caches",
    "--compare",
    "--searcher",
    "--scheduler",
    "--tie",
    "--no-tie",
    "--metric",
    "--time-limit",
    "--margin",
    "--seed",
    "--learning-rate",
    "--max-steps",
    "--epochs",
    "--batch-size",
    "--accumulation-steps",
    "--gradient-checkpointing",
    "--anchors",
    "--max-length",
    "--dropout",
    "--eval-sequences",
    "--lora-init",
    "--execution",
    "--quant-backend",
    "--four-bit",
    "--group-size",
    "--device",
    "--mps-safe",
    "--name",
    "--output-dir",
    "--reference",
    "--screen",
    "--tune-steps",
    "--tune-learning-rate",
    "--report",
    "--watch",
    "--quiet",
    "--json",
    "--resume",
    "--export",
    "--trial",
    "--to",
    "--address",
    "--storage",
    "--wandb",
    "--trials-per-gpu",
    "--as",
    "--dry-run",
    "--debug",
}


def save(config: StudyConfig) -> Path:
    folder = prepare_folder(config)
    (folder / "study.json").write_text(
        json.dumps({"version": STUDY_VERSION, "config": config.to_json()})
    )
    return folder


def make_config(folder: Path, **changes: Any) -> StudyConfig:
    return StudyConfig(**{"output_dir": str(folder), "name": "s", **changes})


def test_the_command_line_has_these_flags() -> None:
    found = {option for action in build_parser()._actions for option in action.option_strings}

    assert found == FLAGS | {"-h", "--help"}


def test_json_round_trip() -> None:
    config = StudyConfig(
        budget=7,
        name="n",
        recipe=Recipe(max_steps=9, dropout=0.1, lora_init="eva"),
        max_memory_bytes=5,
        device_memory_bytes=7,
        max_training_memory_bytes=8,
        bits=(2, 3),
        ranks=(0, 8),
        group_sizes=(32, 128),
        four_bit="fp4",
    )

    assert StudyConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_field_is_refused() -> None:
    content = {**StudyConfig(name="n").to_json(), "elastic": True}
    with pytest.raises(ValueError, match=r"`study\.json` must hold known flags only, got elastic"):
        StudyConfig.from_json(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "x"}, "`--space` must be one of"),
        ({"searcher": "x"}, "`--searcher` must be one of alrq, tpe, nsga2, gp, random, got 'x'"),
        (
            {"scheduler": "x"},
            "`--scheduler` must be one of front-asha, asha, median, none, got 'x'",
        ),
        ({"anchors": -1}, "`--anchors` must be a whole number of at least 0, got -1"),
        ({"budget": 0}, "`--budget` must be a whole number of at least 1, got 0"),
        ({"trials_per_gpu": 0}, "`--trials-per-gpu` must be a whole number of at least 1, got 0"),
        ({"eval_sequences": 7}, "`--eval-sequences` must be at least 8, got 7"),
        ({"metric": "bleu", "task": "sft"}, "`--metric` must be exact-match, .*got 'bleu'"),
        ({"metric": "exact-match"}, "exact-match, and goes with --task sft, got .*rotten_tomatoes"),
        ({"epochs": 0.0}, "`--epochs` must be a positive number"),
        ({"time_limit_seconds": float("inf")}, "`--time-limit` must be a positive number"),
        ({"margin": float("nan")}, "`--margin` must be a positive number"),
        ({"name": ".."}, "`--name` must be the name of a folder"),
        ({"name": "n" * 300}, "`--name` must have at most 150 bytes, got 300 characters"),
        ({"name": "ü" * 76}, "`--name` must have at most 150 bytes, got 76 characters"),
    ],
)
def test_values_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudyConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "`--learning-rate` must lie between 0 and 1"),
        ({"learning_rate": float("nan")}, "`--learning-rate` must lie between 0 and 1"),
        ({"max_steps": 0}, "`--max-steps` must be at least 1, got 0"),
        ({"batch_size": 0}, "`--batch-size` must be at least 1, got 0"),
        ({"max_length": 4}, "`--max-length` must be at least 8"),
        ({"accumulation_steps": 5}, "`--accumulation-steps` must divide the batch size 32, got 5"),
        ({"dropout": 1.0}, r"`--dropout` must lie in \[0, 1\)"),
    ],
)
def test_recipes_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("given", "ties"),
    [
        ({"task": "sft"}, True),
        ({"task": "text", "quant_backend": "gptq", "space": "bits"}, True),
        ({"task": "text", "quant_backend": "gguf"}, False),
        ({"task": "sft", "space": "B-FP"}, False),
        ({"task": "sft", "tie": False}, False),
        ({}, False),
        ({"tie": True}, True),
    ],
)
def test_what_engines_fuse_is_tied_where_they_can_read_it(
    given: dict[str, Any], ties: bool
) -> None:
    assert StudyConfig(**given).ties == ties


def test_a_study_gets_a_name_of_its_own() -> None:
    assert StudyConfig(space="B-Q4", task="imdb").name.startswith("B-Q4-imdb-2")


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    save(config)
    for check in (prepare_folder, check_writable):
        with pytest.raises(ValueError, match=r"`--name` must be new, got 's'.*--resume"):
            check(config)


@pytest.mark.parametrize("content", [[], "joint", {}, {"recipe": []}, {"recipe": {"rank": 8}}])
def test_a_study_file_of_another_form_is_named(tmp_path: Path, content: object) -> None:
    folder = save(make_config(tmp_path))
    kept = {"version": STUDY_VERSION, "config": content}
    (folder / "study.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError) as caught:
        resumed_config(folder, {})

    assert str(caught.value).startswith("`") and "study.json` must" in str(caught.value)


def test_a_resumed_study_keeps_its_flags_and_may_grow(tmp_path: Path) -> None:
    config = make_config(tmp_path, budget=5, recipe=Recipe(max_steps=9))
    folder = save(config)
    resumed = resumed_config(folder, {"budget": 8, "wandb": "p"})

    assert resumed == replace(config, budget=8, wandb="p")
    assert resumed_config(folder, {}) == config
    assert resumed_config(folder, {"space": "joint"}) == config


def test_a_moved_study_resumes_in_its_new_place(tmp_path: Path) -> None:
    folder = save(make_config(tmp_path / "old"))
    moved = tmp_path / "new/studies/other"
    moved.parent.mkdir(parents=True)
    folder.rename(moved)

    assert resumed_config(moved, {}).folder == moved


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"space": "bits"}, "--space"),
        ({"task": "imdb"}, "--task"),
        ({"seed": 3}, "--seed"),
        ({"max_memory_bytes": 10}, "--max-memory"),
        ({"device_memory_bytes": 10}, "--device-memory"),
        ({"max_training_memory_bytes": 10}, "--max-training-memory"),
        ({"bits": (2, 3)}, "--bits"),
        ({"searcher": "random"}, "--searcher"),
    ],
)
def test_a_contradicting_flag_is_refused(tmp_path: Path, given: dict[str, Any], flag: str) -> None:
    folder = save(make_config(tmp_path))
    with pytest.raises(ValueError, match=rf"`{flag}` must stay .* in a resumed study"):
        resumed_config(folder, given)


def test_a_contradicting_recipe_is_refused_by_its_flag(tmp_path: Path) -> None:
    folder = save(make_config(tmp_path, recipe=Recipe(max_steps=9)))
    resumed_config(folder, {}, {"max_steps": 9})
    with pytest.raises(ValueError, match="`--max-steps` must stay 9 in a resumed study, got 8"):
        resumed_config(folder, {}, {"max_steps": 8})


def test_a_smaller_budget_is_refused(tmp_path: Path) -> None:
    folder = save(make_config(tmp_path, budget=9))
    with pytest.raises(ValueError, match="`--budget` must not shrink in a resumed study, got 4"):
        resumed_config(folder, {"budget": 4})


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_folder_that_is_no_study_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match="`--resume` must be the folder of a study"):
        load_study_file(tmp_path)


def test_a_study_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"version": 1, "config": {}}))
    with pytest.raises(
        ValueError, match=r"study of version 8, got .* of version 1, whose trials .*\. Go on with"
    ):
        load_study_file(tmp_path)


def test_what_may_change_are_fields_of_a_study() -> None:
    assert set(StudyConfig(name="n").to_json()) >= CHANGEABLE
