"""Are sizes cut into factors by the documented rule, and are impossible ones refused by name?"""

import re
from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.adapters.factors import Factors, factorised, factors_of, primes
from moesaic.adapters.published import PUBLISHED
from moesaic.errors import CompatibilityError


@given(st.integers(1, 5000), st.data())
def test_any_size_is_factorised_for_any_rank_with_room_for_the_rank_at_the_end(size, data):
    rank = data.draw(st.integers(1, min(size, 64)))
    found = factorised(size, rank)
    assert prod(found) == size and found[0] >= rank and min(found) >= 1
    assert list(found[1:]) == sorted(found[1:], reverse=True)
    assert all(f == 4 or primes(f) == [f] for f in found[1:]), "more would cost more"


@given(st.integers(1, 400), st.integers(1, 12))
def test_no_other_factors_with_that_room_need_fewer_numbers(size, rank):
    if rank > size:
        return

    def numbers(factors: tuple[int, ...]) -> int:
        return rank * factors[0] + rank * rank * sum(factors[1:])

    def every(rest: int, least: int = 2) -> list[tuple[int, ...]]:
        if rest == 1:
            return [()]
        return [(f, *more) for f in range(least, rest + 1) if rest % f == 0 for more in every(rest // f, f)]

    others = [(end, *rest) for end in range(rank, size + 1) if size % end == 0 for rest in every(size // end)]
    assert numbers(factorised(size, rank)) == min(map(numbers, others))


@pytest.mark.parametrize(
    ("size", "rank", "factors"),
    [
        (768, 4, (16, 4, 4, 3)),
        (384, 8, (32, 4, 3)),
        (4096, 10, (32, 4, 4, 4, 2)),
        (7, 3, (7,)),
        (1, 1, (1,)),
        (2 * 509, 4, (509, 2)),
        (12, 12, (12,)),
    ],
)
def test_the_factors_of_a_size(size, rank, factors):
    assert factorised(size, rank) == factors


@given(st.integers(1, 10**6))
def test_prime_factors_multiply_to_the_number_and_are_prime(number):
    found = primes(number)
    assert prod(found) == number and found == sorted(found)
    assert all(f % d for f in found for d in range(2, int(f**0.5) + 1))


def test_outputs_mirror_inputs_so_that_the_largest_factors_stand_at_both_ends():
    found = factors_of("layers.0.query", 768, 3072, 4, "auto")
    assert found == Factors((16, 4, 4, 3), (3, 4, 4, 4, 16))
    assert found.sizes == (768, 3072)
    assert found.shapes(4) == (
        [(1, 16, 4), (4, 4, 4), (4, 4, 4), (4, 3, 4)],
        [(4, 3, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4), (4, 16, 1)],
    )
    assert found.num_parameters(4) == 64 + 16 * 11 + 16 * 15 + 64


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_what_is_found_here_is_never_refused_as_ones_own(i, o, rank):
    if rank <= min(i, o):
        found = factors_of("layers.0.q_proj", i, o, rank, "auto")
        assert factors_of("layers.0.q_proj", i, o, rank, {"q_proj": found}) == found


def test_a_number_is_the_inner_factor_of_two_on_either_side():
    assert factors_of("layers.0.value", 384, 1536, 2, 3) == Factors((128, 3), (3, 512))
    with pytest.raises(CompatibilityError, match=r"layers\.0\.value: does not divide the matrix; .*6, 8, 12.* got 5"):
        factors_of("layers.0.value", 384, 384, 2, 5)
    with pytest.raises(CompatibilityError, match="an impossible rank: between the factors 2 and 8"):
        factors_of("layers.0.value", 16, 16, 3, 8)


@pytest.mark.parametrize("row", PUBLISHED, ids=[f"{row.name} {row.rank}" for row in PUBLISHED])
def test_published_factors_are_found_by_the_sizes_of_the_matrix_and_by_the_rank(row):
    for target, (inputs, outputs) in row.shapes.items():
        for name in {"query": ("query", "q_proj"), "value": ("value", "v_proj")}.get(target, (target,)):
            found = factors_of(f"layers.3.x.{name}", prod(inputs), prod(outputs), row.rank, "published")
            assert found == (inputs, outputs)


def test_published_factors_at_another_rank_are_those_of_the_paper():
    assert factors_of("layers.0.q_proj", 2048, 2048, 3, "published") == ((16, 8, 4, 4), (4, 4, 8, 16))


BAD = {
    "inputs": (Factors((3, 5), (4, 4)), 2, r"multiply to the inputs of the matrix; expected 16; got 3 x 5 = 15"),
    "outputs": (Factors((4, 4), (3, 5)), 2, r"multiply to the outputs of the matrix; expected 16; got 3 x 5 = 15"),
    "none": (Factors((), (4, 4)), 1, r"multiply to the inputs"),
    "negative": (Factors((-4, -4), (4, 4)), 1, r"multiply to the inputs.*got -4 x -4 = 16"),
    "bond": (
        Factors((2, 8), (8, 2)),
        3,
        r"rank: between the factors 2 and 8 a train has at most 2; expected <= 2; got 3",
    ),
    "end": (Factors((8, 2), (8, 2)), 3, r"rank: between the factors 8 and 2 a train has at most 2"),
    "rank": (Factors((16,), (16,)), 17, r"an impossible rank; expected 1 to 16, .* 16 x 16; got 17"),
    "rank 0": (Factors((16,), (16,)), 0, r"an impossible rank; expected 1 to 16"),
}


@pytest.mark.parametrize(("factors", "rank", "says"), BAD.values(), ids=BAD)
def test_impossible_factors_are_refused_by_the_module_and_the_reason(factors, rank, says):
    path = "layers.7.self_attn.q_proj"
    with pytest.raises(CompatibilityError, match=rf"^{re.escape(path)}: .*{says}"):
        factors_of(path, 16, 16, rank, {"q_proj": factors})


@pytest.mark.parametrize(
    ("target", "choice", "says"),
    [
        (
            "k_proj",
            "published",
            "no factors are published for a matrix of 768 x 768; expected roberta-base query 768 x 7",
        ),
        ("q_proj", {"v_proj": Factors((768,), (768,))}, "no factors for this target; expected factors: {q_proj: ...}"),
    ],
)
def test_a_target_without_factors_is_refused_by_name(target, choice, says):
    with pytest.raises(CompatibilityError, match=rf"layers\.0\.{target}: {re.escape(says)}"):
        factors_of(f"layers.0.{target}", 768, 768, 2, choice)


def test_every_cut_of_a_small_size_is_judged_as_its_unfoldings_allow():
    """By brute force: a bond's rank is at most the smaller side of the unfolding there."""
    for inputs, outputs, rank in product([(4,), (2, 2), (1, 4)], [(6,), (2, 3), (3, 2)], range(1, 5)):
        every = (*inputs, *outputs)
        allowed = all(rank <= min(prod(every[:k]), prod(every[k:])) for k in range(1, len(every)))
        try:
            factors_of("layers.0.q", 4, 6, rank, {"q": Factors(inputs, outputs)})
        except CompatibilityError:
            assert not allowed
        else:
            assert allowed
