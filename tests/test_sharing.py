"""How many trials share a GPU."""

import pytest

from alrq_core.memory.batch_plan import BatchPlan
from alrq_core.memory.cores import MOST_TRIALS
from alrq_core.memory.host import Host
from alrq_core.memory.prediction import StepMemory
from alrq_core.memory.sharing import trials_per_gpu
from search_spaces.inventory import Inventory, TargetModule

H100 = (85 * 10**9, 132)
LAPTOP = (4 * 10**9, 16)


def inventory(modules: int, width: int) -> Inventory:
    targets = tuple(
        TargetModule(
            name=f"m{number}", out_features=width, in_features=width, part="attention", block=0
        )
        for number in range(modules)
    )
    return Inventory(model="made up", targets=targets, other_parameters=0)


def plan(peak: int) -> BatchPlan:
    memory = StepMemory(
        static_bytes=peak,
        activation_bytes=0,
        build_bytes=0,
        largest_tensor_bytes=0,
        largest_tensor="",
    )
    return BatchPlan(micro_batch=1, accumulation_steps=1, memory=memory, reason="")


@pytest.mark.parametrize(
    ("card", "model", "peak", "tokens", "cores", "expected"),
    [
        pytest.param(H100, (36, 512), 3 * 10**8, 900, 16, MOST_TRIALS, id="most"),
        pytest.param(H100, (36, 512), 3 * 10**8, 900, 2, 2, id="cores"),
        # 4 x 10^9 x 4096 / 1.32e14 = 0.13 s of work, 0.24 s to start it.
        pytest.param(H100, (239, 2048), 10**10, 4096, 16, 1, id="busy"),
        # 3.6 GB over 0.6 + 0.7 GB.
        pytest.param(LAPTOP, (36, 512), 7 * 10**8, 64, 16, 2, id="memory"),
        pytest.param(LAPTOP, (36, 512), 10**10, 64, 16, 1, id="one in any case"),
    ],
)
def test_as_many_as_fit_and_find_time(
    card: tuple[int, int],
    model: tuple[int, int],
    peak: int,
    tokens: int,
    cores: int,
    expected: int,
) -> None:
    memory, processors = card
    host = Host(
        device="cuda",
        name="a card",
        memory_bytes=memory,
        cores=cores,
        compute_dtype="bfloat16",
        multiprocessors=processors,
    )

    assert trials_per_gpu(inventory(*model), plan(peak), tokens, host) == expected
