"""A training step of a decoder in each format, beside PEFT's: the part of `gpu` about speed."""

import copy
import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from alrq_core.adapters.lora import quiet_peft
from alrq_core.build import build_model
from alrq_core.context import TrialContext
from alrq_core.data.encode import EncodedTask, Tokens
from alrq_core.memory.machine import pick_compute_dtype
from alrq_core.models.structure import find_embeddings, find_targets
from alrq_core.recipe import Recipe
from alrq_core.training import Training
from alrq_core.weights.quantise import quantise
from search_spaces.allocation import Allocation, Choice
from search_spaces.formats import Format
from search_spaces.inventory import Inventory

GROUP, RANK = 64, 8
FORMATS = (
    Format(16, "plain", 0),
    *(Format(bits, "gptq", GROUP) for bits in (8, 4, 3, 2)),
    Format(8, "int8", 0),
    Format(4, "nf4-double", GROUP),
    *(Format(bits, "hqq", GROUP) for bits in (4, 3, 2)),
)
# Sequences and tokens of each.
BATCHES = ((8, 2048), (8, 512), (1, 512))
SMALL_BATCHES = ((2, 64),)
SEQUENCES = 64
Rows = list[dict[str, Any]]


class Bench:
    """The machine, its ceilings, and the sizes that suit it."""

    def __init__(self, device: torch.device) -> None:
        """Measure the ceilings of a device."""
        self.device, self.dtype = device, pick_compute_dtype(device)
        self.small = device.type == "cpu"
        self.product_size = 256 if self.small else 8192
        square = torch.randn(self.product_size, self.product_size, device=device, dtype=self.dtype)
        self.peak = 2 * self.product_size**3 / self.seconds(lambda: square @ square)
        many = torch.empty(2**22 if self.small else 2**30, dtype=torch.uint8, device=device)
        other = torch.empty_like(many)
        self.bandwidth = 2 * many.nbytes / self.seconds(lambda: other.copy_(many))

    def wait(self) -> None:
        """Let the device end what it does."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int = 10, calls: int = 1) -> float:
        """Return the median seconds of a call, after three rounds that don't count.

        Args:
            call: What is timed.
            repeats: Rounds, of each of which the device ends all work.
            calls: Of a round.
        """
        taken = []
        for _ in range(3 + repeats):
            self.wait()
            started = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            taken.append((time.perf_counter() - started) / calls)
        return float(np.median(taken[3:]))

    def start_peak(self) -> None:
        """Measure the highest memory from here."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak_bytes(self) -> int:
        """Highest memory since then; 0 where the device doesn't tell."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    @property
    def held_bytes(self) -> int:
        """Memory that is held now; 0 where the device doesn't tell."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0


def named(stored: Format) -> str:
    """Return a format for people."""
    return f"{stored.method}, {stored.bits} bits"


def uniform(inventory: Inventory, stored: Format) -> Allocation:
    """Return one format and rank everywhere; embeddings in 16 bits."""
    choice = Choice.of(stored, RANK)
    choices = {module.name: Choice(16, 0, "plain") for module in inventory.embeddings}
    choices |= {target.name: choice for target in inventory.targets}
    return Allocation({name: choices[name] for name in inventory.names})


def steps(bench: Bench) -> Rows:
    """Return the milliseconds of a training step in each format, beside PEFT's."""
    base = decoder(bench)
    rows: Rows = []
    for batch, length in SMALL_BATCHES if bench.small else BATCHES:
        ids = torch.randint(1, 100, (batch, length), device=bench.device)
        context = trial_context(base, batch, length)
        ways: dict[str, Callable[[], Callable[[], object]]] = {
            "PEFT, 16 bits": partial(peft_step, base, ids, nf4=False),
            "PEFT, nf4-double": partial(peft_step, base, ids, nf4=True),
        }
        ways |= {f"alrq, {named(f)}": partial(own_step, context, f, bench) for f in FORMATS}
        # Tokens times weights, forward and backward: frozen weights have no gradients.
        products = 4 * sum(p.numel() for p in base.parameters()) * batch * length
        found: Rows = []
        for name, make in ways.items():
            bench.start_peak()
            before = bench.held_bytes
            step = make()
            taken = bench.seconds(step)
            row: dict[str, Any] = {"batch": f"{batch} x {length}", "step": name, "ms": 1e3 * taken}
            row |= {f"to {other['step']}": 1e3 * taken / other["ms"] for other in found[:2]}
            row["of the peak"] = products / taken / bench.peak
            row["peak memory, GB"] = (bench.peak_bytes - before) / 1e9
            found.append(row)
            del step
        rows += found
    return rows


def decoder(bench: Bench) -> nn.Module:
    """Return a decoder of 1.04 billion random weights, with Llama 3.2 1B's blocks, in bfloat16."""
    width = 64 if bench.small else 2048
    config = LlamaConfig(
        vocab_size=128 if bench.small else 32000,
        hidden_size=width,
        num_hidden_layers=2 if bench.small else 16,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 256),
        intermediate_size=4 * width,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with bench.device:
        return LlamaForCausalLM(config).to(torch.bfloat16)


def trial_context(base: Any, batch: int, length: int) -> TrialContext:
    """Return what training needs, over random tokens."""
    inventory = Inventory(
        model="random",
        targets=find_targets(base),
        other_parameters=0,
        embeddings=find_embeddings(base),
    )
    ids = np.random.default_rng(0).integers(1, 100, SEQUENCES * length).astype(np.int32)
    offsets = np.arange(SEQUENCES + 1, dtype=np.int64) * length
    tokens = Tokens(ids, offsets, np.empty(0, dtype=np.int64))
    task = EncodedTask(
        name="random",
        kind="language-modelling",
        label_names=(),
        splits="random",
        pad_id=0,
        train=tokens,
        validation=tokens,
        test=tokens,
    )
    recipe = Recipe(batch_size=batch, max_length=length, device=base.device.type)
    return TrialContext(base=base, inventory=inventory, task=task, recipe=recipe)


def own_step(context: TrialContext, stored: Format, bench: Bench) -> Callable[[], object]:
    """Return what does an optimiser step of a trial."""

    def make(_: str) -> Callable[[Tensor, Format], dict[str, Tensor]]:
        return lambda weight, of: quantise(weight.float(), of)

    allocation = uniform(context.inventory, stored)
    model = build_model(context.base, allocation, (), 2.0, bench.dtype, bench.device, make)
    return Training(context, model.train(), None, 0, bench.dtype, bench.device).train_step


def peft_step(base: Any, ids: Tensor, nf4: bool) -> Callable[[], object]:
    """Return what does the same with PEFT on a copy of the base."""
    model: Any = copy.deepcopy(base)
    targets = [target.name for target in find_targets(base)]
    if nf4:
        for name in targets:
            model.set_submodule(name, in_nf4(model.get_submodule(name)))
        model.is_loaded_in_4bit = True
    last = sorted({name.rpartition(".")[2] for name in targets})
    with quiet_peft():
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=last)
        model = get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    mask = torch.ones_like(ids)

    def step() -> None:
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def in_nf4(layer: nn.Linear) -> nn.Module:
    """Return a layer as bitsandbytes keeps it."""
    packed = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=False,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )
    packed.load_state_dict({"weight": layer.weight.data.cpu()})
    moved: nn.Module = packed.to(layer.weight.device)
    return moved
