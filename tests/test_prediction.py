"""The predicted memory of trials, against torch's own record of allocations."""

import gc
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from alrq_core.memory.live_bytes import LiveBytes
from alrq_core.memory.prediction import StepMemory, base_bytes, packing_bytes, step_memory
from alrq_core.models.loading import inspect_model, load_model
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.weights.packing import layer_tensors, pack
from alrq_core.weights.quantise import quantise
from benchmarks.peak_memory import measure, peak_and_rest, recorded
from search_spaces.allocation import Allocation, Choice
from search_spaces.costs import stored_bytes
from search_spaces.formats import Format
from search_spaces.inventory import Inventory
from tests.tiny import mixed, uniform

TOLERANCE = 0.15
FORMATS = (
    Format(16, "plain", 0),
    Format(8, "int8", 0),
    Format(4, "nf4-double", 64),
    Format(4, "nf4", 128),
    Format(4, "fp4", 64),
    *(Format(bits, "hqq", 64) for bits in (8, 4, 3, 2)),
    *(Format(bits, "gptq", 64) for bits in (8, 4, 3, 2)),
)
RECIPE = Recipe(batch_size=8, max_length=16, cpu_dtype="float32", device="cpu")


# Calibrated codes take thousands of small steps, which a profiler makes slow.
QUICK = {16: "plain", 8: "int8", 4: "nf4-double", 3: "hqq", 2: "hqq"}


def quick(allocation: Allocation) -> Allocation:
    """Return the same bits and ranks in formats that are made fast."""
    choices = allocation.choices.items()
    return Allocation({name: Choice(c.bits, c.rank, QUICK[c.bits]) for name, c in choices})


def predict(
    inventory: Inventory,
    allocation: Allocation,
    batch: int = 8,
    length: int = 16,
    kind: TaskKind = "classification",
) -> StepMemory:
    labels = 2 if kind == "classification" else 0
    shape = (batch, length, torch.float32)
    return step_memory(inventory, kind, labels, allocation, *shape)


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> tuple[nn.Module, Inventory]:
    name = str(bert_folder)
    return load_model(name, "classification", 2), inspect_model(name, "classification", 2)


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> tuple[nn.Module, Inventory]:
    name = str(llama_folder)
    return load_model(name, "language-modelling", 0), inspect_model(name, "language-modelling", 0)


@pytest.fixture(scope="module")
def minilm() -> tuple[nn.Module, Inventory]:
    return load_model("minilm", "classification", 2), inspect_model("minilm", "classification", 2)


@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_hollow_layers_hold_the_bytes_of_their_format(stored: Format) -> None:
    with FakeTensorMode():
        tensors = layer_tensors(stored, 96, 128)
    assert sum(tensor.nbytes for tensor in tensors.values()) == stored_bytes(stored, 96, 128)


@pytest.mark.parametrize("stored", FORMATS, ids=str)
@pytest.mark.parametrize("rows", [512, 2048])
def test_packing_takes_the_bytes_it_is_said_to(stored: Format, rows: int) -> None:
    linear = nn.Linear(384, rows, bias=False)
    make = quantise if stored.method != "gptq" else partial(quantise, moment=torch.eye(384) + 0.1)
    with recorded() as sizes:
        packed = pack(linear, stored, torch.float32, make)
    del packed
    peak = peak_and_rest(sizes)[0]
    assert peak == pytest.approx(packing_bytes(stored, rows, 384), rel=0.05)


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_tiny_bert_takes_what_is_predicted(bert: tuple[nn.Module, Inventory], bits: int) -> None:
    base, inventory = bert
    allocation = quick(uniform(inventory, bits, 4))
    predicted = predict(inventory, allocation, 8, 16)
    measured = measure(base, inventory, "classification", allocation, 8, 16)
    assert predicted.step_bytes == pytest.approx(measured.step, rel=TOLERANCE)
    assert predicted.peak_bytes == pytest.approx(max(measured.step, measured.build), rel=TOLERANCE)


@pytest.mark.parametrize("bits", [16, 3])
def test_tiny_llama_takes_what_is_predicted(llama: tuple[nn.Module, Inventory], bits: int) -> None:
    base, inventory = llama
    allocation = uniform(inventory, bits, 8)
    predicted = predict(inventory, allocation, 4, 32, "language-modelling")
    measured = measure(base, inventory, "language-modelling", allocation, 4, 32)
    assert predicted.step_bytes == pytest.approx(measured.step, rel=TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_short_answers_take_what_is_predicted(
    llama: tuple[nn.Module, Inventory], checkpointing: bool
) -> None:
    base, inventory = llama
    allocation = quick(uniform(inventory, 4, 8))
    recipe = replace(RECIPE, batch_size=4, max_length=32, gradient_checkpointing=checkpointing)
    measured = measure(base, inventory, "language-modelling", allocation, 4, 32, recipe, 2)
    shape = (4, 32, torch.float32)
    predicted = [
        step_memory(
            inventory,
            "language-modelling",
            0,
            allocation,
            *shape,
            answers=answers,
            checkpointing=checkpointing,
        ).step_bytes
        for answers in (2, None)
    ]
    assert predicted[0] == pytest.approx(measured.step, rel=TOLERANCE)
    assert predicted[1] > predicted[0]


def test_a_decoder_that_classifies_takes_what_is_predicted(llama_folder: Path) -> None:
    name = str(llama_folder)
    base = load_model(name, "classification", 2)
    inventory = inspect_model(name, "classification", 2)
    allocation = quick(uniform(inventory, 4, 4))
    measured = measure(base, inventory, "classification", allocation, 8, 32)
    predicted = predict(inventory, allocation, 8, 32)
    assert predicted.step_bytes == pytest.approx(measured.step, rel=TOLERANCE)


@pytest.mark.parametrize(("bits", "batch", "length"), [(16, 8, 64), (4, 8, 32), (0, 16, 32)])
def test_minilm_takes_what_is_predicted(
    minilm: tuple[nn.Module, Inventory], bits: int, batch: int, length: int
) -> None:
    base, inventory = minilm
    allocation = quick(uniform(inventory, bits, 8) if bits else mixed(inventory))
    predicted = predict(inventory, allocation, batch, length)
    measured = measure(base, inventory, "classification", allocation, batch, length)
    assert predicted.step_bytes == pytest.approx(measured.step, rel=0.03)
    assert predicted.peak_bytes == pytest.approx(max(measured.step, measured.build), rel=0.03)


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu_dtype": "bfloat16"},
        {"dropout": 0.1},
        {"execution": "dequantized"},
        {"accumulation_steps": 2, "batch_size": 16},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_other_recipes_take_what_is_predicted(
    bert_folder: Path, changes: dict[str, object]
) -> None:
    name, recipe = str(bert_folder), replace(RECIPE, **changes)  # type: ignore[arg-type]
    base = load_model(name, "classification", 2, recipe.dropout)
    inventory = inspect_model(name, "classification", 2)
    allocation = quick(uniform(inventory, 4, 4))
    measured = measure(base, inventory, "classification", allocation, recipe.batch_size, 16, recipe)
    predicted = step_memory(
        inventory,
        "classification",
        2,
        allocation,
        recipe.batch_size // (recipe.accumulation_steps or 1),
        16,
        getattr(torch, recipe.cpu_dtype or "float32"),
        dropout=recipe.dropout,
        dequantised=recipe.execution == "dequantized",
        checkpointing=bool(recipe.gradient_checkpointing),
    )
    assert predicted.step_bytes == pytest.approx(measured.step, rel=TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_takes_what_is_predicted(
    minilm: tuple[nn.Module, Inventory], checkpointing: bool
) -> None:
    base, inventory = minilm
    allocation = quick(uniform(inventory, 4, 4))
    recipe = replace(RECIPE, gradient_checkpointing=checkpointing)
    measured = measure(base, inventory, "classification", allocation, 8, 128, recipe)
    shape = (8, 128, torch.float32)
    predicted = [
        step_memory(inventory, "classification", 2, allocation, *shape, checkpointing=how)
        for how in (False, True)
    ]
    assert predicted[checkpointing].step_bytes == pytest.approx(measured.step, rel=0.05)
    assert predicted[True].activation_bytes < 0.6 * predicted[False].activation_bytes


def test_adalora_takes_what_is_predicted(bert: tuple[nn.Module, Inventory]) -> None:
    base, inventory = bert
    allocation = replace(quick(uniform(inventory, 4, 12)), final_rank=4)
    recipe = replace(RECIPE, max_steps=10)
    measured = measure(base, inventory, "classification", allocation, 8, 16, recipe)
    assert predict(inventory, allocation).step_bytes == pytest.approx(measured.step, rel=TOLERANCE)


def test_mps_keeps_attention_scores(minilm: tuple[nn.Module, Inventory]) -> None:
    base, inventory = minilm
    allocation = quick(uniform(inventory, 16, 2))
    shape = (8, 64, torch.float32)
    predicted = step_memory(inventory, "classification", 2, allocation, *shape, device_type="mps")
    # The attention that MPS trains with is there on a CPU too.
    with sdpa_kernel(SDPBackend.MATH):
        measured = measure(base, inventory, "classification", allocation, 8, 64)
    assert predicted.step_bytes == pytest.approx(measured.step, rel=0.03)
    assert predicted.step_bytes > predict(inventory, allocation, 8, 64).step_bytes


def test_memory_grows_with_batch_and_length(bert: tuple[nn.Module, Inventory]) -> None:
    inventory = bert[1]
    allocation = quick(uniform(inventory, 4, 4))
    batches = [predict(inventory, allocation, size, 16).activation_bytes for size in (1, 2, 4, 8)]
    lengths = [predict(inventory, allocation, 4, length).activation_bytes for length in (8, 16, 32)]
    assert batches == sorted(set(batches))
    assert lengths == sorted(set(lengths))


def test_fewer_bits_and_smaller_ranks_take_less(minilm: tuple[nn.Module, Inventory]) -> None:
    inventory = minilm[1]
    sixteen, four, two = (
        predict(inventory, quick(uniform(inventory, bits, 8)), 8, 64) for bits in (16, 4, 2)
    )
    assert sixteen.static_bytes > four.static_bytes > two.static_bytes
    # HQQ needs more room than NF4 while it dequantises a matrix.
    assert sixteen.step_bytes > max(four.step_bytes, two.step_bytes)
    small = predict(inventory, quick(uniform(inventory, 4, 2)))
    assert four.static_bytes > small.static_bytes
    assert predict(inventory, quick(uniform(inventory, 4, 0))).static_bytes < small.static_bytes


def test_the_line_through_one_and_all_sequences_lies_little_above(
    minilm: tuple[nn.Module, Inventory],
) -> None:
    inventory = minilm[1]
    for bits in (16, 2):
        peaks = [
            predict(inventory, quick(uniform(inventory, bits, 8)), size, 64).step_bytes
            for size in (1, 4, 8, 32)
        ]
        for size, peak in zip((4, 8), peaks[1:3], strict=True):
            between = peaks[0] + (peaks[-1] - peaks[0]) * (size - 1) / 31
            assert peak <= between <= 1.1 * peak


def test_the_largest_tensor_is_named(llama_folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(llama_folder)
    config.vocab_size = 2**22
    inventory = with_config(llama_folder, tmp_path, config)
    memory = predict(inventory, quick(uniform(inventory, 16, 2)), 2, 128, "language-modelling")
    assert memory.largest_tensor == f"logits 2 x 127 x {2**22}, float32"
    assert memory.largest_tensor_bytes == 2 * 127 * 2**22 * 4
    short = predict(inventory, quick(uniform(inventory, 16, 2)), 1, 8, "language-modelling")
    assert short.largest_tensor == f"weights {2**22} x 64, float32"


def with_config(folder: Path, new: Path, config: PretrainedConfig) -> Inventory:
    """A model of another size, whose file holds a header and a hole: a prediction reads no more."""
    for file in folder.iterdir():
        if file.suffix == ".json":
            (new / file.name).write_bytes(file.read_bytes())
    config.save_pretrained(new)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, end = {}, 0
    for name, weight in model.state_dict().items():
        start, end = end, end + 4 * weight.numel()
        header[name] = {"dtype": "F32", "shape": weight.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (new / "model.safetensors").open("wb") as weights:
        weights.write(len(text).to_bytes(8, "little") + text)
        weights.truncate(8 + len(text) + end)
    return inspect_model(str(new), "language-modelling", 0)


def test_predictions_draw_nothing(bert: tuple[nn.Module, Inventory]) -> None:
    inventory = bert[1]
    before = torch.get_rng_state()
    predict(inventory, quick(uniform(inventory, 4, 4)), 3, 9)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_base_counts_in_the_type_of_its_files(
    bert: tuple[nn.Module, Inventory], tmp_path: Path
) -> None:
    base, inventory = bert
    count = sum(p.numel() for p in base.parameters())
    assert base_bytes(inventory) == 4 * count
    half = shutil.copytree(inventory.model, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    save_file({name: w.bfloat16() for name, w in weights.items()}, half / "model.safetensors")
    assert base_bytes(replace(inventory, model=str(half))) == 2 * count


def test_live_bytes_count_each_storage_once() -> None:
    with LiveBytes() as live:
        first = torch.empty(100, 10)
        views = [first.t(), first[1:], first.detach().add_(1)]
        assert live.live == live.peak == 4000
        second = first + 1
        assert live.live == 8000
        del first, views
        gc.collect()
        assert (live.live, live.peak) == (4000, 8000)
        assert live.largest == (4000, (100, 10), torch.float32)
    assert second.shape == (100, 10)


def test_live_bytes_count_the_copy_inside_of_softmax() -> None:
    with LiveBytes() as live:
        scores = torch.zeros(10, 20)
        torch.log_softmax(scores, 1)
        plain = live.peak
        torch.log_softmax(scores.t(), 1)
    assert (plain, live.peak) == (1600, 2400)
