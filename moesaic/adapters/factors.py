"""Into which factors the sizes of a matrix are cut for a tensor train: your own, published ones, or found here.

Knows nothing about tensors; what published models use stands in `published`.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

from moesaic.adapters.published import PUBLISHED, ROLES, PublishedTTLoRA
from moesaic.errors import CompatibilityError


class Factors(NamedTuple):
    """Numbers whose products are a matrix's inputs and outputs, in the order of the cores (see `ops.tensor_train`)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def shapes(self, rank: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """The shapes of the cores on either side, every bond but the first and the last being `rank`."""
        ends = (1, *[rank] * (len(self.inputs) + len(self.outputs) - 1), 1)
        cores = list(zip(ends[:-1], (*self.inputs, *self.outputs), ends[1:], strict=True))
        return cores[: len(self.inputs)], cores[len(self.inputs) :]

    @property
    def sizes(self) -> tuple[int, int]:
        """In and out of the matrix."""
        return prod(self.inputs), prod(self.outputs)

    def num_parameters(self, rank: int) -> int:
        return sum(prod(shape) for side in self.shapes(rank) for shape in side)


Choice = Literal["auto", "published"] | int | Mapping[str, Factors]
"""Found here, those of a published model with matrices of these sizes, of two cores a side the inner one's, or your own
by target."""


def factors_of(path: str, i: int, o: int, rank: int, choice: Choice) -> Factors:
    """The factors of the linear at `path`, from `i` to `o` numbers; CompatibilityError where there can be none."""
    if not 1 <= rank <= min(i, o):
        raise CompatibilityError(
            "an impossible rank",
            field=path,
            expected=f"1 to {min(i, o)}, the most that a matrix of {o} x {i} can have",
            got=rank,
        )
    target = path.rsplit(".", 1)[-1]
    if isinstance(choice, int):
        found = Factors((outer(path, i, choice), choice), (choice, outer(path, o, choice)))
        check(path, found, i, o, rank)
        return found
    if choice == "auto":
        return Factors(factorised(i, rank), factorised(o, rank)[::-1])
    if choice == "published":
        return published_factors(path, target, i, o, rank)
    if target not in choice:
        raise CompatibilityError("no factors for this target", field=path, expected=f"factors: {{{target}: ...}}")
    found = choice[target]
    check(path, found, i, o, rank)
    return found


def outer(path: str, size: int, inner: int) -> int:
    """What the core at the end of the train has to be where the other one of its side has the factor `inner`."""
    if inner < 1 or size % inner:
        expected = ", ".join(str(d) for d in range(1, min(size, 64) + 1) if size % d == 0)
        raise CompatibilityError("does not divide the matrix", field=path, expected=f"one of {expected}", got=inner)
    return size // inner


@lru_cache
def factorised(size: int, rank: int) -> tuple[int, ...]:
    """The factors of one side, the largest at the end of the train: those that need the fewest numbers in the cores.

    The end core holds f x r numbers and every other one r x f x r, so the end takes the divisor d that makes
    d + r * (sum of the prime factors of the rest) least, of several the largest; it is never smaller than r, as a prime
    of the rest costs less there until it is. The rest are primes in falling order, two 2s as a 4, which costs as much
    and saves a core. A prime stays whole. `rank` <= `size`.
    """
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    end = min(divisors, key=lambda d: (d + rank * sum(primes(size // d)), -d))
    rest = primes(size // end)
    twos = rest.count(2)
    inner = [*(f for f in rest if f > 2), *[4] * (twos // 2), *[2] * (twos % 2)]
    return end, *sorted(inner, reverse=True)


def primes(number: int) -> list[int]:
    """The prime factors of a number, rising, each as often as it divides."""
    found, factor = [], 2
    while factor * factor <= number:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return [*found, number] if number > 1 else found


def check(path: str, factors: Factors, i: int, o: int, rank: int) -> None:
    """Refuse factors that do not multiply to the matrix, and a rank that no bond between them can have."""
    for side, size, given in (("inputs", i, factors.inputs), ("outputs", o, factors.outputs)):
        if not given or min(given) < 1 or prod(given) != size:
            what, got = f"the factors do not multiply to the {side} of the matrix", " x ".join(map(str, given))
            raise CompatibilityError(what, field=path, expected=size, got=f"{got} = {prod(given)}")
    whole, left = i * o, 1
    every = (*factors.inputs, *factors.outputs)
    for at, factor in enumerate(every[:-1]):
        left *= factor
        if rank > (most := min(left, whole // left)):
            raise CompatibilityError(
                f"an impossible rank: between the factors {factor} and {every[at + 1]} a train has at most {most}",
                field=path,
                expected=f"<= {most}",
                got=rank,
                hint="larger factors at the two ends, a smaller rank, or factors: auto",
            )


def published_factors(path: str, target: str, i: int, o: int, rank: int) -> Factors:
    """Those of the published model that has such a matrix; of one that was published twice, those of the same rank."""
    role = ROLES.get(target)
    fitting = [row for row in PUBLISHED if role and (row.sizes(role) == (i, o))]
    if not fitting:
        raise CompatibilityError(
            f"no factors are published for a matrix of {o} x {i}",
            field=path,
            expected="; ".join(dict.fromkeys(described(row) for row in PUBLISHED)),
            hint="use factors: auto, or give your own",
        )
    row = next((row for row in fitting if row.rank == rank), fitting[0])
    found = Factors(*row.shapes[row.target(role or "")])
    check(path, found, i, o, rank)
    return found


def described(row: PublishedTTLoRA) -> str:
    """The matrices that a published model adapts: `llama-3-8b q_proj 4096 x 4096, v_proj 1024 x 4096`."""
    sizes = (f"{target} {prod(outputs)} x {prod(inputs)}" for target, (inputs, outputs) in row.shapes.items())
    return f"{row.name} {', '.join(sizes)}"
