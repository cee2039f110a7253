"""What exports answer where this project is not installed, against what it answered itself.

`engines.py` writes the folder. This file imports nothing of the project, so that any environment
with transformers, compressed-tensors, PEFT and xllamacpp can run it:

    ENVIRONMENT/bin/python benchmarks/elsewhere.py DIR
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

# Returns the logarithms of all tokens' probabilities after a prompt.
Engine = Callable[[list[int]], Tensor]


def in_transformers(folder: Path) -> Iterator[tuple[str, Engine]]:
    """Yield the base and the tuned model, as the export's own README loads them."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.compressor.decompress_model(model)

    def answer(ids: list[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1]
        return logits.log_softmax(-1)

    model.eval()
    yield "base", answer
    if (folder / "adapter").is_dir():
        model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
    yield "tuned", answer


def in_llama_cpp(folder: Path) -> Iterator[tuple[str, Engine]]:
    """Yield the base alone and with its adapter."""
    letter = json.loads((folder.parent / "prompts.json").read_text())["letter"]
    rows = len(load_file(folder.parent / "answers.safetensors")["base"][0])
    for name in ("base", "tuned"):
        params = xllamacpp.CommonParams()
        params.model.path = str(folder / "model.gguf")
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads = (
            2048,
            1,
            torch.get_num_threads(),
        )
        params.warmup, params.verbosity, params.port = False, -1, 0
        if name == "tuned" and (folder / "adapter.gguf").is_file():
            adapter = xllamacpp.CommonAdapterLoraInfo(str(folder / "adapter.gguf"), 1.0)
            params.lora_adapters = [adapter]
        server = xllamacpp.Server(params)

        def answer(ids: list[int], server: Any = server) -> Tensor:
            # An end of text, or half a letter, is no answer that it tells the figures of. They are
            # from before the bias.
            asked = {
                "prompt": ids,
                "n_predict": 1,
                "n_probs": rows,
                "logit_bias": [[letter, 100.0]],
            }
            found = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]
            logs = torch.full((rows,), -torch.inf)
            for entry in found["top_logprobs"]:
                logs[entry["id"]] = entry["logprob"]
            return logs

        yield name, answer


def main() -> None:
    """Print a line for each engine, with and without the adapter."""
    folder = Path(sys.argv[1])
    own = [name for name in ("alrq_core", "tune") if importlib.util.find_spec(name)]
    print(f"{sys.executable}: {' and '.join(own) or 'alrq not'} installed")
    prompts = json.loads((folder / "prompts.json").read_text())["ids"]
    wanted = load_file(folder / "answers.safetensors")
    for engine, place in (("transformers", in_transformers), ("gguf", in_llama_cpp)):
        if not (folder / engine).is_dir():
            continue
        for name, answer in place(folder / engine):
            start = time.perf_counter()
            found = torch.stack([answer(ids) for ids in prompts])
            ours = wanted[name]
            apart = (ours.exp() * (ours - found)).sum(dim=-1)
            same = int((ours.argmax(-1) == found.argmax(-1)).sum())
            print(
                f"{engine:12} {name:5}  divergence {apart.mean():.2e}, at most {apart.max():.2e}; "
                f"probabilities {(ours.exp() - found.exp()).abs().max():.4f} off at most; "
                f"likeliest token the same {same} of {len(prompts)}; "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
