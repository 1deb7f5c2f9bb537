"""Factors of a matrix's sizes for a tensor train: given by the user, published, or chosen here.

Knows nothing about tensors; `published` holds the factors of published models.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

from moesaic.adapters.published import PUBLISHED, ROLES, PublishedTTLoRA
from moesaic.errors import CompatibilityError


class Factors(NamedTuple):
    """Factors of a matrix's inputs and outputs, in the order of the cores (see `ops.tensor_train`)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def shapes(self, rank: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        ends = (1, *[rank] * (len(self.inputs) + len(self.outputs) - 1), 1)
        cores = list(zip(ends[:-1], (*self.inputs, *self.outputs), ends[1:], strict=True))
        return cores[: len(self.inputs)], cores[len(self.inputs) :]

    @property
    def sizes(self) -> tuple[int, int]:
        return prod(self.inputs), prod(self.outputs)

    def num_parameters(self, rank: int) -> int:
        return sum(prod(shape) for side in self.shapes(rank) for shape in side)


Choice = Literal["auto", "published"] | int | Mapping[str, Factors]
"""Chosen here, those of a published model with matrices of these sizes, the inner factor of two cores a side, or one
entry for each target."""


def factors_of(path: str, i: int, o: int, rank: int, choice: Choice) -> Factors:
    """Factors of the linear at `path`, from `i` to `o` numbers; CompatibilityError if none fit."""
    if not 1 <= rank <= min(i, o):
        expected = f"1 to {min(i, o)}, the largest rank of a matrix of {o} x {i}"
        raise CompatibilityError("an impossible rank", field=path, expected=expected, got=rank)
    if choice == "auto":
        return Factors(factorised(i, rank), factorised(o, rank)[::-1])
    target = path.rsplit(".", 1)[-1]
    if isinstance(choice, int):
        found = Factors((outer(path, i, choice), choice), (choice, outer(path, o, choice)))
    elif choice == "published":
        found = published_factors(path, target, i, o, rank)
    elif target in choice:
        found = choice[target]
    else:
        raise CompatibilityError("no factors for this target", field=path, expected=f"factors: {{{target}: ...}}")
    check(path, found, i, o, rank)
    return found


def outer(path: str, size: int, inner: int) -> int:
    """The factor at the end of the train, if the other one of its side is `inner`."""
    if inner < 1 or size % inner:
        expected = ", ".join(str(d) for d in range(1, min(size, 64) + 1) if size % d == 0)
        raise CompatibilityError("does not divide the matrix", field=path, expected=f"one of {expected}", got=inner)
    return size // inner


@lru_cache
def factorised(size: int, rank: int) -> tuple[int, ...]:
    """The factors of one side that need the fewest numbers in the cores, the largest at the end of the train.

    The end core holds f x r numbers and every other one r x f x r, so the end takes the divisor d that minimises
    d + r * (sum of the prime factors of the rest), the largest of several; it is never smaller than r, as a prime of
    the rest costs less there until it is. The rest are primes in falling order, with two 2s as a 4, which costs as much
    and saves a core. `rank` <= `size`.
    """
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    end = min(divisors, key=lambda d: (d + rank * sum(primes(size // d)), -d))
    rest = primes(size // end)
    twos = rest.count(2)
    inner = [*(f for f in rest if f > 2), *[4] * (twos // 2), *[2] * (twos % 2)]
    return end, *sorted(inner, reverse=True)


def primes(number: int) -> list[int]:
    found, factor = [], 2
    while factor * factor <= number:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return [*found, number] if number > 1 else found


def check(path: str, factors: Factors, i: int, o: int, rank: int) -> None:
    """Raise CompatibilityError for factors whose products are not the sizes, or a rank that no bond can have."""
    for side, size, given in (("inputs", i, factors.inputs), ("outputs", o, factors.outputs)):
        if not given or min(given) < 1 or prod(given) != size:
            what, got = f"the factors do not multiply to the {side} of the matrix", " x ".join(map(str, given))
            raise CompatibilityError(what, field=path, expected=size, got=f"{got} = {prod(given)}")
    whole, left = i * o, 1
    every = (*factors.inputs, *factors.outputs)
    for at, factor in enumerate(every[:-1]):
        left *= factor
        if rank > (most := min(left, whole // left)):
            what = f"an impossible rank: between the factors {factor} and {every[at + 1]} a train has at most {most}"
            hint = "use larger factors at the two ends, a smaller rank, or factors: auto"
            raise CompatibilityError(what, field=path, expected=f"<= {most}", got=rank, hint=hint)


def published_factors(path: str, target: str, i: int, o: int, rank: int) -> Factors:
    """The factors of a published model with such a matrix; of those published twice, preferably of the same rank."""
    role = ROLES.get(target)
    fitting = [row for row in PUBLISHED if role and (row.sizes(role) == (i, o))]
    if not fitting:
        expected = "; ".join(dict.fromkeys(described(row) for row in PUBLISHED))
        what, hint = f"no factors are published for a matrix of {o} x {i}", "use factors: auto, or give your own"
        raise CompatibilityError(what, field=path, expected=expected, hint=hint)
    row = next((row for row in fitting if row.rank == rank), fitting[0])
    return Factors(*row.shapes[row.target(role or "")])


def described(row: PublishedTTLoRA) -> str:
    """The matrices that a published model adapts: `llama-3-8b q_proj 4096 x 4096, v_proj 1024 x 4096`."""
    sizes = (f"{target} {prod(outputs)} x {prod(inputs)}" for target, (inputs, outputs) in row.shapes.items())
    return f"{row.name} {', '.join(sizes)}"
