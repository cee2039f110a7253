"""Every family of models runs as what it claims, in every number of bits, or is refused by name.

All are tiny and random. Their weights are drawn wider than usual, so that each layer matters for
the result as it does in a trained model.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertGenerationConfig,
    DebertaV2Config,
    DistilBertConfig,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    RobertaConfig,
    T5Config,
)

import alrq_core
from alrq_core.build import build_model
from alrq_core.context import TrialContext
from alrq_core.export.exact import save
from alrq_core.models.heads import head_names
from alrq_core.models.loading import inspect_model, load_model
from alrq_core.models.streamed import streamed
from alrq_core.precision import acting_as
from alrq_core.receipt import take_receipt
from alrq_core.recipe import Recipe
from alrq_core.records import TaskKind
from alrq_core.trial import TrialRun
from alrq_core.weights.layers import STORAGE_DTYPE
from search_spaces.allocation import Allocation
from search_spaces.costs import memory_bytes
from search_spaces.inventory import Inventory
from tests.tiny import make_context, mixed, save_tokenizer, uniform

CPU = torch.device("cpu")
RECIPE = Recipe(max_steps=4, batch_size=8, max_length=16, learning_rate=3e-3, cpu_dtype="float32")
IDS = torch.randint(4, 16, (16, 12), generator=torch.Generator().manual_seed(3))
WIDE = 0.15

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "initializer_range": WIDE,
    **SPECIAL,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "head_dim": 32}
BERT = ("attention.self.query", "attention.self.key", "attention.self.value")
QKVO = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Family:
    """What a family consists of.

    Attributes:
        config: Of a tiny model.
        blocks: Name of its list of blocks.
        attention, feed_forward: The linear layers of a block.
        embedding: Name of the token embedding.
        head: What classification adds.
        output: Name of the output head of a language model that is not tied.
        decoder: Whether it predicts the next token.
    """

    config: PretrainedConfig
    blocks: str
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    embedding: str
    head: tuple[str, ...]
    output: str | None = None
    decoder: bool = False


def bert_like(config: PretrainedConfig, base: str, head: tuple[str, ...]) -> Family:
    attention = ("query_proj", "key_proj", "value_proj") if base == "deberta" else ()
    return Family(
        config,
        f"{base}.encoder.layer",
        (*(tuple(f"attention.self.{a}" for a in attention) or BERT), "attention.output.dense"),
        ("intermediate.dense", "output.dense"),
        f"{base}.embeddings.word_embeddings",
        head,
    )


def llama_like(config: PretrainedConfig) -> Family:
    output = None if config.tie_word_embeddings else "lm_head"
    return Family(
        config, "model.layers", QKVO, GATED, "model.embed_tokens", ("score",), output, True
    )


# As in the published DeBERTa-v3 and ModernBERT.
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
MODERN: dict[str, Any] = {
    "cls_token_id": 2,
    "sep_token_id": 3,
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
}
FAMILIES = {
    "bert": bert_like(BertConfig(**SIZES), "bert", ("classifier",)),
    "roberta": bert_like(RobertaConfig(**SIZES), "roberta", ("classifier",)),
    "distilbert": Family(
        DistilBertConfig(
            vocab_size=32,
            dim=64,
            n_layers=2,
            n_heads=2,
            hidden_dim=128,
            max_position_embeddings=64,
            initializer_range=WIDE,
            pad_token_id=0,
        ),
        "distilbert.transformer.layer",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        ("ffn.lin1", "ffn.lin2"),
        "distilbert.embeddings.word_embeddings",
        ("pre_classifier", "classifier"),
    ),
    "deberta": bert_like(DebertaV2Config(**SIZES, **DEBERTA), "deberta", ("pooler", "classifier")),
    "modernbert": Family(
        ModernBertConfig(**SIZES, **MODERN),
        "model.layers",
        ("attn.Wqkv", "attn.Wo"),
        ("mlp.Wi", "mlp.Wo"),
        "model.embeddings.tok_embeddings",
        ("classifier",),
    ),
    "gpt2": Family(
        GPT2Config(
            vocab_size=32,
            n_embd=64,
            n_layer=2,
            n_head=2,
            n_inner=128,
            n_positions=64,
            initializer_range=WIDE,
            **SPECIAL,
        ),
        "transformer.h",
        ("attn.c_attn", "attn.c_proj"),
        ("mlp.c_fc", "mlp.c_proj"),
        "transformer.wte",
        ("score",),
        decoder=True,
    ),
    "opt": Family(
        OPTConfig(
            vocab_size=32,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=128,
            max_position_embeddings=64,
            word_embed_proj_dim=64,
            init_std=WIDE,
            layerdrop=0.5,
            **SPECIAL,
        ),
        "model.decoder.layers",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        ("fc1", "fc2"),
        "model.decoder.embed_tokens",
        ("score",),
        decoder=True,
    ),
    "llama": llama_like(LlamaConfig(**GROUPED)),
    "qwen2": llama_like(Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3": llama_like(Qwen3Config(**GROUPED, tie_word_embeddings=True)),
    "mistral": llama_like(MistralConfig(**GROUPED)),
    "gemma": llama_like(GemmaConfig(**GROUPED)),
    "gemma2": llama_like(Gemma2Config(**GROUPED, query_pre_attn_scalar=32)),
}
DECODERS = [name for name, family in FAMILIES.items() if family.decoder]
ENCODERS = [name for name, family in FAMILIES.items() if not family.decoder]
CASES: list[tuple[str, TaskKind]] = [
    *((name, "classification") for name in FAMILIES),
    *((name, "language-modelling") for name in DECODERS),
]
ALLOCATIONS: dict[str, Callable[[Inventory], Allocation]] = {
    "mixed": mixed,
    "4 bits": lambda inventory: uniform(inventory, 4, 4),
    "2 bits": lambda inventory: uniform(inventory, 2, 4),
}
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
every_family = pytest.mark.parametrize("name", FAMILIES)
every_decoder = pytest.mark.parametrize("name", DECODERS)
Make = Callable[[str, TaskKind], TrialContext]


def save_random(folder: Path, config: PretrainedConfig, auto: Any = None) -> Path:
    """Save a model as its pretraining leaves it, biases and norms drawn too."""
    kinds = (AutoModelForPreTraining, AutoModelForMaskedLM, AutoModelForCausalLM)
    auto = auto or next(kind for kind in kinds if type(config) in kind._model_mapping)
    torch.manual_seed(0)
    model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folders: dict[str, Path] = {}
    contexts: dict[tuple[str, TaskKind], TrialContext] = {}

    def context(name: str, kind: TaskKind) -> TrialContext:
        if name not in folders:
            folders[name] = save_random(tmp_path_factory.mktemp(name), FAMILIES[name].config)
        if (name, kind) not in contexts:
            torch.manual_seed(1)
            contexts[name, kind] = make_context(folders[name], kind, RECIPE)
        return contexts[name, kind]

    return context


def logits(model: nn.Module, ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    place = next(model.parameters()).device
    with torch.inference_mode():
        result: Tensor = model.eval()(input_ids=ids.to(place), attention_mask=mask.to(place)).logits
    return result.cpu()


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def frozen_build(context: TrialContext, bits: int) -> nn.Module:
    allocation = uniform(context.inventory, bits, 0)
    return build_model(context.base, allocation, (), 2.0, torch.float32, CPU)


@every_case
def test_targets_are_the_linear_layers_of_the_blocks(make: Make, name: str, kind: TaskKind) -> None:
    family, inventory = FAMILIES[name], make(name, kind).inventory
    parts = {"attention": family.attention, "feed-forward": family.feed_forward}
    expected = {
        f"{family.blocks}.{block}.{layer}": (part, block)
        for block in range(2)
        for part, layers in parts.items()
        for layer in layers
    }

    assert {target.name: (target.part, target.block) for target in inventory.targets} == expected
    assert len(inventory.targets) == len(expected)


@every_case
def test_embeddings_and_heads_are_found(make: Make, name: str, kind: TaskKind) -> None:
    family, context = FAMILIES[name], make(name, kind)
    untied = kind == "language-modelling" and family.output is not None
    names = [embedding.name for embedding in context.inventory.embeddings]

    assert names == [family.embedding, *([family.output] if untied else [])]
    assert head_names(context.base, kind) == (family.head if kind == "classification" else ())


@every_case
def test_each_parameter_counts_once(make: Make, name: str, kind: TaskKind) -> None:
    context = make(name, kind)
    total = sum(parameter.numel() for parameter in context.base.parameters())
    inventory = context.inventory

    assert inventory.other_parameters + sum(m.weights for m in inventory.modules) == total


@pytest.mark.parametrize("chosen", ALLOCATIONS)
@every_case
def test_a_trial_trains_scores_and_comes_back(
    make: Make, tmp_path: Path, name: str, kind: TaskKind, chosen: str
) -> None:
    context = make(name, kind)
    allocation = ALLOCATIONS[chosen](context.inventory)
    run = TrialRun(context, allocation, seed=0)
    run.advance(2)
    run.advance(4)
    run.test()

    assert run.receipt.memory_bytes == memory_bytes(allocation, context.inventory)
    assert run.receipt.lora_pairs_with_gradient == len(allocation.rank_pattern) > 0
    assert run.receipt.unchanged_after_training

    loaded = alrq_core.load(save(run, tmp_path / "saved"))

    assert torch.equal(logits(loaded.model), logits(run.model))
    again = take_receipt(loaded.model, context.inventory, torch.float32)
    assert again.modules == run.receipt.modules


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_case
def test_the_types_of_a_gpu_train_as_float32_does(
    make: Make, name: str, kind: TaskKind, dtype: str
) -> None:
    context = make(name, kind)
    losses = []
    with acting_as("cuda"):
        for used in ("float32", dtype):
            own = replace(context, recipe=replace(RECIPE, cpu_dtype=used))
            run = TrialRun(own, mixed(context.inventory), seed=0)
            losses.append(run.advance(4).loss)

    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@every_case
def test_activations_that_are_computed_again_change_nothing(
    make: Make, name: str, kind: TaskKind
) -> None:
    context, found = make(name, kind), []
    for again in (False, True):
        own = replace(context, recipe=replace(RECIPE, gradient_checkpointing=again))
        run = TrialRun(own, mixed(context.inventory), seed=0)
        losses = [run.advance(step).loss for step in (1, 4)]
        factors = own.factors(run.reference())
        found.append((losses, *(factors.of(t.name) for t in context.inventory.targets)))
    (kept, *known), (again_kept, *others) = found

    assert again_kept == kept
    for one, other in zip(known, others, strict=True):
        torch.testing.assert_close(other.inputs, one.inputs)
        torch.testing.assert_close(other.outputs, one.outputs)


@every_decoder
def test_a_loaded_decoder_generates(make: Make, tmp_path: Path, name: str) -> None:
    """With what it keeps of earlier tokens as without, alone as beside a longer prompt."""
    context = make(name, "language-modelling")
    run = TrialRun(context, mixed(context.inventory), seed=0)
    run.advance(2)
    model: Any = alrq_core.load(save(run, tmp_path / "saved")).model
    long, short = [2, 5, 7, 9, 4, 6], [2, 8, 8, 6]
    ids = torch.tensor([long, [0, 0, *short]])
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    both = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), **how)
    for row, prompt in enumerate((long, short)):
        alone = torch.tensor([prompt])
        kept = model.generate(input_ids=alone, attention_mask=torch.ones_like(alone), **how)
        anew = model.generate(
            input_ids=alone, attention_mask=torch.ones_like(alone), use_cache=False, **how
        )

        assert torch.equal(kept, anew)
        assert torch.equal(both[row, 6:], kept[0, len(prompt) :])


@every_case
def test_16_bits_compute_what_the_rounded_original_does(
    make: Make, name: str, kind: TaskKind
) -> None:
    context = make(name, kind)
    with torch.no_grad():
        rounded = {
            key: parameter.to(STORAGE_DTYPE).float()
            for key, parameter in context.base.named_parameters()
        }
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        original = torch.func.functional_call(context.base.eval(), rounded, (), inputs).logits

    assert difference(logits(frozen_build(context, 16)), original) < 1e-5


@every_case
def test_a_base_in_16_bits_runs_in_float32_from_where_it_lies(
    make: Make, name: str, kind: TaskKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = copy.deepcopy(make(name, kind).base).to(STORAGE_DTYPE)
    model = streamed(half, CPU)

    expected = logits(copy.deepcopy(half).float())
    assert torch.equal(logits(model), expected)
    # A part of each matrix at a time.
    monkeypatch.setattr("alrq_core.models.streamed.CHUNK_WEIGHTS", 500)
    torch.testing.assert_close(logits(model), expected)
    assert {p.dtype for p in half.parameters()} == {STORAGE_DTYPE}
    shared = {p.data_ptr() for p in half.parameters() if p.dim() == 2}
    own = sum(p.numel() for p in model.parameters() if p.data_ptr() not in shared)
    assert own < 0.1 * sum(p.numel() for p in model.parameters())


@every_case
def test_8_bits_are_close_and_no_layer_could_be_left_out(
    make: Make, name: str, kind: TaskKind
) -> None:
    context = make(name, kind)
    original = logits(context.base)
    error = difference(logits(frozen_build(context, 8)), original)
    silenced = {}
    for module in context.inventory.modules:
        weight = context.base.get_parameter(f"{module.name}.weight")
        kept, weight.data = weight.data, torch.zeros_like(weight)
        silenced[module.name] = difference(logits(context.base), original)
        weight.data = kept

    assert error < 0.05
    assert min(silenced.values()) > 0.05, silenced


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
def test_gpt2_computes_what_its_conv1d_does(make: Make, kind: TaskKind) -> None:
    context = make("gpt2", kind)
    original = GPT2LMHeadModel.from_pretrained(context.inventory.model).eval()
    for parameter in original.parameters():
        parameter.data = parameter.data.to(STORAGE_DTYPE).float()
    built = frozen_build(context, 16).eval().get_submodule("transformer")
    with torch.inference_mode():
        states = [
            model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
            for model in (original.transformer, built)
        ]

    assert type(original.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


@every_family
def test_padding_changes_no_answer(make: Make, name: str) -> None:
    model = make(name, "classification").base
    padded = nn.functional.pad(IDS, (0, 4))

    torch.testing.assert_close(logits(model, padded, (padded != 0).long()), logits(model))


@every_decoder
def test_padding_is_the_tokenizers(make: Make, tmp_path: Path, name: str) -> None:
    config = FAMILIES[name].config.to_dict() | {"pad_token_id": 1}
    folder = save_random(tmp_path / name, type(FAMILIES[name].config).from_dict(config))
    model = load_model(str(folder), "classification", 2)
    padded = nn.functional.pad(IDS, (0, 4))

    torch.testing.assert_close(logits(model, padded, (padded != 0).long()), logits(model))


@every_case
def test_dropout_is_the_recipes(make: Make, name: str, kind: TaskKind) -> None:
    folder = make(name, kind).inventory.model
    results = []
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        model = load_model(folder, kind, 2, dropout).train()
        one, other = (model(input_ids=IDS).logits for _ in range(2))
        results.append(torch.equal(one, other))

    assert results == [True, False]


def test_a_pooler_that_the_files_lack_is_trained(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", FAMILIES["bert"].config, AutoModelForMaskedLM)
    context = make_context(folder, "classification", RECIPE)
    run = TrialRun(context, mixed(context.inventory), seed=0)
    pooler = run.model.get_parameter("bert.pooler.dense.weight")
    before = pooler.detach().clone()
    run.advance(4)
    loaded = alrq_core.load(save(run, tmp_path / "saved"))

    assert head_names(context.base, "classification") == ("classifier", "bert.pooler.dense")
    assert not torch.equal(pooler, before)
    assert torch.equal(logits(loaded.model), logits(run.model))


def test_modernberts_own_head_is_trained_only_where_it_is_new(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", FAMILIES["modernbert"].config, AutoModel)
    model = load_model(str(folder), "classification", 2)

    assert head_names(model, "classification") == ("head", "classifier")


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_model_no_language(make: Make, name: str) -> None:
    context = make(name, "classification")
    with pytest.raises(ValueError, match=r"`--model` must support language-modelling, got .*type"):
        inspect_model(context.inventory.model, "language-modelling", 0)


def test_a_decoder_that_sees_ahead_is_refused(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "m", BertGenerationConfig(**SIZES), AutoModelForCausalLM)
    with pytest.raises(ValueError, match="must predict each token from those before it"):
        load_model(str(folder), "language-modelling", 0)


@pytest.mark.parametrize("kind", ["classification", "language-modelling"])
@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**GROUPED, num_local_experts=4),
        Qwen3MoeConfig(**GROUPED, num_experts=4, moe_intermediate_size=64),
    ],
)
def test_fused_experts_are_refused(
    tmp_path: Path, config: PretrainedConfig, kind: TaskKind
) -> None:
    folder = save_random(tmp_path / "m", config, AutoModelForCausalLM)
    match = r"linear layers, got model\.layers\.0\.mlp\.experts\.gate_up_proj .* of 3 dimensions"
    with pytest.raises(ValueError, match=match):
        inspect_model(str(folder), kind, 2)


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=32, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
    folder = save_random(tmp_path / "m", config, AutoModel)
    with pytest.raises(
        ValueError, match=r"must be one encoder or one decoder of text, got .* of type t5"
    ):
        inspect_model(str(folder), "classification", 2)


def test_linear_layers_of_their_own_kind_are_refused(tmp_path: Path) -> None:
    config = FalconConfig(
        vocab_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, **SPECIAL
    )
    folder = save_random(tmp_path / "m", config, AutoModelForCausalLM)
    with pytest.raises(ValueError, match=r"plain linear layers .*query_key_value .*FalconLinear"):
        inspect_model(str(folder), "classification", 2)
