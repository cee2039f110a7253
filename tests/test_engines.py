"""Exports that transformers and PEFT load without this project."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from alrq_core.export.engines import as_words, write_for_transformers
from alrq_core.export.exact import save
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from tests.tiny import RECIPE, make_context, mixed, save_tokenizer, uniform

IDS = [[2, 5, 7, 9, 4, 3], [2, 8, 8, 6, 10, 3]]
AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "language-modelling": "AutoModelForCausalLM",
}
# As model cards say it.
DECOMPRESS = "model.hf_quantizer.compressor.decompress_model(model)"
ADAPTER = 'model = PeftModel.from_pretrained(model, FOLDER + "/adapter").eval()'


def trained(folder: Path, kind: TaskKind, allocation: Allocation | None = None) -> TrialRun:
    context = make_context(folder, kind, replace(RECIPE, device="cpu", cpu_dtype="float32"))
    run = TrialRun(context, allocation or mixed(context.inventory), seed=0)
    run.advance(4)
    return run


def logits(run: TrialRun) -> Tensor:
    with torch.inference_mode():
        found: Tensor = run.model.eval()(input_ids=torch.tensor(IDS)).logits
    return found


@dataclass
class Export:
    """One that another process has loaded, and what that computed."""

    run: TrialRun
    folder: Path
    adapter: bool = True

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text()

    @property
    def load(self) -> str:
        auto = AUTO[self.run.context.task.kind]
        return f"""
FOLDER = {str(self.folder)!r}
AutoTokenizer.from_pretrained(FOLDER)
model = transformers.{auto}.from_pretrained(FOLDER, dtype="float32")
{f"{DECOMPRESS}; {ADAPTER}" if self.adapter else ""}
with torch.inference_mode():
    torch.save(model.eval()(input_ids=torch.tensor({IDS})).logits, FOLDER + "/logits.pt")
"""

    def check(self) -> None:
        wanted, found = logits(self.run), torch.load(self.folder / "logits.pt")
        assert (found - wanted).abs().max() < 1e-2 * wanted.abs().max()


@pytest.fixture(scope="module")
def exports(
    bert_folder: Path, llama_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Export]:
    """Three exports, which a process loads that knows nothing of this project."""
    inventory = make_context(llama_folder, "language-modelling").inventory
    runs = {
        "classification": trained(bert_folder, "classification"),
        "language-modelling": trained(llama_folder, "language-modelling"),
        "bare": trained(llama_folder, "language-modelling", uniform(inventory, 3, 0)),
    }
    place = tmp_path_factory.mktemp("exports")
    made = {
        name: Export(run, save(run, place / name, write_for_transformers), name != "bare")
        for name, run in runs.items()
    }
    code = [
        "import sys, torch, transformers",
        "from peft import PeftModel",
        "from transformers import AutoTokenizer",
        *(export.load for export in made.values()),
        "own = ('alrq_core', 'search_spaces')",
        "assert not [name for name in sys.modules if name.startswith(own)]",
    ]
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, cwd=place
    )
    assert process.returncode == 0, process.stderr
    return made


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
def test_transformers_and_peft_compute_the_same(exports: dict[str, Export], kind: str) -> None:
    export = exports[kind]
    export.check()

    choices = export.run.allocation.choices.values()
    assert {choice.bits for choice in choices} == {16, 8, 4, 3, 2}
    config = json.loads((export.folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(export.folder)
    assert f"\n{DECOMPRESS}\n{ADAPTER}\n" in export.card
    assert f"{AUTO[kind]}.from_pretrained(FOLDER" in export.card
    assert f'"memory_bytes": {export.run.receipt.memory_bytes}' in export.card
    assert ("vllm serve" in export.card) == (kind == "language-modelling")


def test_an_allocation_without_adapters_needs_no_peft(exports: dict[str, Export]) -> None:
    export = exports["bare"]
    export.check()

    assert not (export.folder / "adapter").exists()
    assert "Peft" not in export.card and "PEFT" not in export.card


def test_16_bits_need_no_library_for_codes(llama_folder: Path, tmp_path: Path) -> None:
    context = make_context(llama_folder, "language-modelling")
    run = trained(llama_folder, "language-modelling", uniform(context.inventory, 16, 4))
    folder = save(run, tmp_path / "tuned", write_for_transformers)

    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert "decompress" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_packed_as_compressed_tensors_packs_them(bits: int) -> None:
    least = -(2 ** (bits - 1))
    codes = torch.randint(least, -least, (5, 96), dtype=torch.int8)

    assert torch.equal(as_words(codes, bits), pack_to_int32(codes, bits))


@pytest.mark.parametrize("method", ["nf4-double", "hqq"])
def test_other_formats_are_refused_by_name(method: str, bert_folder: Path, tmp_path: Path) -> None:
    context = make_context(bert_folder, "classification")
    choices = dict(uniform(context.inventory, 4, 4).choices)
    name = context.inventory.targets[3].name
    choices[name] = Choice(4, 4, method)
    run = trained(bert_folder, "classification", Allocation(choices))
    with pytest.raises(ValueError, match="must have every module in gptq or plain") as caught:
        save(run, tmp_path / "tuned", write_for_transformers)

    assert f"got {method} for {name} and 1 of {len(choices)}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_layers_of_another_class_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=32, n_embd=64, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    context = make_context(folder, "language-modelling")
    run = trained(folder, "language-modelling", uniform(context.inventory, 4, 4))
    with pytest.raises(ValueError, match=r"must find nn\.Linear in the model, got Conv1D for"):
        save(run, tmp_path / "tuned", write_for_transformers)

    assert not (tmp_path / "tuned").exists()
