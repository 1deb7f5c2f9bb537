"""Times several contenders in turns, so that what disturbs the machine disturbs all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int = 9, inner: int = 10) -> dict[str, float]:
    """Median seconds of one call of each, over `rounds` rounds of `inner` calls; the first round is a warm-up."""
    laps: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            for _ in range(inner):
                call()
            laps[name].append((time.perf_counter() - started) / inner)
    return {name: statistics.median(times[1:]) for name, times in laps.items()}
