"""Do parts go where they fit, and is what is fetched counted as a simulation counts it?"""

import random
from dataclasses import replace

import pytest

from moesaic.compose.memory import LIBRARIES
from moesaic.compose.placement import (
    DISK,
    FETCHED,
    RAM,
    Demand,
    Host,
    Place,
    Placement,
    bytes_of,
    devices_of,
    placed,
    spread,
)
from moesaic.compose.plan import plan
from moesaic.errors import MemoryLimitError, RecipeError
from moesaic.residency.fetching import Budget, FetchedExperts, Whole

FOUR = dict.fromkeys("abcd", 10)


@pytest.mark.parametrize(
    ("text", "count"),
    [("17GB", 17 * 10**9), ("16GiB", 2**34), ("1.5 MB", 1_500_000), ("123456", 123456), (42, 42), ("2g", 2 * 10**9)],
)
def test_a_size_is_read(text, count):
    assert bytes_of(text, "ram") == count


@pytest.mark.parametrize("text", ["", "GB", "17", "-1GB", "17 gigabytes", "0GB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="ram: wrong size of memory"):
        bytes_of(text, "ram")


def test_devices_share_one_figure_or_have_their_own():
    assert devices_of("17GB", 2) == [8_500_000_000] * 2
    assert devices_of("9GB,8GB", 1) == devices_of([9 * 10**9, 8 * 10**9], 2) == [9 * 10**9, 8 * 10**9]
    assert devices_of(None, 2) == []
    with pytest.raises(RecipeError, match="expected 3 sizes; got 2"):
        devices_of("9GB,8GB", 3)


def test_all_fits_on_the_devices_first_to_last():
    found = placed(Demand(5, 5, FOUR), Host([30, 20], ram=0))
    assert [dict(place.holds) for place in found.places[:2]] == [
        {"shared and router": 5, "working memory": 5, "a": 10, "b": 10},
        {"c": 10, "d": 10},
    ]
    assert found.fits and not found.fetched and not found.seconds


def test_what_does_not_fit_lies_in_memory_then_on_disk_and_room_is_kept_for_it():
    found = placed(Demand(5, 5, FOUR), Host([20, 20], ram=10, bandwidth=(10.0, 2.0)))
    one, two, ram, disk = found.places
    assert one.holds == {"shared and router": 5, "working memory": 5, "a": 10}
    assert two.holds == {FETCHED: 10, "b": 10}
    assert (ram.name, ram.holds, disk.name, disk.holds) == (RAM, {"c": 10}, DISK, {"d": 10})
    # One request in two asks for c or d, and finds the wrong one of them there one time in two.
    assert found.fetched == pytest.approx(10 / 2 / 2)
    assert found.seconds == pytest.approx(10 / 4 / 2 / 10 + 10 / 4 / 2 / 2)


def test_what_is_short_is_counted():
    assert placed(Demand(50, 5, {}), Host([20])).missing == 35
    no_room = placed(Demand(15, 0, FOUR), Host([20]))
    assert no_room.missing == 5 and not no_room.fits


def test_without_devices_memory_comes_first_and_the_rest_is_mapped():
    found = placed(Demand(5, 0, FOUR), Host(ram=25))
    assert [place.name for place in found.places] == [RAM, DISK]
    assert found.places[1].holds == {"b": 10, "c": 10, "d": 10} and found.fits


def test_working_memory_is_kept_where_experts_have_caches_of_their_own():
    assert placed(Demand(1, 2, {"a": 3}, everywhere=True), Host([10, 10])).places[1].holds == {"working memory": 2}


class Ten(Whole):
    """An expert of ten bytes."""

    size = 10


@pytest.mark.slow
@pytest.mark.parametrize("active", [1, 2])
def test_what_is_fetched_is_what_a_simulation_fetches(active):
    experts = dict.fromkeys("abcdefgh", 10)
    found = placed(Demand(0, 0, experts, active), Host([40]))  # two or three stay; the others share what is left
    inside = [expert for expert in experts if expert in found.places[0].holds]
    running = FetchedExperts([Ten() for _ in experts], Budget(40, 0, 10 * active, lambda *_: 0), settled=True)
    rng, there, fetched, requests = random.Random(0), [], 0, 5000
    for _ in range(requests):
        chosen = rng.sample(sorted(experts), active)
        asked = [expert for expert in chosen if expert not in inside]
        fetched += 10 * len(set(asked) - set(there))
        there = [*(one for one in there if one not in asked), *asked][-active:]
        with running.using(["abcdefgh".index(expert) for expert in chosen]):
            assert len(running.here) <= 4
    assert found.fetched == pytest.approx(fetched / requests, rel=0.05)
    assert found.fetched == pytest.approx(running.traffic.bytes / requests, rel=0.05)


# --- several hosts ----------------------------------------------------------------------------------------------------


def holds(found) -> dict[str, dict[str, int]]:
    return {place.name: dict(place.holds) for place in found.places}


def test_whole_models_live_on_the_host_with_the_most_room_and_what_is_shared_on_the_first():
    found = spread(Demand(15, 2, FOUR, everywhere=True), Host([20, 27]), hosts=2)
    assert found.fits and not found.fetched
    assert holds(found) == {
        "host 0, device 0": {"shared and router": 15, "working memory": 2},
        "host 0, device 1": {"working memory": 2, "c": 10},
        "host 1, device 0": {"working memory": 2, "a": 10},
        "host 1, device 1": {"working memory": 2, "b": 10, "d": 10},
    }


def test_blocks_need_the_base_on_every_host():
    found = spread(Demand(5, 1, FOUR), Host([26]), hosts=2)
    shared = {"shared and router": 5, "working memory": 1}
    assert holds(found) == {
        "host 0, device 0": shared | {"a": 10, "c": 10},
        "host 1, device 0": shared | {"b": 10, "d": 10},
    }
    assert found.fits and not found.fetched


@pytest.mark.parametrize("active", [1, 2])
def test_what_several_hosts_fetch_is_what_a_simulation_fetches(active):
    experts = dict.fromkeys("abcdefgh", 10)
    found = spread(Demand(0, 0, experts, active), Host([20], bandwidth=(10.0, 2.0)), hosts=2)
    lives = {expert: index % 2 for index, expert in enumerate(experts)}
    rng, fetched, requests = random.Random(0), 0, 20000
    there: dict[int, list[str]] = {0: [], 1: []}
    for _ in range(requests):
        chosen = sorted(rng.sample(sorted(experts), active), key=lambda one: one not in there[lives[one]])
        for expert in chosen:
            own = there[lives[expert]]
            fetched += 10 * (expert not in own)
            there[lives[expert]] = [*(one for one in own if one != expert), expert][-2:]
    assert found.fetched == pytest.approx(fetched / requests, rel=0.05)
    assert found.seconds == pytest.approx(found.fetched / 2.0)


def test_what_is_short_on_any_host_is_counted():
    found = spread(Demand(0, 5, {"a": 10, "b": 30}, everywhere=True), Host(ram=20), hosts=3)
    assert found.missing == 15 and [place.name for place in found.places] == [
        "host 0, RAM",
        "host 1, RAM",
        "host 1, disk",
        "host 2, RAM",
    ]
    assert found.places[3].holds == {"working memory": 5}


def test_the_place_that_is_short_is_named():
    full = Placement((Place("host 0, RAM", 20, {"a": 5}), Place("host 1, RAM", 20, {"b": 30})), 10, 0.0, 0.0)
    with pytest.raises(
        MemoryLimitError, match="host 1, RAM: .* 10 bytes are missing; expected at most 20 bytes; got 30"
    ):
        replace(plan("llama-3-8b"), placement=full).require()


def test_the_memory_of_a_host_that_computes_holds_its_libraries_too():
    found = plan("llama-3-8b", ram="1TB", vram="100GB"), plan("llama-3-8b", ram="1TB")
    on_device, on_host = (one.placement.places[0].holds["working memory"] for one in found)
    assert on_host - on_device == LIBRARIES and on_device == found[0].working
