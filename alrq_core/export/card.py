"""The model card of an export: what it is, what was measured, and the lines that load it."""

import json
from collections import Counter

from alrq_core.models.finding import hub_id
from alrq_core.trial import TrialRun
from search_spaces.costs import average_bits, average_rank, format_bytes

HEAD = """\
---
library_name: {library}
base_model: {base}
tags: [{form}, lora, mixed-precision]
---

# {title}

{base}, fine-tuned on {task} by alrq: frozen weights in {bits:.2f} bits on average, LoRA adapters
of rank {rank:.2f} on average, {size} as alrq itself stores all of it. This folder holds {files} of
weights{held}.

| bits of a module | modules |
|---|---|
{table}

"""
TRANSFORMERS = """\
## With transformers

    pip install transformers compressed-tensors peft

```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = {auto}.from_pretrained(FOLDER, dtype="float32")
model.hf_quantizer.compressor.decompress_model(model)
model = PeftModel.from_pretrained(model, FOLDER + "/adapter").eval()
```

PEFT needs the unpacked weights.
With `dtype="bfloat16"` they take half the memory, and scales are rounded.

"""
VLLM = """\
## With vLLM

    vllm serve FOLDER --enable-lora --lora-modules tuned=FOLDER/adapter

vLLM fuses query, key and value, and gate and up: it reads allocations that give them the same bits
(`--tie` in alrq). Kernels for 2 and 3 bits are in its newer releases only. This was not run by us.

"""
ENCODER = "vLLM does not serve quantised encoders for classification as far as we know.\n\n"
EXACT = """\
## With alrq

```python
import alrq_core

loaded = alrq_core.load(FOLDER)
print(loaded.model, loaded.tokenizer, loaded.label_names)
```

Logits are those of the trial, to the last digit. The adapter alone is in `{adapter}/`, in PEFT's
form.

"""
LLAMA_CPP = """\
## With llama.cpp

    llama-cli -m model.gguf{lora} -p PROMPT

Modules by type: {blocks}. llama.cpp rounds what enters a matrix, to 8 bits where that has fewer
than 16, so that its answers differ a little.{version}

"""
NEWEST = " Q2_0 needs a release of 2026."
END = """\
## What was built

```json
{receipt}
```
"""


def model_card(run: TrialRun, packed: list[str], file_bytes: int) -> str:
    """Return the card of a checkpoint for transformers, in Markdown.

    Args:
        run: Trained.
        packed: Modules whose codes were written.
        file_bytes: Of the checkpoint without the adapter.
    """
    allocation = run.final_allocation
    classifies = run.context.task.kind == "classification"
    widened = any(c.bits < 16 and name not in packed for name, c in allocation.choices.items())
    held = " (embeddings in 16 bits, since no engine reads packed ones)" if widened else ""
    held += ", and the adapter in `adapter/`" if allocation.rank_pattern else ""
    auto = "AutoModelForSequenceClassification" if classifies else "AutoModelForCausalLM"
    unneeded = [] if allocation.rank_pattern else ["Peft", "PEFT"]
    if not packed:
        unneeded.append("decompress")
    lines = "".join(
        line
        for line in TRANSFORMERS.format(auto=auto).splitlines(keepends=True)
        if not any(word in line for word in unneeded)
    )
    lines += ENCODER if classifies else VLLM
    return _card(run, ("peft", "compressed-tensors"), file_bytes, held, lines)


def llama_card(run: TrialRun, types: list[str], file_bytes: int) -> str:
    """Return the card of files for llama.cpp, in Markdown.

    Args:
        run: Trained.
        types: Of the modules, in llama.cpp.
        file_bytes: Of the base.
    """
    counted = Counter(types)
    adapted = bool(run.final_allocation.rank_pattern)
    lines = LLAMA_CPP.format(
        lora=" --lora adapter.gguf" if adapted else "",
        blocks=", ".join(f"{n} in {name}" for name, n in counted.items()),
        version=NEWEST if "Q2_0" in counted else "",
    )
    held = " in `model.gguf`" + (", and the adapter in `adapter.gguf`" if adapted else "")
    return _card(run, ("gguf", "gguf"), file_bytes, held, lines)


def exact_card(run: TrialRun, adapter: str, file_bytes: int) -> str:
    """Return the card of a folder that alrq itself loads, in Markdown.

    Args:
        run: Trained.
        adapter: Folder of the adapter alone.
        file_bytes: Of the packed weights.
    """
    return _card(run, ("alrq", "alrq"), file_bytes, "", EXACT.format(adapter=adapter))


def _card(run: TrialRun, about: tuple[str, str], file_bytes: int, held: str, loading: str) -> str:
    """Return a card of a library and the form that it reads."""
    context, allocation, receipt = run.context, run.final_allocation, run.receipt
    inventory = context.inventory
    counted = Counter(allocation.choices[target.name].bits for target in inventory.targets)
    base = hub_id(inventory.model)[0]
    head = HEAD.format(
        library=about[0],
        form=about[1],
        base=base,
        title=f"{base} for {context.task.name}",
        task=context.task.name,
        bits=average_bits(allocation, inventory),
        rank=average_rank(allocation, inventory),
        size=format_bytes(receipt.memory_bytes),
        files=format_bytes(file_bytes),
        held=held,
        table="\n".join(f"| {bits} | {count} |" for bits, count in sorted(counted.items())),
    )
    figures = receipt.to_json()
    summary = {key: value for key, value in figures.items() if key != "modules"}
    return head + loading + END.format(receipt=json.dumps(summary, indent=1))
