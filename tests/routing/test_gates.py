"""Do Gates group decisions without losing, inventing or reordering any? As properties over all small batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import GatesError
from moesaic.routing import Gates, Routing, require

quick = settings(max_examples=40, deadline=None)
WEIGHTS = [0.0, 0.0, 0.0, 0.25, 0.5, 1.0]


@st.composite
def matrices(draw, fewest: int = 0) -> torch.Tensor:
    n, e = draw(st.integers(fewest, 6)), draw(st.integers(1, 5))
    values = draw(st.lists(st.sampled_from(WEIGHTS), min_size=n * e, max_size=n * e))
    return torch.tensor(values, dtype=torch.float64).reshape(n, e)


@st.composite
def choices(draw) -> tuple[torch.Tensor, torch.Tensor, int]:
    n, e = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    k = draw(st.integers(1, e))
    experts = torch.tensor([draw(st.permutations(range(e)))[:k] for _ in range(n)])
    values = draw(st.lists(st.sampled_from(WEIGHTS[3:]), min_size=n * k, max_size=n * k))
    return experts, torch.tensor(values, dtype=torch.float64).reshape(n, k), e


def rebuilt(gates: Gates) -> torch.Tensor:
    weights = torch.zeros_like(gates.weights)
    for expert, rows, values in gates.groups():
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            weights[row, expert] += value
    return weights


def listed(gates: Gates) -> list[tuple[int, list[int], list[float]]]:
    return [(expert, rows.tolist(), values.tolist()) for expert, rows, values in gates.groups()]


@quick
@given(matrices())
def test_groups_hold_every_weight_once_sorted_by_expert(weights):
    gates = Gates.of(weights)
    assert rebuilt(gates).equal(weights)
    assert gates.experts.tolist() == sorted(gates.experts.tolist())
    expected = [(e, [r for r in range(len(weights)) if weights[r, e]]) for e in range(weights.shape[1])]
    assert [(e, rows) for e, rows, _ in listed(gates)] == [(e, rows) for e, rows in expected if rows]
    assert gates.sizes == tuple(len(rows) for _, rows in expected) == tuple(gates.counts.tolist())
    assert gates.present == tuple(e for e, rows in expected if rows)
    assert (gates.num_rows, gates.num_experts) == tuple(weights.shape)


@quick
@given(choices())
def test_gates_that_only_the_device_knows_give_the_same_groups(choice):
    experts, values, e = choice
    weights = torch.zeros(len(experts), e, dtype=torch.float64)
    for row in range(len(experts)):
        for place, expert in enumerate(experts[row].tolist()):
            weights[row, expert] = values[row, place]
    gates, known = Gates.of_choices(experts, values, e), Gates.of(weights)
    assert gates.sizes is None, "no number was read on the host"
    assert gates.weights.equal(weights)
    assert listed(gates) == listed(known)
    assert gates.host_sizes() == known.sizes and gates.present == known.present
    assert gates.counts.equal(known.counts)


def test_an_expert_chosen_twice_by_a_row_weighs_twice():
    gates = Gates.of_choices(torch.tensor([[1, 1], [0, 1]]), torch.tensor([[0.25, 0.5], [1.0, 2.0]]), 3)
    assert gates.weights.tolist() == [[0, 0.75, 0], [1.0, 2.0, 0]]
    assert rebuilt(gates).equal(gates.weights)


@quick
@given(matrices(fewest=1), st.data())
def test_selected_rows_are_those_rows_in_the_order_given(weights, data):
    rows = data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=8))
    gates = Gates.of(weights).select(rows)
    assert gates.weights.equal(weights[rows]) and rebuilt(gates).equal(weights[rows])
    assert sum(gates.sizes) == len(gates.rows) == int((weights[rows] != 0).sum())


@quick
@given(matrices(), st.integers(1, 3))
def test_repeated_rows_stand_side_by_side(weights, n):
    gates = Gates.of(weights).select([row for row in range(len(weights)) for _ in range(n)])
    expected = torch.zeros(len(weights) * n, weights.shape[1], dtype=torch.float64)
    for row in range(len(expected)):
        expected[row] = weights[row // n]
    assert gates.weights.equal(expected) and rebuilt(gates).equal(expected)


def test_weights_keep_their_gradient_through_both_ways_of_grouping():
    weights = torch.tensor([[0.5, 0.5, 0], [0, 0, 2.0]], requires_grad=True)
    (Gates.of(weights).values * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert weights.grad.tolist() == [[1, 10, 0], [0, 0, 100]]
    values = torch.tensor([[0.3, 0.7]], requires_grad=True)
    gates = Gates.of_choices(torch.tensor([[2, 0]]), values, 3)
    (gates.values * torch.tensor([1.0, 10.0])).sum().backward()
    assert values.grad.tolist() == [[10, 1]]
    values.grad = None
    (gates.weights * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert values.grad.tolist() == [[100, 1]]


@pytest.mark.parametrize("expert", [-1, 0, 2])
def test_one_expert_for_all_rows(expert):
    like = torch.zeros(1, dtype=torch.float64)
    gates = Gates.one(expert, 4, 3, like)
    assert gates.weights.dtype == like.dtype
    assert listed(gates) == ([] if expert < 0 else [(expert, [0, 1, 2, 3], [1.0] * 4)])


def test_require_returns_fitting_gates_and_names_both_sizes_otherwise():
    gates = Gates.one(0, 2, 1, torch.zeros(1))
    assert require(gates, torch.zeros(2, 5)) is gates
    with pytest.raises(GatesError, match=r"expected 3 rows; got 2 rows; use gates\.select"):
        require(gates, torch.zeros(3, 5))
    with pytest.raises(GatesError, match="without gates"):
        require(None, torch.zeros(3, 5))


def test_routing_knows_its_best_expert_and_who_abstains():
    weights = torch.tensor([[0.2, 0.8], [0, 0], [1.0, 0]])
    routing = Routing(weights, weights.log())
    assert routing.best.tolist() == [1, -1, 0]
    swapped = routing[torch.tensor([2, 0])]
    assert swapped.best.tolist() == [0, 1]
    whole = Routing.cat([swapped, routing[1:2]])
    assert whole.best.tolist() == [0, 1, -1]
    assert whole.logits.equal(weights.log()[[2, 0, 1]])


def test_what_the_chosen_experts_leave_of_1_is_the_bases_share():
    gates = Gates.of(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.25, 0.0, 0.5]]))
    assert gates.with_base((0, 1, 2)).weights.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 1], [0.25, 0, 0.5, 0.25]]
    some = gates.with_base((2, 0))
    assert some.weights.tolist() == [[0, 0.5, 0.5], [0, 0, 1], [0.5, 0.25, 0.25]]
    assert some.sizes == (1, 2, 3)


def test_ready_gates_hold_the_bases_share_for_all_layers_also_after_rows_leave_or_come(monkeypatch):
    weights = torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0.25, 0, 0.5]])
    gates = Gates.of(weights).ready([(2, 0), (1,)])
    some = gates.with_base((2, 0))
    assert some is gates.with_base((2, 0)) and some.weights.equal(Gates.of(weights).with_base((2, 0)).weights)
    left, more = gates.select([2, 0]), Gates.cat([gates, gates])
    monkeypatch.setattr(Gates, "of", None)
    assert left.with_base((1,)).weights.tolist() == [[0, 1], [0.5, 0.5]]
    assert more.with_base((1,)).weights.tolist() == [[0.5, 0.5], [0, 1], [0, 1]] * 2


def test_weights_that_sum_to_1_but_for_rounding_leave_the_base_nothing():
    rounded = torch.tensor([[0.3, 0.7]], dtype=torch.float32).softmax(-1) * (1 + 3e-7)
    assert Gates.of(rounded.double()).with_base((0, 1)).sizes == (1, 1, 0)
    short = torch.tensor([[0.9, 0.0999]], dtype=torch.float64)
    assert Gates.of(short).with_base((0, 1)).sizes == (1, 1, 1)
    coarse = torch.tensor([[2.0, 1.0, 0.5, 0.1]]).softmax(-1).bfloat16()
    assert Gates.of(coarse).with_base((0, 1, 2, 3)).sizes == (1, 1, 1, 1, 0)


def test_dense_gates_hold_every_pair_those_of_weight_0_too():
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    gates = Gates.dense(weights)
    assert gates.present == (0, 1, 2) and gates.host_sizes() == (2, 2, 2) and gates.each is None
    assert [(e, rows.tolist(), values.tolist()) for e, rows, values in gates.groups()] == [
        (0, [0, 1], [1.0, 0.5]),
        (1, [0, 1], [0.0, 0.5]),
        (2, [0, 1], [0.0, 0.0]),
    ]
    assert gates.experts.tolist() == [0, 0, 1, 1, 2, 2] and gates.counts.tolist() == [2, 2, 2]


def test_gates_of_another_type_hold_the_same_pairs():
    weights = torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0.25, 0, 0.5]])
    gates = Gates.of(weights).ready([(0, 1)])
    double = gates.to(torch.zeros((), dtype=torch.float64))
    assert gates.to(torch.zeros(())) is gates
    assert double.weights.dtype == double.values.dtype == double.with_base((0, 1)).weights.dtype == torch.float64
    assert listed(double) == listed(gates) and double.with_base((0, 1)) is double.completed[0, 1]
    chosen = Gates.of_choices(torch.tensor([[1], [0]]), torch.ones(2, 1), 2)
    assert listed(chosen.to(torch.zeros((), dtype=torch.float64))) == listed(chosen)
    assert Gates.dense(weights).to(torch.zeros((), dtype=torch.float64)).every
