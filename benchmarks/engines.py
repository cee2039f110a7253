"""Writes all exports of a confirmed trial, and what this project answers to some prompts.

Then `elsewhere.py` runs in an environment without the project, and says how far engines are off.

    python -m benchmarks.engines --study STUDY --trial T --to DIR [--prompts 50]
    ENVIRONMENT/bin/python benchmarks/elsewhere.py DIR
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import alrq_core
from alrq_core.adapters.lora import ADAPTER, lora_layers
from alrq_core.data.encode import Tokens
from tune.report.exporting import FORMS, find_export
from tune.study.config import resumed_config
from tune.study.prepare import prepare


def prompts_of(tokens: Tokens, count: int) -> list[list[int]]:
    """Return the first sequences up to their first answer, or their first half."""
    found = []
    for row in range(min(count, len(tokens))):
        sequence = tokens.sequence(row).tolist()
        end = int(tokens.predicted(row).argmax()) if tokens.counted is not None else 0
        found.append(sequence[: end if end > 1 else len(sequence) // 2])
    return found


def answers(model: Any, prompts: list[list[int]]) -> Tensor:
    """Return the logarithms of all tokens' probabilities after each prompt, prompts x tokens."""
    with torch.inference_mode():
        each = [
            model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
            for ids in prompts
        ]
    return torch.stack(each).log_softmax(-1).cpu()


def without_adapters(model: nn.Module) -> None:
    """Make adapters add nothing."""
    for layer in lora_layers(model).values():
        layer.scaling[ADAPTER] = 0.0


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--trial", required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=50)
    given = parser.parse_args()
    given.to.mkdir(parents=True)
    config = resumed_config(given.study, {})
    for form in FORMS:
        try:
            find_export(given.study, given.trial, config, form).write(given.to / form)
            print(f"wrote {form}")
        except ValueError as error:
            print(f"left out {form}: {error}")
    prompts = prompts_of(prepare(config).task.test, given.prompts)
    loaded = alrq_core.load(given.to / "alrq")
    # Not in the 16 bits that a processor may compute in: engines are compared, not types.
    for module in loaded.model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    tuned = answers(loaded.model, prompts)
    without_adapters(loaded.model)
    save_file(
        {"tuned": tuned, "base": answers(loaded.model, prompts)}, given.to / "answers.safetensors"
    )
    letter = loaded.tokenizer("a", add_special_tokens=False)["input_ids"][0]
    (given.to / "prompts.json").write_text(json.dumps({"ids": prompts, "letter": letter}))


if __name__ == "__main__":
    main()
