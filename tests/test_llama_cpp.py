"""Exports that llama.cpp itself loads, and what it answers."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
import xllamacpp
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from alrq_core.adapters.lora import lora_layers
from alrq_core.export.blocks import BLOCKS, as_blocks
from alrq_core.export.exact import save
from alrq_core.export.llama_cpp import BASE, LORA_FILE, write_for_llama_cpp
from alrq_core.export.llama_family import check_for_llama_cpp
from alrq_core.export.llama_tokens import CUTS, add_tokenizer, checked_tokenizer
from alrq_core.trial import TrialRun
from search_spaces.allocation import Allocation, Choice
from tests.tiny import RECIPE, make_context, save_llama
from tests.waiting import HANGS_SECONDS

IDS = [5, 7, 9, 4, 3, 8, 8, 6, 10, 3, 11, 12]
TEXT = "It's 12345 o'clock, they'LL say:\n\n  a fine plot,\tNaïve über 東京 <|end|>x  !!  \n"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "biases": ("Llama", {"attention_bias": True, "head_dim": 32}),
    "linear": (
        "Llama",
        {
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def cut(name: str) -> pre_tokenizers.PreTokenizer:
    [(parts, _)] = [key for key, value in CUTS.items() if value == name]
    made = {"ByteLevel": pre_tokenizers.ByteLevel, "Digits": pre_tokenizers.Digits}
    if isinstance(parts[0], str) and parts[0] in made:
        parts = (parts,)
    steps = [
        pre_tokenizers.Split(Regex(part), "isolated")
        if isinstance(part, str)
        else made[part[0]](
            **{"ByteLevel": {"add_prefix_space": False, "use_regex": part[1]}}.get(
                part[0], {"individual_digits": part[1]}
            )
        )
        for part in parts
    ]
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


def save_bpe(folder: Path, name: str = "gpt-2") -> PreTrainedTokenizerFast:
    [whole] = [ignores for (_, ignores), value in CUTS.items() if value == name]
    tokenizer = Tokenizer(BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = cut(name)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=380,
        initial_alphabet=alphabet,
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, "a fine film and 1234 plots, they'll say"] * 3, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    made.save_pretrained(folder)
    return made


def save_decoder(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    kind, extra = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=400,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.2,
        **extra,
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            # Else no biases, and norms that do nothing.
            torch.nn.init.uniform_(parameter, *((-1, 1) if "bias" in name else (0.5, 1.5)))
    model.save_pretrained(folder)
    save_bpe(folder)
    return folder


def trained(folder: Path, bits: tuple[int, ...], ranks: tuple[int, ...]) -> TrialRun:
    recipe = replace(RECIPE, device="cpu", cpu_dtype="float32", learning_rate=3e-2)
    context = make_context(folder, "language-modelling", recipe)
    choices = {}
    for number, name in enumerate(context.inventory.names):
        embedding = context.inventory.modules[number].part == "embedding"
        found, rank = bits[number % len(bits)], ranks[number % len(ranks)]
        size = {16: 0, 2: 64, 8: 64}.get(found, 32)
        method = "plain" if found == 16 else "gptq"
        choices[name] = Choice(found, 0 if embedding else rank, method, size)
    run = TrialRun(context, Allocation(choices), seed=0)
    run.advance(8)
    return run


def logs(run: TrialRun) -> Tensor:
    with torch.inference_mode():
        found: Tensor = run.model.eval()(input_ids=torch.tensor([IDS])).logits[0, -1]
    return found.float().log_softmax(-1)


class Llama:
    """A folder in llama.cpp."""

    def __init__(self, folder: Path, adapter: bool) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(folder / BASE)
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 64, 1, 1
        params.warmup, params.verbosity, params.port = False, -1, 0
        if adapter:
            lora = xllamacpp.CommonAdapterLoraInfo(str(folder / LORA_FILE), 1.0)
            params.lora_adapters = [lora]
        self.server = xllamacpp.Server(params)

    def logs(self, rows: int) -> Tensor:
        # Of bytes that are no text yet, and of ends, it tells nothing. Its figures are before bias.
        letter = [[self.tokens("a")[0], 100.0]]
        asked = {"prompt": IDS, "n_predict": 1, "n_probs": rows, "logit_bias": letter}
        answer = self.server.handle_completions(asked)
        first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["id"]: entry["logprob"] for entry in first}
        return torch.tensor([found[number] for number in range(rows)])

    def tokens(self, text: str) -> list[int]:
        asked = {"content": text, "add_special": True, "parse_special": True}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=HANGS_SECONDS) as answer:
            found: list[int] = json.load(answer)["tokens"]
        return found


def divergence(wanted: Tensor, found: Tensor) -> float:
    return float((wanted.exp() * (wanted - found)).sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [(16,), (2, 4, 8, 16, 4)])
def test_llama_cpp_answers_alike_with_and_without_the_adapter(
    family: str, bits: tuple[int, ...], tmp_path: Path
) -> None:
    run = trained(save_decoder(tmp_path / "model", family), bits, (8, 0, 3, 2))
    folder = save(run, tmp_path / "out", write_for_llama_cpp)
    tuned = logs(run)
    for layer in lora_layers(run.model).values():
        layer.scaling["default"] = 0.0
    bare = logs(run)

    # Of 16 bits llama.cpp rounds what enters a product to bfloat16, of fewer to 8 bits.
    limit = 1e-3 if bits == (16,) else 2e-2
    assert divergence(tuned, bare) > 0.1
    assert divergence(bare, Llama(folder, adapter=False).logs(400)) < limit
    assert divergence(tuned, Llama(folder, adapter=True).logs(400)) < limit


@pytest.mark.parametrize("name", CUTS.values())
def test_llama_cpp_reads_text_alike(name: str, tmp_path: Path) -> None:
    model = save_decoder(tmp_path / "model", "llama")
    tokenizer = save_bpe(model, name)
    folder = save(trained(model, (16,), (2,)), tmp_path / "out", write_for_llama_cpp)
    llama = Llama(folder, adapter=False)

    for text in (TEXT, " 1 22 333 4444", "x\r\n\r\n y", "don't DON'T  ...a_b"):
        assert llama.tokens(text) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_stand_for_codes_times_scales(bits: int) -> None:
    generator = np.random.default_rng(0)
    least = -(2 ** (bits - 1))
    codes = generator.integers(least, -least, (3, 128)).astype(np.int8)
    scales = generator.normal(size=(3, 2)).astype(np.float16)
    blocks = as_blocks(codes, scales, bits)

    kind = gguf.GGMLQuantizationType(BLOCKS[bits].number)
    wanted = codes * scales.astype(np.float32).repeat(64, axis=1)
    assert gguf.quants.dequantize(blocks, kind).tolist() == wanted.tolist()
    assert blocks.size == BLOCKS[bits].matrix_bytes(codes.shape)


def test_blocks_of_2_bits_hold_a_scale_and_four_codes_a_byte() -> None:
    codes = np.zeros((1, 64), dtype=np.int8)
    codes[0, :5] = 1, 0, -1, -2, -2
    blocks = as_blocks(codes, np.array([[0.5]], dtype=np.float16), 2)

    # -0.5 times -1, 0, 1, 2 of llama.cpp, whose codes are one more.
    assert blocks[0, :2].view(np.float16).tolist() == [-0.5]
    assert blocks[0, 2:].tolist() == [0b11_10_01_00, 0b01_01_01_11, *[0b01_01_01_01] * 14]


def test_a_folder_without_adapters_has_the_base_alone(tmp_path: Path) -> None:
    run = trained(save_decoder(tmp_path / "model", "qwen2"), (4,), (0,))
    folder = save(run, tmp_path / "out", write_for_llama_cpp)

    assert not (folder / LORA_FILE).exists()
    assert "--lora" not in (folder / "README.md").read_text()
    assert "13 in Q4_0" not in (folder / "README.md").read_text()
    assert "15 in Q4_0" in (folder / "README.md").read_text()


def refused(run: TrialRun, place: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(run, place / "out", write_for_llama_cpp)
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        (Choice(3, 0, "gptq", 64), "3 bits of gptq in groups of 64"),
        (Choice(2, 0, "gptq", 32), "2 bits of gptq in groups of 32"),
        (Choice(4, 0, "nf4-double", 64), "4 bits of nf4-double"),
    ],
)
def test_other_codes_are_refused_by_name(choice: Choice, named: str, tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "model", "llama")
    run = trained(folder, (4,), (2,))
    name = run.context.inventory.targets[3].name
    other = Allocation({**run.allocation.choices, name: choice})
    changed = TrialRun(run.context, other, seed=0)
    changed.advance(8)

    refused(changed, tmp_path, f"got {named}.* for {name}, and 1 of .*--quant-backend gguf")


def test_tokenizers_that_cut_otherwise_are_refused(tmp_path: Path) -> None:
    run = trained(save_llama(tmp_path / "model"), (4,), (2,))

    refused(run, tmp_path, "`--model` must have a tokenizer.*got a WordLevel model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": normalizers.Lowercase()}, "must have a tokenizer .* after Lowercase"),
        (
            {"post_processor": TemplateProcessing(single="! $A", special_tokens=[("!", 5)])},
            "puts BOS, EOS or nothing around a text for gguf, got",
        ),
    ],
)
def test_tokenizers_that_change_text_otherwise_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tokenizer = save_bpe(tmp_path)
    for name, value in change.items():
        setattr(tokenizer.backend_tokenizer, name, value)

    with pytest.raises(ValueError, match=message):
        checked_tokenizer(tokenizer)


def test_tokens_without_an_embedding_are_left_out(tmp_path: Path) -> None:
    tokenizer = save_bpe(tmp_path)
    tokenizer.add_tokens(["<|late|>"])
    writer = gguf.GGUFWriter(None, "llama")
    add_tokenizer(writer, tokenizer, len(tokenizer) - 1)

    tokens = writer.kv_data[0]["tokenizer.ggml.tokens"].value
    assert len(tokens) == len(tokenizer) - 1 and "<|late|>" not in tokens


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=400, n_embd=64, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    save_bpe(tmp_path / "model")

    run = trained(tmp_path / "model", (4,), (2,))
    refused(run, tmp_path, r"compared with llama.cpp for gguf \(.*, qwen3\), got gpt2")


@pytest.mark.parametrize(
    ("family", "extra", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "silu, got gelu"),
        ("qwen3", {"attention_bias": True}, "no biases in attention"),
        (
            "qwen2",
            {"rope_parameters": LLAMA3_ROPE},
            "by default frequencies .* in a qwen2 model, got llama3",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "by default or linear or llama3 frequencies .*, got yarn",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    family: str,
    extra: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FAMILIES, family, (FAMILIES[family][0], extra))
    run = trained(save_decoder(tmp_path / "model", family), (4,), (2,))

    refused(run, tmp_path, message)


def test_models_that_cannot_be_written_are_refused_before_anything_runs(
    tmp_path: Path, bert_folder: Path
) -> None:
    with pytest.raises(ValueError, match=r"must go with a language model, got .* classification"):
        check_for_llama_cpp(bert_folder, "classification")
    with pytest.raises(ValueError, match="must have a tokenizer"):
        check_for_llama_cpp(save_llama(tmp_path / "words"), "language-modelling")
    with pytest.raises(ValueError, match=r"for gguf .*, got bert"):
        check_for_llama_cpp(bert_folder, "language-modelling")
    check_for_llama_cpp(save_decoder(tmp_path / "model", "qwen3"), "language-modelling")
