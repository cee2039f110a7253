"""What TensorBoard and W&B show of trials: parameters, curves, ends; and TensorBoard's columns.

TensorBoard takes the columns of all runs from the description in whichever run it reads first, so
each run has the same one, whatever is known of its own trial. Until asked for more it shows the
first five parameters by their names, and the first five metrics; and it draws only runs that have
all metrics that it shows. So five that the search's trials have come before the test metric.
"""

from collections.abc import Mapping
from statistics import fmean

from tensorboardX import summary
from tensorboardX.proto.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from alrq_core.records import TrialReport
from search_spaces.costs import average_bits, average_rank
from search_spaces.inventory import Inventory, kinds
from tune.report.metrics import METRICS, metric_of
from tune.study.state import ROLES, STATUSES, UNENDED, TrialState

DEPTHS = ("early", "middle", "late")
# Means over parts of a model, which come last.
PART = "weight_bits_"
NAMES: Mapping[str, str] = {
    "average_bits": "average bits",
    "average_rank": "average rank",
    "memory_megabytes": "memory (MB)",
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "role": ROLES,
    "status": tuple(status for status in STATUSES if status not in UNENDED),
}
# Fields of a report to what they are called there, by the section that they stand in.
TAGS = {
    "divergence": "quality/divergence",
    "loss": "quality/validation_loss",
    "accuracy": "quality/accuracy",
    "f1": "quality/f1",
    "perplexity": "quality/perplexity",
    "exact_match": "quality/exact_match",
    "train_loss": "training/loss",
    "peak_memory_bytes": "training/peak_memory_gigabytes",
}
DIVERGENCE, LOSS = "final/divergence", "final/validation_loss"
SECONDS = "final/training_seconds"
EXPERIMENT, PLUGIN, VERSION = "_hparams_/experiment", "hparams", 0


def readable_parameters(trial: TrialState, inventory: Inventory) -> dict[str, str | float]:
    """Return the few numbers by which people tell trials apart.

    Bits are means over modules: of all, of each kind, and of each third of the blocks.
    """
    found: dict[str, str | float] = {
        "role": trial.role,
        "average_bits": round(average_bits(trial.allocation, inventory), 3),
        "average_rank": round(average_rank(trial.allocation, inventory), 2),
        "memory_megabytes": round(trial.memory_bytes / 1e6, 3),
        "seed": trial.seed,
    }
    named, last = kinds(inventory), max((t.block for t in inventory.targets), default=0)
    parts: dict[str, list[int]] = {f"{PART}{depth}_blocks": [] for depth in DEPTHS}
    for target in inventory.targets:
        if target.name in named:
            bits = trial.allocation.choices[target.name].bits
            depth = DEPTHS[target.block * len(DEPTHS) // (last + 1)]
            parts[f"{PART}{depth}_blocks"].append(bits)
            parts.setdefault(f"{PART}{named[target.name].replace(' ', '_')}", []).append(bits)
    return found | {name: round(fmean(bits), 2) for name, bits in parts.items() if bits}


def rung_values(report: TrialReport) -> dict[str, float]:
    """Return what was measured at a rung."""
    found = {tag: getattr(report, name) for name, tag in TAGS.items()}
    found[TAGS["peak_memory_bytes"]] = report.peak_memory_bytes / 1e9
    if report.step == 0:
        # Nothing was trained yet.
        found[TAGS["train_loss"]] = None
    return {tag: value for tag, value in found.items() if value is not None}


def final_values(trial: TrialState) -> dict[str, float]:
    """Return the few numbers by which trials are sorted."""
    found: dict[str, float] = {}
    if trial.judged is not None and trial.judged.divergence is not None:
        found[DIVERGENCE] = trial.judged.divergence
    if trial.last is not None:
        found[LOSS] = trial.last.loss
        found[SECONDS] = trial.train_seconds
    if trial.test is not None:
        found[f"final/test_{trial.test.metric}"] = trial.test.value
    return found


def hparams(trial: TrialState, inventory: Inventory, diverge: bool) -> list[Summary]:
    """Return what the run of a trial says of it, once it has ended.

    Args:
        trial: The trial.
        inventory: Of the model.
        diverge: Whether the study's trials have a divergence from a reference.
    """
    parameters = readable_parameters(trial, inventory) | {"status": trial.status}
    _, begun, ended = summary.hparams(parameters, {})
    if trial.last is None:
        # The metric of its task is not known by it.
        return [begun, ended]
    metric = metric_of(trial.last)
    name = METRICS[metric].name
    # Starts, at which most trials end, have no training loss.
    first = {DIVERGENCE: "divergence"} if diverge else {TAGS["train_loss"]: "training loss"}
    metrics = first | {
        LOSS: "validation loss",
        TAGS[metric]: f"validation {name}",
        TAGS["peak_memory_bytes"]: "peak memory (GB)",
        SECONDS: "training (s)",
        f"final/test_{metric}": f"test {name}",
    }
    infos = [MetricInfo(name=MetricName(tag=tag), display_name=metrics[tag]) for tag in metrics]
    columns = [_column(name, value) for name, value in parameters.items()]
    data = HParamsPluginData(
        experiment=Experiment(hparam_infos=columns, metric_infos=infos), version=VERSION
    )
    about = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=data.SerializeToString())
    metadata = SummaryMetadata(plugin_data=about)
    return [Summary(value=[Summary.Value(tag=EXPERIMENT, metadata=metadata)]), begun, ended]


def _column(name: str, value: str | float) -> HParamInfo:
    shown = NAMES.get(name, name)
    if name.startswith(PART):
        shown = f"bits: {name.removeprefix(PART).replace('_', ' ')}"
    kind = "DATA_TYPE_STRING" if isinstance(value, str) else "DATA_TYPE_FLOAT64"
    info = HParamInfo(name=name, display_name=shown, type=DataType.Value(kind))
    info.domain_discrete.extend(CHOICES.get(name, ()))
    return info
