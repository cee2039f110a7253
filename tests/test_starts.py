"""Where adapters start: the moments of inputs, the best correction of an error, EVA."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alrq_core.adapters import starts
from alrq_core.adapters.lora import ADAPTER, lora_layers
from alrq_core.adapters.starts import (
    Corrections,
    Moments,
    initialise_eva,
    initialise_towards,
)
from alrq_core.build import build_model
from alrq_core.context import TrialContext
from alrq_core.data.encode import Batch, collate
from alrq_core.data.fisher import Factors
from alrq_core.data.moments import second_moments
from alrq_core.weights.packing import stored_tensors
from search_spaces.allocation import Allocation, Choice
from tests.tiny import make_context

CPU = torch.device("cpu")
ALPHA_OVER_RANK = 2.0
ROWS = np.arange(24)


class Toy(nn.Module):
    """Layers with known inputs: all tokens, those of larger batches, a pooled vector, none."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding.from_pretrained(
            torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
        )
        self.reader, self.twin, self.pooler, self.idle = (nn.Linear(2, 2) for _ in range(4))

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.words(input_ids)
        self.reader(tokens)
        if len(input_ids) > 1:
            self.twin(tokens)
        pooled: Tensor = self.pooler(tokens[:, 0])
        return pooled


class Setting:
    """A tiny model, its calibration batch and the moments of its inputs."""

    def __init__(self, context: TrialContext) -> None:
        self.context = context
        self.names = tuple(target.name for target in context.inventory.targets)
        self.batch = collate(context.task.train, ROWS, context.task.pad_id)
        self.moments = second_moments(context.base, self.names, [self.batch], CPU)

    def built(self, bits: int, rank: int, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self.mixed(dict.fromkeys(self.names, Choice(bits, rank)), dtype)

    def mixed(self, choices: dict[str, Choice], dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        allocation = Allocation(choices)
        return build_model(self.context.base, allocation, (), ALPHA_OVER_RANK, dtype, CPU)

    def initialise(self, model: nn.Module, cache: Corrections | None = None) -> nn.Module:
        def weight(name: str) -> Tensor:
            return self.context.base.get_submodule(name).get_parameter("weight")

        corrections = Corrections() if cache is None else cache
        factors_of = lambda name: Factors(self.moments[name])  # noqa: E731
        layers = lora_layers(model)

        def key(name: str) -> str:
            return f"{name} {stored_tensors(layers[name].get_base_layer())[2]}"

        initialise_towards(model, weight, factors_of, key, ALPHA_OVER_RANK, corrections)
        return model

    def logits(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            output = model.eval()(
                input_ids=self.batch.input_ids, attention_mask=self.batch.attention_mask
            )
        logits: Tensor = output.logits
        return logits[self.batch.attention_mask.bool()] if logits.dim() == 3 else logits


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Setting:
    return Setting(make_context(bert_folder, "classification"))


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Setting:
    return Setting(make_context(llama_folder, "language-modelling"))


@pytest.fixture(params=["bert", "llama"])
def setting(request: pytest.FixtureRequest) -> Setting:
    chosen: Setting = request.getfixturevalue(request.param)
    return chosen


def halves(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (
            layer.lora_A[ADAPTER].weight.detach().clone(),
            layer.lora_B[ADAPTER].weight.detach().clone(),
        )
        for name, layer in lora_layers(model).items()
    }


def batch_of(ids: list[list[int]], mask: list[list[int]]) -> Batch:
    return Batch(torch.tensor(ids), torch.tensor(mask), torch.zeros(len(ids)), np.arange(len(ids)))


def spd(size: int, generator: torch.Generator) -> Tensor:
    """A second moment with eigenvalues over four orders of magnitude."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return basis @ torch.diag(torch.logspace(0, -4, size)) @ basis.T


def weighted_error(error: Tensor, moment: Tensor) -> float:
    return float(((error.double() @ moment.double()) * error.double()).sum())


def test_moments_of_known_inputs() -> None:
    """(1, 0) and (0, 2) are tokens, (5, 5) stands under the padding."""
    batches = [batch_of([[0, 1, 2]], [[1, 1, 0]]), batch_of([[1, 1], [0, 2]], [[1, 1], [1, 0]])]
    moments = second_moments(Toy(), ("reader", "twin", "pooler"), batches, CPU)

    torch.testing.assert_close(moments["reader"], torch.tensor([[2.0, 0], [0, 12]]) / 5)
    torch.testing.assert_close(moments["twin"], torch.tensor([[1.0, 0], [0, 8]]) / 3)
    torch.testing.assert_close(moments["pooler"], torch.tensor([[2.0, 0], [0, 4]]) / 3)


@pytest.mark.parametrize("name", ["idle", "words"])
def test_a_module_without_vectors_to_read_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"`names` must be linear layers that run .* got {name}"):
        second_moments(Toy(), ("reader", name), [batch_of([[0]], [[1]])], CPU)


def test_padding_does_not_count(setting: Setting) -> None:
    ids, mask = setting.batch.input_ids, setting.batch.attention_mask
    zeros = torch.zeros(len(ids), 4, dtype=ids.dtype)
    wider = Batch(torch.cat([ids, zeros], 1), torch.cat([mask, zeros], 1), ids, ROWS)
    padded = second_moments(setting.context.base, setting.names, [wider], CPU)

    for name, moment in setting.moments.items():
        torch.testing.assert_close(padded[name], moment, rtol=1e-4, atol=1e-5)


def test_batches_add_up(setting: Setting) -> None:
    task = setting.context.task
    parts = [collate(task.train, ROWS[start : start + 7], task.pad_id) for start in range(0, 24, 7)]
    moments = second_moments(setting.context.base, setting.names, parts, CPU)

    for name, moment in setting.moments.items():
        torch.testing.assert_close(moments[name], moment, rtol=1e-4, atol=1e-5)


def test_modules_with_one_input_share_one_matrix(bert: Setting, llama: Setting) -> None:
    def groups(moments: Moments) -> set[tuple[str, ...]]:
        shared: dict[int, list[str]] = {}
        for name, moment in moments.items():
            shared.setdefault(id(moment), []).append(name.rpartition(".")[2])
        return {tuple(names) for names in shared.values()}

    assert groups(bert.moments) == {("query", "key", "value"), ("dense",)}
    assert groups(llama.moments) == {
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_base_is_left_as_it_was(bert_folder: Path, training: bool) -> None:
    base = make_context(bert_folder, "classification").base.train(training)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    name = "bert.encoder.layer.0.attention.self.query"
    second_moments(base, (name,), [batch_of([[4, 5]], [[1, 1]])], CPU)

    assert base.training == training
    assert not base.get_submodule(name)._forward_pre_hooks
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())


def test_the_correction_of_a_known_error() -> None:
    """The plain norm would correct 3, but the inputs make 2 x 2 of the 2."""
    error, moment = torch.diag(torch.tensor([3.0, 2.0])), torch.diag(torch.tensor([1.0, 4.0]))
    a, b = starts._correction(error, torch.zeros(2, 2), Factors(moment), 1)

    torch.testing.assert_close(b @ a, torch.diag(torch.tensor([0.0, 2.0])))
    # The usual mean square is (1 + 4) / (3 x 2), and A's only entry meets a second moment of 4.
    assert float(a.norm()) == pytest.approx((5 / 24) ** 0.5)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (160, 160)])
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_the_correction_is_the_papers(shape: tuple[int, int], rank: int) -> None:
    """[R S]_r S^-1, in float64 with a full SVD."""
    generator = torch.Generator().manual_seed(1)
    weight, moment = torch.randn(shape, generator=generator), spd(shape[1], generator)
    stored = weight + 0.3 * torch.randn(shape, generator=generator)
    a, b = starts._correction(weight, stored, Factors(moment), rank)

    values, vectors = torch.linalg.eigh(moment.double())
    root = vectors @ values.sqrt().diag() @ vectors.T
    u, s, vt = torch.linalg.svd((weight - stored).double() @ root, full_matrices=False)
    theirs = (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(root)
    error = weight - stored
    best = weighted_error(error - theirs, moment)
    assert weighted_error(error - b @ a, moment) == pytest.approx(best, rel=1e-4)
    torch.testing.assert_close((b @ a).double(), theirs, rtol=0.02, atol=0.02)


def test_nothing_of_the_same_rank_is_better() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, moment = torch.randn(64, 48, generator=generator), spd(48, generator)
    error = 0.3 * torch.randn(64, 48, generator=generator)
    a, b = starts._correction(weight, weight - error, Factors(moment), 4)
    ours = weighted_error(error - b @ a, moment)

    u, s, vt = torch.linalg.svd(error)
    assert ours < weighted_error(error - (u[:, :4] * s[:4]) @ vt[:4], moment)
    for size in (1e-3, 1e-2, 0.1) * 20:
        moved = [
            half + size * half.std() * torch.randn(half.shape, generator=generator)
            for half in (a, b)
        ]
        assert ours < weighted_error(error - moved[1] @ moved[0], moment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_what_a_layer_computes_with_is_read(
    bert_folder: Path, bits: int, dtype: torch.dtype
) -> None:
    setting = Setting(make_context(bert_folder, "classification"))
    name = setting.names[0]
    setting.context.base.get_submodule(name).get_parameter("bias").data.fill_(0.5)
    layer = lora_layers(setting.built(bits, 4, dtype))[name].get_base_layer()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        before = layer(x)
        weight = layer.dequantised().float()
        after = layer(x)

    assert torch.equal(before, after)
    assert weight.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    expected = nn.functional.linear(x.float(), weight, layer.bias.float())
    torch.testing.assert_close(after.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [2, 4])
def test_at_full_rank_the_outputs_come_back(setting: Setting, bits: int) -> None:
    """All modules of the tiny models have 64 features on one side at least."""
    model = setting.initialise(setting.built(bits, 64))
    for name, (ours, base, plain) in outputs(setting, model).items():
        lost, left = (ours - plain).norm(), (ours - base).norm()
        assert left < 2e-3 * base.norm(), name
        assert left < 0.05 * lost, name


def outputs(setting: Setting, model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Outputs with adapter, of the base and without adapter, on the base's own inputs."""
    found = {}
    layers = lora_layers(model)

    def compare(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer = layers[name]
        found[name] = (layer(args[0]), output, layer.get_base_layer()(args[0]))

    handles = [
        setting.context.base.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: compare(name, module, args, output)
        )
        for name in layers
    ]
    setting.logits(setting.context.base)
    for handle in handles:
        handle.remove()
    mask = setting.batch.attention_mask.bool()
    return {name: tuple(t[mask] for t in each) for name, each in found.items()}  # type: ignore[misc]


@pytest.mark.parametrize("bits", [2, 3])
def test_outputs_come_nearer_to_those_of_the_base(setting: Setting, bits: int) -> None:
    plain, model = setting.built(bits, 8), setting.initialise(setting.built(bits, 8))
    for name, (ours, base, without) in outputs(setting, model).items():
        assert (ours - base).norm() < 0.9 * (without - base).norm(), name

    logits = setting.logits(setting.context.base)
    distances = [float((setting.logits(m) - logits).norm()) for m in (model, plain)]
    assert distances[0] < 0.9 * distances[1]


def test_ranks_are_kept(setting: Setting) -> None:
    ranks = (0, 2, 4, 8, 16, 32)
    choices = {n: Choice(2, ranks[i % 6]) for i, n in enumerate(setting.names)}
    model = setting.initialise(setting.mixed(choices))

    assert {name: len(a) for name, (a, _) in halves(model).items()} == {
        name: choice.rank for name, choice in choices.items() if choice.rank
    }


def test_sixteen_bits_keep_pefts_start(setting: Setting) -> None:
    choices = {n: Choice((16, 2)[i % 2], 4) for i, n in enumerate(setting.names)}
    before = halves(setting.mixed(choices))
    for name, after in halves(setting.initialise(setting.mixed(choices))).items():
        kept = choices[name].bits == 16
        same = [torch.equal(x, y) for x, y in zip(before[name], after, strict=True)]
        assert same == [kept, kept], name


def test_a_cached_correction_serves_every_rank(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Corrections()
    ranks = (4, 8, 4, 2)
    fresh = [halves(setting.initialise(setting.built(2, rank))) for rank in ranks]
    setting.initialise(setting.built(2, ranks[0]), cache)
    monkeypatch.setattr(starts, "_correction", None)
    for rank, expected in zip(ranks, fresh, strict=True):
        cached = halves(setting.initialise(setting.built(2, rank), cache))
        for name, (a, b) in expected.items():
            assert torch.equal(a, cached[name][0])
            assert torch.equal(b, cached[name][1])
    assert cache.made == len(setting.names)


def test_a_rank_above_the_cached_ones_is_computed(bert: Setting) -> None:
    cache = Corrections()
    bert.initialise(bert.built(2, 4), cache)
    expected, found = (halves(bert.initialise(bert.built(2, 40), c)) for c in (None, cache))

    assert all(torch.equal(expected[name][1], b) for name, (_, b) in found.items())
    assert max(len(a) for a, _ in cache._known.values()) == 32


def test_other_bits_are_another_entry_of_the_cache(bert: Setting) -> None:
    cache = Corrections()
    for bits in (2, 3):
        expected = halves(bert.initialise(bert.built(bits, 4)))
        cached = halves(bert.initialise(bert.built(bits, 4), cache))
        assert all(torch.equal(expected[name][1], b) for name, (_, b) in cached.items())
    assert cache.made == 2 * len(bert.names)


def test_torchs_generator_is_left_alone(bert: Setting) -> None:
    model = bert.built(2, 4)
    before = torch.get_rng_state()
    bert.initialise(model)
    initialise_eva(model, second_moments(bert.context.base, bert.names, [bert.batch], CPU))

    assert torch.equal(before, torch.get_rng_state())


def test_eva_starts_along_the_inputs(setting: Setting) -> None:
    model = setting.initialise(setting.built(4, 8))
    initialise_eva(model, setting.moments)
    for name, (a, b) in halves(model).items():
        moment = setting.moments[name].double()
        usual = moment.trace() / (3 * len(moment))
        response = (a.double() @ moment @ a.double().T).diagonal()
        torch.testing.assert_close(response, usual.expand(8), rtol=0.02, atol=0)
        a = nn.functional.normalize(a)
        torch.testing.assert_close(a @ a.T, torch.eye(8), rtol=0, atol=1e-5)
        assert not b.any()
        captured = (a.double() @ moment @ a.double().T).trace()
        best = torch.linalg.eigvalsh(moment)[-8:].sum()
        assert float(captured) == pytest.approx(float(best), rel=1e-3), name


def test_eva_changes_nothing_at_first(setting: Setting) -> None:
    plain, model = setting.built(4, 8), setting.built(4, 8)
    initialise_eva(model, setting.moments)

    assert torch.equal(setting.logits(plain), setting.logits(model))


def test_a_base_in_16_bits_gives_moments_in_float32(bert: Setting) -> None:
    base = copy.deepcopy(bert.context.base).to(torch.bfloat16)
    moments = second_moments(base, bert.names[:1], [bert.batch], CPU)

    assert moments[bert.names[0]].dtype == torch.float32
