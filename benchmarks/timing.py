"""Times several contenders in turns, so that what disturbs the machine disturbs all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int = 9, inner: int = 10) -> dict[str, float]:
    """Median seconds of one call of each, over `rounds` rounds of `inner` calls; the first round is a warm-up."""
    return {name: statistics.median(times) for name, times in laps(contenders, rounds, inner).items()}


def laps(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    inner: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """The seconds of one call of each in every round, the warm-up left out."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, call in contenders.items():
            started = clock()
            for _ in range(inner):
                call()
            found[name].append((clock() - started) / inner)
    return {name: times[1:] for name, times in found.items()}


def best_decile(times: list[float]) -> float:
    """What a tenth of the rounds stayed below: the machine when nobody else disturbed it."""
    return statistics.quantiles(times, n=10, method="inclusive")[0]
