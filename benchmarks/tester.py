"""Scores allocations on the test split, each once."""

import json
from pathlib import Path

from alrq_core.adapters.reference import Reference
from alrq_core.context import TrialContext
from alrq_core.scoring import Scorer
from alrq_core.trial import TrialRun
from benchmarks.search_tables import Row
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes


class Log:
    """Scores by allocation, each kept once it is known."""

    def __init__(self, path: Path) -> None:
        """Begin with what the file holds."""
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._path = path
        self.known: dict[str, Row] = {row["allocation"]: row for row in map(json.loads, lines)}

    def keep(self, row: Row) -> Row:
        """Keep a score."""
        self.known[row["allocation"]] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


class Tester:
    """Scores allocations on the test split, as they start from a reference and after training."""

    def __init__(self, context: TrialContext, reference: Reference, log: Log) -> None:
        """Ask the reference for its answers."""
        self._context, self._reference, self._log = context, reference, log
        self.name = f"itself {reference.allocation.encode()}"
        run = self._start(reference.allocation)
        self._answers = self._scorer(run).answers_to(context.task.test)
        if self.name not in log.known:
            log.keep({"allocation": self.name, **self._sized(run), "start": self._score(run)})

    def reference_score(self) -> Row:
        """Return that of the reference."""
        return self._log.known[self.name]

    def score(self, allocation: Allocation) -> Row:
        """Return those of an allocation."""
        name = allocation.encode()
        if name not in self._log.known:
            run = self._start(allocation)
            trained = run.training.trained
            values = [parameter.detach().clone() for parameter in trained]
            start = self._score(run)
            # Scored in the 16 bits of deployment, and trained from what it was before.
            for parameter, value in zip(trained, values, strict=True):
                parameter.data.copy_(value)
            report = run.advance(run.recipe.max_steps)
            about = {"allocation": name, "kept": report.kept_step, **self._sized(run)}
            self._log.keep({**about, "start": start, "trained": self._score(run)})
        return self._log.known[name]

    def _start(self, allocation: Allocation) -> TrialRun:
        reference = self._reference
        run = TrialRun(
            self._context, allocation, reference.seed, confirming=True, reference=reference
        )
        run.advance(0)
        return run

    def _score(self, run: TrialRun) -> Row:
        """Return losses and divergences of the test sequences, and which classes are right."""
        run.round_to_storage()
        found = self._scorer(run).evaluate(self._context.task.test, self._answers)
        assert found.divergences is not None
        scores = {
            "losses": [round(float(loss), 5) for loss in found.losses],
            "divergences": [float(f"{value:.4g}") for value in found.divergences],
        }
        if len(found.labels):
            scores["right"] = (found.predictions == found.labels).astype(int).tolist()
        return scores

    def _scorer(self, run: TrialRun) -> Scorer:
        context = self._context
        return Scorer(run.model, context.task, run.recipe, run.compute_dtype, context.device)

    def _sized(self, run: TrialRun) -> Row:
        return {"mb": memory_bytes(run.allocation, self._context.inventory) / 1e6}
