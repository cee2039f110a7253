"""What a study measured of a trial, for the model card of its export."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from tune.report.answer import answer, quality
from tune.report.conditions import one_line
from tune.report.facts import Facts
from tune.report.figures.fronts import differences
from tune.report.metrics import METRICS
from tune.report.page.page import figure_png

CARD, PICTURE = "README.md", "front.png"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the card of an export says of the study that it comes from.

    Attributes:
        name: Of the model, with the trial.
        result: Its test metric, in the hub's form.
        lines: Sentences.
        conditions: Of the numbers.
        picture: What each allocation of the study loses, as PNG; None where there is no comparison.
    """

    name: str
    result: EvalResult
    lines: tuple[str, ...]
    conditions: str
    picture: bytes | None

    def add_to(self, folder: Path) -> None:
        """Add it to the card that a folder has."""
        card = ModelCard.load(folder / CARD)
        card.data.model_name = self.name
        card.data.pipeline_tag = self.result.task_type
        card.data.eval_results = [self.result]
        lines = "\n".join(f"- {line}" for line in self.lines)
        section = f"## What was measured\n\n{lines}\n\n{self.conditions}.\n"
        if self.picture is not None:
            (folder / PICTURE).write_bytes(self.picture)
            section += f"\n![What each allocation of the study loses]({PICTURE})\n"
        card.text = f"{card.text.rstrip()}\n\n{section}"
        card.save(folder / CARD)


def evidence(facts: Facts, trial: str) -> Evidence | None:
    """Return what a study has measured of a confirmed trial; None where that is nothing."""
    row, reference = facts.row(trial), facts.reference
    if row is None:
        return None
    lines = quality(facts, row, reference) if reference is not None else []
    if trial == facts.recommended:
        lines = [*lines, answer(facts).headline]
    figure = differences(facts)
    metric = METRICS[row.metric]
    return Evidence(
        name=f"{facts.config.model}-{facts.config.task}-{trial}",
        result=EvalResult(
            task_type=metric.task,
            dataset_type=facts.config.task,
            dataset_name=facts.config.task,
            dataset_split="test",
            metric_type=row.metric,
            metric_name=f"test {metric.name}, mean of {len(row.seeds)} seeds",
            metric_value=round(row.value, 4 if metric.share else 3),
        ),
        lines=tuple(lines),
        conditions=one_line(facts),
        picture=None if figure is None else figure_png(figure, one_line(facts)),
    )
