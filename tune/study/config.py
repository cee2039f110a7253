"""What a study is: its flags as typed values, checked before anything starts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from alrq_core.recipe import Recipe
from search_spaces.formats import GROUP_SIZE, check_backend_name, check_storage
from search_spaces.spaces import SEARCHED, check_space_name
from tune.flags import LM_TASKS
from tune.search.searchers import OWN, SEARCHERS
from tune.study.schedulers import SCHEDULERS

STUDY_FILE, STUDY_VERSION = "study.json", 8
STUDIES_FOLDER = "studies"
# What may differ when a study is resumed; everything else would make its trials incomparable.
# Model and data may lie elsewhere: what they hold is compared by digest.
PLACES = frozenset({"model", "data"})
CHANGEABLE = PLACES | {
    "budget",
    "time_limit_seconds",
    "trials_per_gpu",
    "address",
    "storage",
    "wandb",
    "output_dir",
}
# Fewer say nothing, and below full fidelity half of them are scored.
MIN_EVAL_SEQUENCES = 8
# Of a file's name, which most systems limit to 255 bytes: results have the study's in theirs.
MAX_NAME_BYTES = 150
ANCHOR_SHARE = 6
NO_REFERENCE = "none"
EXACT_MATCH = "exact-match"
# Whose codes vLLM reads.
TIED_BACKENDS = ("auto", "gptq")
REFERENCES = ("B-FP", "B-Q4", NO_REFERENCE)
# Flags that are not spelled like their field.
FLAGS = {
    "max_memory_bytes": "--max-memory",
    "max_training_memory_bytes": "--max-training-memory",
    "device_memory_bytes": "--device-memory",
    "group_sizes": "--group-size",
}
# They are tuples here and lists in JSON.
LISTS = ("bits", "ranks", "group_sizes")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """All flags of one study.

    Attributes:
        space, model, task, searcher, scheduler: Names, as on the command line.
        data: Where a task's texts are, if not in a package.
        text_column, label_column, messages_column, prompt_column, completion_column,
            instruction_column, input_column, output_column: Names of the columns of one's own
            files.
        budget: Trials of the search, baselines and confirmation not counted.
        anchors: Uniform allocations that the search tries first; None for 0 with the searcher alrq,
            and a sixth of the budget with others.
        screen: Allocations that are scored beside the trials, before any step.
        reference: What trials start from: `B-FP`, `B-Q4`, or `none` to learn the task from nothing;
            None for B-FP, or in a fixed space for none.
        comparator: The fixed configuration that all is compared to, settled when a study begins:
            B-FP, or B-Q4 where that doesn't fit; None before.
        tie: Whether modules that engines fuse take the same choice; None for `ties`.
        metric: `exact-match` for the share of conversations that are answered word by word, instead
            of perplexity; None for the task's own.
        epochs: Passes over the train split; None to use the recipe's steps.
        recipe: How every trial is trained.
        seed: Of the proposals and of every trial's training.
        quant_backend: Which library stores the weights: see `search_spaces.formats`.
        four_bit: Method of 4 bits in searched spaces; None for the backend's own.
        group_sizes: Group sizes that a searched module may take.
        mps_safe: Keep every tensor below MPS's limit of 2**32 bytes on other devices too.
        eval_sequences: Sequences of validation and of test split that are scored; None for all.
        bits, ranks: Those that a searched space is narrowed to; None for all that fit.
        max_memory_bytes: Limit on the deployed model of every proposed allocation.
        max_training_memory_bytes: Limit on the predicted peak of training a proposed allocation.
        device_memory_bytes: Plan for a device of no more memory than that; None for all of it.
        time_limit_seconds: After it nothing is proposed; what runs ends, confirmation follows.
        margin: Loss against B-FP that still counts as none: points of accuracy or exact match, or
            per cent of perplexity.
        name: The study's folder below `output_dir/studies`.
        output_dir: Where results go.
        trials_per_gpu: Trials that share a GPU; None for as many as it has room and time for.
        address: A Ray cluster to join; None starts one on this machine.
        storage: Where a copy of the study's folder is kept, as pyarrow names file systems; None for
            nowhere.
        wandb: Project on W&B; None for no logging there.
    """

    space: str = "joint"
    model: str = "minilm"
    task: str = "rotten_tomatoes"
    data: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    messages_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    instruction_column: str | None = None
    input_column: str | None = None
    output_column: str | None = None
    searcher: str = "alrq"
    scheduler: str = "front-asha"
    budget: int = 50
    anchors: int | None = None
    screen: int = 0
    reference: str | None = None
    comparator: str | None = None
    tie: bool | None = None
    metric: str | None = None
    epochs: float | None = None
    recipe: Recipe = Recipe()
    seed: int = 0
    quant_backend: str = "auto"
    four_bit: str | None = None
    group_sizes: tuple[int, ...] = (GROUP_SIZE,)
    mps_safe: bool = False
    eval_sequences: int | None = None
    bits: tuple[int, ...] | None = None
    ranks: tuple[int, ...] | None = None
    max_memory_bytes: int | None = None
    max_training_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    time_limit_seconds: float | None = None
    margin: float = 2.0
    name: str = ""
    output_dir: str = "results"
    trials_per_gpu: int | None = None
    address: str | None = None
    storage: str | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        check_space_name(self.space)
        check_backend_name(self.quant_backend)
        check_storage(self.four_bit, self.group_sizes)
        for flag, value, known in (
            ("--searcher", self.searcher, SEARCHERS),
            ("--scheduler", self.scheduler, SCHEDULERS),
            ("--reference", self.reference or NO_REFERENCE, REFERENCES),
        ):
            if value not in known:
                raise ValueError(
                    f"`{flag}` must be one of {', '.join(known)}, got {value!r}. Use one of those."
                )
        if self.budget < 1:
            raise ValueError(
                f"`--budget` must be a whole number of at least 1, got {self.budget}. "
                "Give the number of trials."
            )
        for flag, count in (("--anchors", self.anchors), ("--screen", self.screen)):
            if count is not None and count < 0:
                raise ValueError(
                    f"`{flag}` must be a whole number of at least 0, got {count}. Give 0 for none."
                )
        self._check_metric()
        if self.trials_per_gpu is not None and self.trials_per_gpu < 1:
            raise ValueError(
                f"`--trials-per-gpu` must be a whole number of at least 1, got "
                f"{self.trials_per_gpu}. Leave it out for as many as fit."
            )
        if self.eval_sequences is not None and self.eval_sequences < MIN_EVAL_SEQUENCES:
            raise ValueError(
                f"`--eval-sequences` must be at least {MIN_EVAL_SEQUENCES}, got "
                f"{self.eval_sequences}. Leave it out to score all."
            )
        for flag, number in (
            ("--epochs", self.epochs),
            ("--time-limit", self.time_limit_seconds),
            ("--margin", self.margin),
        ):
            if number is not None and not 0 < number < float("inf"):
                raise ValueError(
                    f"`{flag}` must be a positive number, got {number}. Give a larger one."
                )
        if not self.name:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            object.__setattr__(self, "name", f"{self.space}-{self.task}-{stamp}")
        if Path(self.name).name != self.name or self.name in {".", ".."}:
            raise ValueError(
                f"`--name` must be the name of a folder, got {self.name!r}. "
                "Leave out slashes; use --output-dir for the place."
            )

        if len(self.name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            raise ValueError(
                f"`--name` must have at most {MAX_NAME_BYTES} bytes, got "
                f"{len(self.name)} characters. Give a shorter one."
            )

    def _check_metric(self) -> None:
        if self.metric is not None and (self.metric, self.task) != (EXACT_MATCH, "sft"):
            raise ValueError(
                f"`--metric` must be {EXACT_MATCH}, and goes with --task sft, got {self.metric!r} "
                f"with --task {self.task}. Leave it out for accuracy or perplexity."
            )

    @property
    def ties(self) -> bool:
        """Whether fused modules take the same choice: unless told, where vLLM can read a decoder.

        It fuses query, key and value, and gate and up, and then reads one format for all.
        """
        if self.tie is not None:
            return self.tie
        decoder = self.task in LM_TASKS and self.space in SEARCHED
        return decoder and self.quant_backend in TIED_BACKENDS

    @property
    def anchor_count(self) -> int:
        """Uniform allocations that the search tries first, at most.

        They help searchers that know nothing of bits, and cost the one that does.
        """
        if self.anchors is not None:
            return self.anchors
        return 0 if self.searcher == OWN else max(1, self.budget // ANCHOR_SHARE)

    @property
    def columns(self) -> dict[str, str]:
        """What each column that was named holds, to its name."""
        end = "_column"
        named = {field.name for field in fields(self) if field.name.endswith(end)}
        given = {name.removesuffix(end): getattr(self, name) for name in sorted(named)}
        return {what: name for what, name in given.items() if name is not None}

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.output_dir) / STUDIES_FOLDER / self.name

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "StudyConfig":
        """Return the configuration that `to_json` wrote.

        Raises:
            ValueError: It has a field that this release doesn't know.
        """
        known = {field.name for field in fields(StudyConfig)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(
                f"`{STUDY_FILE}` must hold known flags only, got {', '.join(unknown)}. "
                "Resume with the release that began the study."
            )
        typed: dict[str, Any] = {"recipe": Recipe(**data["recipe"])}
        typed |= {name: tuple(data[name]) for name in LISTS if data.get(name) is not None}
        return StudyConfig(**{**data, **typed})


def load_study_file(
    folder: Path, flag: str = "--resume", any_version: bool = False
) -> dict[str, Any]:
    """Return the content of a study's `study.json`.

    Args:
        folder: The study.
        flag: That named it.
        any_version: Whether an earlier release may have begun it.

    Raises:
        ValueError: The folder is no study.
    """
    path = folder / STUDY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`{flag}` must be the folder of a study, got {str(folder)!r} without a readable "
            f"{STUDY_FILE}. Give a folder below results/{STUDIES_FOLDER}."
        ) from error
    if content.get("version") != STUDY_VERSION and not any_version:
        raise ValueError(
            f"`{flag}` must be a study of version {STUDY_VERSION}, got {str(folder)!r} of "
            f"version {content.get('version')}, whose trials were made in another way. Go on with "
            "the release that began it, or start a new one."
        )
    return dict(content)


def _recorded_config(folder: Path) -> StudyConfig:
    try:
        return StudyConfig.from_json(load_study_file(folder)["config"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`{folder / STUDY_FILE}` must be as it was written, got another form of its config "
            f"({type(error).__name__}: {error}). Restore the file, or start a new study."
        ) from error


def resumed_config(
    folder: Path, given: Mapping[str, Any], recipe_given: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Return the configuration of a study to go on with.

    Args:
        folder: The study.
        given: The fields of `StudyConfig` that the user gave this time.
        recipe_given: The fields of its `Recipe` that the user gave this time.

    Raises:
        ValueError: No study, or a flag that contradicts it.
    """
    config = _recorded_config(folder)
    config = replace(config, name=folder.resolve().name, output_dir=str(folder.parent.parent))
    fixed = {key: value for key, value in given.items() if key not in CHANGEABLE}
    for holder, values in ((config, fixed), (config.recipe, recipe_given or {})):
        for key, value in values.items():
            if getattr(holder, key) != value:
                raise ValueError(
                    f"`{FLAGS.get(key, '--' + key.replace('_', '-'))}` must stay "
                    f"{getattr(holder, key)!r} in a resumed study, got {value!r}. "
                    "Leave it out, or start a new study."
                )
    if "budget" in given and given["budget"] < config.budget:
        raise ValueError(
            f"`--budget` must not shrink in a resumed study, got {given['budget']} after "
            f"{config.budget}. Give at least {config.budget}."
        )
    return replace(config, **{k: v for k, v in given.items() if k in CHANGEABLE - {"output_dir"}})
