"""What every form of export holds: configuration, the adapter in PEFT's form, what stays plain."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from peft import TaskType
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from alrq_core.adapters.lora import ADAPTER, lora_config, lora_layers
from alrq_core.models.finding import hub_id, resolve_model
from alrq_core.models.heads import head_names
from alrq_core.models.loading import load_tokenizer
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import STORAGE_DTYPE

PEFT_FOLDER = "adapter"


def named_config(run: TrialRun) -> Any:
    """Return the model's configuration, with the names of its classes."""
    config: Any = copy.deepcopy(run.model.config)
    if run.context.task.label_names:
        config.id2label = dict(enumerate(run.context.task.label_names))
        config.label2id = {name: number for number, name in config.id2label.items()}
    return config


def write_configuration(run: TrialRun, config: Any, folder: Path) -> None:
    """Write the model's configuration, and of a decoder which tokens begin and end what it says.

    Those are the base model's and, of conversations, the one that the answers were learnt to end
    with: a chat template may end a turn with another token than a text, and without it an engine
    would go on after the answer. How to sample is left to the engine.
    """
    config.save_pretrained(folder)
    known = getattr(run.context.base, "generation_config", None)
    if run.context.task.kind == "classification" or known is None:
        return
    ends = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    ends = [end for end in (*ends, _answers_end(run)) if end is not None]
    GenerationConfig(
        bos_token_id=known.bos_token_id,
        eos_token_id=list(dict.fromkeys(ends)) or None,
        pad_token_id=run.context.task.pad_id,
    ).save_pretrained(folder)


def _answers_end(run: TrialRun) -> int | None:
    """Return the special token that most answers end with, where conversations are learnt."""
    task = run.context.task
    tokens = task.train
    # As long as the longest may be cut.
    whole = np.flatnonzero(tokens.lengths < tokens.lengths.max())
    if not task.conversations or not len(whole):
        return None
    end = int(np.bincount(tokens.ids[tokens.offsets[whole + 1] - 1]).argmax())
    tokenizer = load_tokenizer(resolve_model(run.context.inventory.model))
    added = tokenizer.added_tokens_decoder.get(end)
    return end if added is not None and added.special else None


def plain_tensors(model: nn.Module, packed: set[int]) -> dict[str, Tensor]:
    """Return every parameter that belongs to no packed layer; tied ones once."""
    return {name: p for name, p in model.named_parameters() if id(p) not in packed}


def write_adapter(run: TrialRun, folder: Path, base: str) -> None:
    """Write adapters and head as PEFT does, for `PeftModel.from_pretrained`.

    Args:
        run: Trained.
        folder: To make, where the allocation has an adapter.
        base: The model that they go onto, as PEFT's configuration names it.
    """
    model, allocation, kind = run.model, run.final_allocation, run.context.task.kind
    if not allocation.rank_pattern:
        return
    folder.mkdir()
    head = head_names(run.context.base, kind)
    config = lora_config(allocation, run.context.recipe.alpha_over_rank)
    config.task_type = TaskType.SEQ_CLS if kind == "classification" else TaskType.CAUSAL_LM
    config.base_model_name_or_path, config.revision = hub_id(base)
    config.modules_to_save = list(head) or None
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {}
    for name, layer in lora_layers(model).items():
        for half in ("lora_A", "lora_B"):
            weight = getattr(layer, half)[ADAPTER].weight
            tensors[f"base_model.model.{name}.{half}.weight"] = weight.detach().cpu().clone()
    for name in head:
        for key, parameter in model.get_submodule(name).named_parameters():
            tensors[f"base_model.model.{name}.{key}"] = parameter.detach().cpu().clone()
    tensors = {name: tensor.to(STORAGE_DTYPE) for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
