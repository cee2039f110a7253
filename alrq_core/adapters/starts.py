"""Starts adapters from data: at the best correction towards given weights, or with EVA."""

import math
import zlib
from collections.abc import Callable, Container
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alrq_core.adapters.lora import ADAPTER, lora_layers
from alrq_core.data.fisher import Factors
from alrq_core.data.moments import Moments
from alrq_core.weights.tensor_files import TensorFiles

# The largest rank of the spaces; a larger one is computed each time.
CACHED_RANK = 32
# Misses 2e-4 of the energy that the exact eigenvectors capture at rank 32, 3e-7 at rank 8: the
# worst module of MiniLM-L6 at 2, 3 and 4 bits.
SUBSPACE_WIDTH = 2 * CACHED_RANK
SUBSPACE_ITERATIONS = 5
# Part of a module's output, as a norm. 16 bits lose 0.04 to 0.22 % of it in MiniLM-L6, 8 bits 0.3
# to 1.04 %, 4 bits 2.3 to 10.4 %.
NEGLIGIBLE_LOSS = 0.015
# Of the largest eigenvalue; float32 resolves nothing smaller.
EIGENVALUE_FLOOR = 1e-6


class Corrections:
    """A and B of the largest cached rank, B before scaling, computed once for every lower one.

    They hold for the weights that they lead to and for the moments of one base model.

    Attributes:
        made: That this object computed.
    """

    def __init__(self, files: TensorFiles | None = None) -> None:
        """Begin with none, or with those that other processes have kept in `files`."""
        self.made = 0
        self._files = files
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, key: str, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the halves that correct a module.

        Args:
            key: Of its codes: see `PackedCache.key`.
            make: Computes them.
        """
        if key not in self._known:
            kept = self._files.get(key) if self._files is not None else None
            if kept is not None:
                self._known[key] = kept["a"], kept["b"]
            else:
                self._known[key] = self._make(key, make)
        return self._known[key]

    def _make(self, key: str, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        self.made += 1
        a, b = make()
        if self._files is None:
            return a, b
        kept = self._files.keep(key, {"a": a, "b": b})
        return kept["a"], kept["b"]


def initialise_nested(model: nn.Module, seed: int) -> None:
    """Draw every adapter's A as LoRA does, the same for a seed whatever the allocation is.

    A module's rank-r adapter begins with the first r rows of its largest one, and other modules'
    ranks don't matter: trials of one seed differ by their allocations, and less by chance.
    """
    for name, layer in lora_layers(model).items():
        matrix: Tensor = layer.lora_A[ADAPTER].weight.data
        rank, width = matrix.shape
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        largest = torch.empty(max(rank, CACHED_RANK), width)
        nn.init.kaiming_uniform_(largest, a=math.sqrt(5), generator=generator)
        matrix.copy_(largest[:rank])


def initialise_towards(
    model: nn.Module,
    weight_of: Callable[[str], Tensor],
    factors_of: Callable[[str], Factors],
    key_of: Callable[[str], str],
    alpha_over_rank: float,
    corrections: Corrections,
    *,
    negligible: float = NEGLIGIBLE_LOSS,
    known: Container[str] = (),
) -> None:
    """Start each adapter at the rank-r correction that brings its module's output nearest.

    Nearest to that of the weight V which is wanted: the base's, or a fine-tune's. The correction C
    minimises the mean of |L^T (V - Q(W) - C) x|^2 over the inputs x. With L = 1 that is exact QERA
    (arXiv:2410.06040, section 3), the same as CLoQ (arXiv:2501.18475, section 3); with both factors
    of the Fisher information it is what the answers notice that comes nearest. How it is split into
    two halves is free: see `_usual_response`. Directions beyond the size of the module, and modules
    that lost next to nothing, keep the start that they have.

    Args:
        model: As built; its adapters are overwritten in place.
        weight_of: Module name to the weight that is wanted, out x in, float32.
        factors_of: Module name to what its errors cost.
        key_of: Module name to the key of its codes.
        alpha_over_rank: LoRA's scaling.
        corrections: Of earlier calls, with any rank; new ones are added.
        negligible: Part of the output, as a norm, below which nothing is corrected.
        known: Modules that are left as they are.
    """
    for name, layer in lora_layers(model).items():
        if name in known:
            continue
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        cached = corrections if len(a) <= CACHED_RANK else Corrections()
        frozen: Any = layer.get_base_layer()
        with torch.no_grad():
            narrow, wide = cached.of(
                key_of(name),
                partial(
                    correct, name, weight_of, frozen.dequantised, factors_of, len(a), negligible
                ),
            )
            rank = min(len(a), len(narrow))
            a[:rank] = narrow[:rank]
            b[:, :rank] = wide[:, :rank] / alpha_over_rank


def initialise_eva(model: nn.Module, moments: Moments) -> None:
    """Start each adapter's A along the leading right-singular vectors of its inputs, B at zero.

    EVA (arXiv:2410.07170, section 3) with the ranks that the adapters have: it is the allocation
    that distributes them. PEFT approximates these vectors batch by batch, until they settle, and
    takes the mean out first (its `IncrementalPCA`), which swaps one of 8 directions in MiniLM-L6.
    The attention mask decides what is padding: no `use_label_mask` needs to be set. The paper's
    vectors have length 1; these have the length of `_usual_response`.

    Args:
        model: As built; its adapters are overwritten in place.
        moments: Of all modules with an adapter.
    """
    for name, layer in lora_layers(model).items():
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        moment = moments[name].to(a.device)
        with torch.no_grad():
            values, vectors = leading_eigenvectors(partial(torch.matmul, moment), moment, len(a))
            lengths = (_usual_response(moment) / _floored(values)).sqrt()
            a[: vectors.shape[1]] = (vectors * lengths).T
            b.zero_()


def correct(
    name: str,
    weight_of: Callable[[str], Tensor],
    dequantised: Callable[[], Tensor],
    factors_of: Callable[[str], Factors],
    rank: int,
    negligible: float,
) -> tuple[Tensor, Tensor]:
    """Return the halves of a module's correction, as large as is cached or larger.

    Args:
        name: Of the module.
        weight_of: Module name to the weight that is wanted.
        dequantised: Returns its weight as it is stored, out x in.
        factors_of: Module name to what its errors cost.
        rank: That is wanted.
        negligible: See `initialise_towards`.
    """
    stored, rank = dequantised().float().contiguous(), max(rank, CACHED_RANK)
    return _correction(weight_of(name).to(stored), stored, factors_of(name), rank, negligible)


def _correction(
    weight: Tensor,
    stored: Tensor,
    factors: Factors,
    rank: int,
    negligible: float = NEGLIGIBLE_LOSS,
) -> tuple[Tensor, Tensor]:
    """Return A and B of the best correction, B before scaling; both empty where none is needed.

    With R = L^T (W - Q(W)), S^2 the second moment and R S = U Sigma V^T, the solution
    L^-T [R S]_r S^-1 = L^-T U_r Sigma_r V_r^T S^-1 is L^-T U_r U_r^T R: neither S nor its inverse
    is needed, and a singular moment does no harm. U holds the eigenvectors of R S^2 R^T.
    """
    moment, lower = factors.inputs.to(stored), factors.outputs
    lost = weight - stored
    if lower is not None:
        lower = lower.to(stored)
        weight, lost = lower.T @ weight, lower.T @ lost
    weighted = lost @ moment
    signal = ((weight @ moment) * weight).sum()
    if not (weighted * lost).sum() > negligible**2 * signal:
        # There is nothing to win, and halves as small as a rounding error would get gradients as
        # small: each half's gradient is a multiple of the other.
        return lost.new_empty(0, lost.shape[1]), lost.new_empty(lost.shape[0], 0)
    values, vectors = leading_eigenvectors(lambda x: weighted @ (lost.T @ x), lost, rank)
    # The eigenvalue is the mean square of the row's product with the inputs.
    root = (_floored(values) / _usual_response(moment)).sqrt()
    a, b = (vectors / root).T @ lost, vectors * root
    return a, b if lower is None else torch.linalg.solve_triangular(lower.T, b, upper=True)


def _usual_response(moment: Tensor) -> Tensor:
    """Return the mean square of a row of A times the inputs as LoRA usually starts.

    There each entry has the variance 1 / (3 in). Other starts get rows of that response, so that a
    step moves the model as far: with directions of length 1, or singular values split evenly, one
    to two of three runs of MiniLM at 2 bits and a learning rate of 1e-3 ended where they began.
    """
    return moment.trace() / (3 * len(moment))


def _floored(values: Tensor) -> Tensor:
    return values.clamp_min(EIGENVALUE_FLOOR * float(values[0]))


def leading_eigenvectors(
    product: Callable[[Tensor], Tensor], like: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues of a symmetric operator, and their vectors as columns.

    Subspace iteration from a fixed start (Halko et al., arXiv:0909.4061, algorithm 4.4), without
    forming the operator. `torch.svd_lowrank` is as exact, but needs the operator as a matrix, which
    takes it 1.4 times as long on MiniLM-L6, and draws from the generator of the trial.

    Args:
        product: The operator on the columns of a matrix.
        like: A matrix with as many rows as the operator, on the same device.
        count: How many, as far as there are so many.
    """
    size, width = len(like), max(2 * count, SUBSPACE_WIDTH)
    start = torch.randn(size, min(size, width), generator=torch.Generator().manual_seed(0))
    basis = _orthonormal(start.to(like))
    for _ in range(SUBSPACE_ITERATIONS):
        basis = _orthonormal(product(basis))
    projected = basis.T @ product(basis)
    # Small, and MPS has no such function.
    values, rotation = (x.to(basis) for x in torch.linalg.eigh((projected + projected.T).cpu() / 2))
    return values.flip(0)[:count], (basis @ rotation).flip(1)[:, :count]


def _orthonormal(columns: Tensor) -> Tensor:
    # Torch has it for MPS since 2.12.
    place = "cpu" if columns.device.type == "mps" else columns.device
    found: Tensor = torch.linalg.qr(columns.to(place)).Q
    return found.to(columns.device)
