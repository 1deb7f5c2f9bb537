"""Property: a train is one matrix as a pair, core by core, rebuilt and by tensorly; matrices are cut into trains."""

from math import prod

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.adapters.factors import Factors
from moesaic.adapters.published import PUBLISHED
from moesaic.ops import tensor_train

SHAPES = {
    f"{row.name} {row.rank} {target}": (Factors(*own), row.rank)
    for row in PUBLISHED
    for target, own in row.shapes.items()
}
LARGE = {"llama-3-70b", "llama-3-8b", "llama-3.2-3b"}
SHAPES |= {
    "one core a side": (Factors((6,), (5,)), 3),
    "an odd number": (Factors((4, 3), (5,)), 2),
    "one against three": (Factors((7,), (2, 3, 2)), 2),
    "rank one": (Factors((3, 2), (2, 5)), 1),
    "factors of one": (Factors((3, 1), (1, 4)), 2),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def cores_of(factors: Factors, rank: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[list[Tensor]]:
    """Random cores that keep lengths, so that products of many are of size 1."""
    generator = torch.Generator().manual_seed(seed)
    sides = factors.shapes(rank)
    return [[torch.randn(s, generator=generator, dtype=dtype) / s[0] ** 0.5 for s in side] for side in sides]


def core_by_core(x: Tensor, inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
    """The published contraction: every core takes the last digit of the inputs, or appends one of the outputs."""
    digits = [core.shape[1] for core in inputs]
    state = x.reshape(*x.shape[:2], *reversed(digits))[:, None]
    for core in inputs:
        state = torch.einsum("br...m,rmp->bp...", state, core)
    for core in outputs:
        state = torch.einsum("br...,rnp->bp...n", state, core)
    return state.reshape(*x.shape[:2], -1)


def rebuilt(inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
    """The matrix (o, i), as its definition has it: digits m_p ... m_1 of the inputs, n_1 ... n_q of the outputs."""
    whole = inputs[0]
    for core in (*inputs[1:], *outputs):
        whole = torch.tensordot(whole, core, dims=1)
    whole, p = whole[0, ..., 0], len(inputs)
    whole = whole.permute(*reversed(range(p)), *range(p, whole.ndim))
    return whole.reshape(prod(whole.shape[:p]), -1).t()


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_pair_is_the_train_core_by_core_and_so_are_its_gradients(shape, dtype):
    """With the matrix itself left out, which of the largest published models would be as large as theirs."""
    factors, rank = shape
    x = torch.randn(2, 3, factors.sizes[0], generator=torch.Generator().manual_seed(1), dtype=dtype, requires_grad=True)
    cores = cores_of(factors, rank, dtype)
    parameters = [core.requires_grad_() for side in cores for core in side]
    a, b = tensor_train.pair(*cores)
    assert a.shape == (rank, factors.sizes[0]) and b.shape == (rank, factors.sizes[1])
    found, expected = x @ a.t() @ b, core_by_core(x, *cores)
    close(found, expected, TOLERANCE[dtype])
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), [x, *parameters]),
        torch.autograd.grad((expected * weight).sum(), [x, *parameters]),
        strict=True,
    ):
        close(one, other, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", [name for name in SHAPES if name.split()[0] not in LARGE])
def test_a_pair_is_the_rebuilt_matrix_and_so_are_its_gradients(name, dtype):
    factors, rank = SHAPES[name]
    cores = cores_of(factors, rank, dtype)
    parameters = [core.requires_grad_() for side in cores for core in side]
    a, b = tensor_train.pair(*cores)
    found, expected = b.t() @ a, rebuilt(*cores)
    close(found, expected, TOLERANCE[dtype])
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        close(one, other, TOLERANCE[dtype])


def test_the_first_factor_of_the_inputs_is_the_fastest_digit_and_of_the_outputs_the_slowest():
    """Cores of ones but for one input digit and one output digit: which column, which row."""
    cores = cores_of(Factors((2, 3), (2, 3)), 1)
    for core in (core for side in cores for core in side):
        core.zero_()[:, 0] = 1
    cores[0][0].zero_()[:, 1] = 1
    cores[1][0].zero_()[:, 1] = 1
    a, b = tensor_train.pair(*cores)
    assert (b.t() @ a).nonzero().tolist() == [[3, 1]]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_of_any_shape_the_pair_is_the_train(inputs, outputs, rank, seed):
    factors = Factors(tuple(inputs), tuple(outputs))
    cores = cores_of(factors, rank, seed=seed)
    matrix = rebuilt(*cores)
    a, b = tensor_train.pair(*cores)
    torch.testing.assert_close(b.t() @ a, matrix, rtol=1e-12, atol=1e-12)
    x = torch.randn(1, 2, factors.sizes[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(core_by_core(x, *cores), x @ matrix.t(), rtol=1e-12, atol=1e-12)


def test_tensorly_makes_the_same_matrix_of_the_cores():
    for factors, rank in (SHAPES["llama-3.2-1b 5 v_proj"], SHAPES["an odd number"], SHAPES["rank one"]):
        cores, p = cores_of(factors, rank), len(factors.inputs)
        whole = torch.from_numpy(tensorly.tt_to_tensor([core.numpy() for side in cores for core in side]))
        whole = whole.permute(*reversed(range(p)), *range(p, whole.ndim)).reshape(factors.sizes)
        a, b = tensor_train.pair(*cores)
        close(b.t() @ a, whole.t(), 1e-12)
