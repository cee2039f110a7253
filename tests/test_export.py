"""A saved allocation loads as what it was, and a damaged one not at all."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig

import alrq_core
from alrq_core.build import build_model
from alrq_core.data.encode import Tokens
from alrq_core.export.engines import write_for_transformers
from alrq_core.export.exact import MANIFEST, WEIGHTS, save, write_exactly
from alrq_core.export.parts import PEFT_FOLDER
from alrq_core.memory.machine import pick_device
from alrq_core.receipt import take_receipt
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation
from search_spaces.fixed import fixed_allocation
from tests.tiny import make_context, mixed, uniform

IDS = torch.tensor([[2, 5, 7, 9, 4, 3], [2, 8, 8, 6, 10, 3]])
BITS = (16, 8, 4, 3, 2)


def trained(folder: Path, kind: TaskKind, allocation: Allocation | None = None) -> TrialRun:
    context = make_context(folder, kind)
    run = TrialRun(context, allocation or mixed(context.inventory), seed=0)
    run.advance(4)
    return run


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        ids = IDS.to(next(model.parameters()).device)
        result: Tensor = model.eval()(input_ids=ids).logits
    return result.cpu()


@pytest.fixture(params=["classification", "language-modelling"])
def run(request: pytest.FixtureRequest, bert_folder: Path, llama_folder: Path) -> TrialRun:
    folder = bert_folder if request.param == "classification" else llama_folder
    return trained(folder, request.param)


@pytest.fixture
def saved(bert_folder: Path, tmp_path: Path) -> Path:
    return save(trained(bert_folder, "classification"), tmp_path / "saved")


def test_a_loaded_model_gives_the_same_logits(run: TrialRun, tmp_path: Path) -> None:
    loaded = alrq_core.load(save(run, tmp_path / "saved"))

    assert torch.equal(logits(loaded.model), logits(run.model))
    assert loaded.allocation == run.allocation
    assert loaded.label_names == run.context.task.label_names
    assert loaded.receipt == run.receipt


@pytest.mark.parametrize("write", [write_exactly, write_for_transformers])
def test_a_decoder_ends_as_its_answers_were_learnt_to(
    llama_folder: Path, tmp_path: Path, write: Callable[[TrialRun, Path, str], None]
) -> None:
    """Beside the base's own end: a turn of a chat ends with another token than a text."""
    context = make_context(llama_folder, "language-modelling")
    pad, end, count = 0, 2, 200
    # Some answers end, one is cut where it is longest.
    ids = [*[5, 6, end, 5, 7, end] * count, 5, 6, 7, 8]
    offsets = [*range(0, 6 * count + 1, 3), len(ids)]
    short = Tokens(
        np.asarray(ids, dtype=np.int32), np.asarray(offsets), np.empty(0, dtype=np.int64)
    )
    task = replace(context.task, train=short, conversations=True)
    run = TrialRun(replace(context, task=task), uniform(context.inventory, 4, 2), seed=0)
    folder = save(run, tmp_path / "saved", write)
    known = GenerationConfig.from_pretrained(folder)

    assert (known.eos_token_id, known.pad_token_id) == ([3, end], pad)
    if write is write_exactly:
        assert alrq_core.load(folder).model.generation_config.eos_token_id == [3, end]


@pytest.mark.parametrize("bits", BITS)
def test_every_format_comes_back(bert_folder: Path, tmp_path: Path, bits: int) -> None:
    inventory = make_context(bert_folder, "classification").inventory
    run = trained(bert_folder, "classification", uniform(inventory, bits, 4))
    loaded = alrq_core.load(save(run, tmp_path / "saved"))

    assert torch.equal(logits(loaded.model), logits(run.model))
    again = take_receipt(loaded.model, run.context.inventory, torch.float32)
    assert again.modules == run.receipt.modules
    assert again.memory_bytes == run.receipt.memory_bytes


@pytest.mark.parametrize("name", ["B-Ada", "Joint-2"])
def test_adalora_is_saved_at_its_final_ranks(bert_folder: Path, tmp_path: Path, name: str) -> None:
    context = make_context(bert_folder, "classification")
    run = TrialRun(context, fixed_allocation(name, context.inventory), seed=0)
    run.advance(4)
    with pytest.raises(ValueError, match="ranks are final only then, got step 4 of 8"):
        save(run, tmp_path / "early")
    run.advance(8)
    loaded = alrq_core.load(save(run, tmp_path / "saved"))

    assert torch.equal(logits(loaded.model), logits(run.model))
    assert loaded.allocation == run.final_allocation
    assert loaded.allocation.final_rank is None
    assert not (tmp_path / "early").exists()


def test_a_fresh_process_gives_the_same_logits(run: TrialRun, tmp_path: Path) -> None:
    folder = save(run, tmp_path / "saved")
    torch.save(logits(run.model), tmp_path / "logits.pt")
    code = (
        "import torch, alrq_core\n"
        f"model = alrq_core.load({str(folder)!r}).model\n"
        f"ids = torch.tensor({IDS.tolist()}, device=next(model.parameters()).device)\n"
        "with torch.inference_mode(): got = model(input_ids=ids).logits\n"
        f"assert torch.equal(got.cpu(), torch.load({str(tmp_path / 'logits.pt')!r}))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert process.returncode == 0, process.stderr


def test_the_stored_tensors_are_as_large_as_the_receipt_says(run: TrialRun, tmp_path: Path) -> None:
    tensors = load_file(save(run, tmp_path / "saved") / WEIGHTS)

    assert sum(tensor.nbytes for tensor in tensors.values()) == run.receipt.memory_bytes


def test_peft_reads_the_adapter_on_the_quantised_base(run: TrialRun, tmp_path: Path) -> None:
    folder = save(run, tmp_path / "saved")
    context = run.context
    bare = run.allocation.with_ranks({})
    device, codes = pick_device(), context.packed.of
    base = build_model(context.base, bare, (), 2.0, run.compute_dtype, device, codes)
    base.is_loaded_in_4bit = base.is_loaded_in_8bit = True  # type: ignore[assignment]
    model = PeftModel.from_pretrained(base, folder / PEFT_FOLDER)

    # PEFT adds the adapter's product rounded by itself.
    close = 1e-3 if run.compute_dtype == torch.float32 else 1e-2
    found, wanted = logits(model).float(), logits(run.model).float()
    torch.testing.assert_close(found, wanted, rtol=close, atol=close)


def test_an_existing_folder_is_left_alone(saved: Path, bert_folder: Path) -> None:
    before = (saved / MANIFEST).read_bytes()
    with pytest.raises(ValueError, match="`folder` must not exist yet"):
        save(trained(bert_folder, "classification"), saved)

    assert (saved / MANIFEST).read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def edit_manifest(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def test_another_version_is_refused(saved: Path) -> None:
    edit_manifest(saved, version=9)
    with pytest.raises(ValueError, match=r"`version` of alrq\.json must be 2, got 9"):
        alrq_core.load(saved)


@pytest.mark.parametrize("damage", ["cut", "edited", "missing"])
def test_damaged_weights_are_refused(saved: Path, damage: str) -> None:
    path = saved / WEIGHTS
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "edited":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=rf"got weights\.safetensors .*{damage}"):
        alrq_core.load(saved)


@pytest.mark.parametrize("part", [".packed.0", ".lora_A.", "word_embeddings", "classifier.weight"])
def test_a_missing_tensor_is_named(saved: Path, part: str) -> None:
    tensors = load_file(saved / WEIGHTS)
    gone = next(name for name in tensors if part in name)
    del tensors[gone]
    save_file(tensors, saved / WEIGHTS)
    edit_manifest(saved, files={})
    with pytest.raises(ValueError, match=f"got none for {gone}"):
        alrq_core.load(saved)


def test_a_tensor_of_another_shape_is_named(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    name = next(name for name in tensors if name.endswith(".packed.0"))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, saved / WEIGHTS)
    edit_manifest(saved, files={})
    with pytest.raises(ValueError, match=f"for {name} instead of"):
        alrq_core.load(saved)


def test_a_tokenizer_that_does_not_fit_is_refused(saved: Path) -> None:
    content = json.loads((saved / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word{number}": 100 + number for number in range(50)}
    (saved / "tokenizer.json").write_text(json.dumps(content))
    edit_manifest(saved, files={})
    with pytest.raises(
        ValueError, match=r"the tokenizer of its model, got one that needs 150 embeddings for 32"
    ):
        alrq_core.load(saved)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match="`folder` must be one that `save` wrote"):
        alrq_core.load(tmp_path)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, alrq_core, search_spaces; assert 'torch' not in sys.modules"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
