"""Do parts go where they fit, and is what is fetched counted as a simulation counts it?"""

import random

import pytest

from moesaic.compose.placement import DISK, FETCHED, RAM, bytes_of, devices_of, placed
from moesaic.errors import RecipeError

FOUR = dict.fromkeys("abcd", 10)


@pytest.mark.parametrize(
    ("text", "count"),
    [("17GB", 17 * 10**9), ("16GiB", 2**34), ("1.5 MB", 1_500_000), ("123", 123), (42, 42), ("2g", 2 * 10**9)],
)
def test_a_size_is_read(text, count):
    assert bytes_of(text, "ram") == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "17 gigabytes", "0GB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="ram: not a size of memory"):
        bytes_of(text, "ram")


def test_devices_share_one_figure_or_have_their_own():
    assert devices_of("17GB", 2) == [8_500_000_000] * 2
    assert devices_of("9GB,8GB", 1) == devices_of([9 * 10**9, 8 * 10**9], 2) == [9 * 10**9, 8 * 10**9]
    assert devices_of(None, 2) == []
    with pytest.raises(RecipeError, match="expected 3 sizes; got 2"):
        devices_of("9GB,8GB", 3)


def test_all_fits_on_the_devices_first_to_last():
    found = placed(core=5, working=5, experts=FOUR, devices=[30, 20], ram=0)
    assert [dict(place.holds) for place in found.places[:2]] == [
        {"shared and router": 5, "working memory": 5, "a": 10, "b": 10},
        {"c": 10, "d": 10},
    ]
    assert found.fits and not found.fetched and not found.seconds


def test_what_does_not_fit_lies_in_memory_then_on_disk_and_room_is_kept_for_it():
    found = placed(core=5, working=5, experts=FOUR, devices=[20, 20], ram=10, bandwidth=(10.0, 2.0))
    one, two, ram, disk = found.places
    assert one.holds == {"shared and router": 5, "working memory": 5, "a": 10}
    assert two.holds == {FETCHED: 10, "b": 10}
    assert (ram.name, ram.holds, disk.name, disk.holds) == (RAM, {"c": 10}, DISK, {"d": 10})
    # One request in two asks for c or d, and finds the wrong one of them there one time in two.
    assert found.fetched == pytest.approx(10 / 2 / 2)
    assert found.seconds == pytest.approx(10 / 4 / 2 / 10 + 10 / 4 / 2 / 2)


def test_what_is_short_is_counted():
    assert placed(core=50, working=5, experts={}, devices=[20], ram=None).missing == 35
    no_room = placed(core=15, working=0, experts=FOUR, devices=[20], ram=None)
    assert no_room.missing == 5 and not no_room.fits


def test_without_devices_memory_comes_first_and_the_rest_is_mapped():
    found = placed(core=5, working=0, experts=FOUR, devices=[], ram=25)
    assert [place.name for place in found.places] == [RAM, DISK]
    assert found.places[1].holds == {"b": 10, "c": 10, "d": 10} and found.fits


def test_working_memory_is_kept_where_experts_have_caches_of_their_own():
    assert placed(1, 2, {"a": 3}, [10, 10], None, everywhere=True).places[1].holds == {"working memory": 2}


@pytest.mark.parametrize("active", [1, 2])
def test_what_is_fetched_is_what_a_simulation_fetches(active):
    experts = dict.fromkeys("abcdefgh", 10)
    found = placed(0, 0, experts, [40], None, active)  # two or three stay; the others share what is left
    inside = [expert for expert in experts if expert in found.places[0].holds]
    rng, there, fetched, requests = random.Random(0), [], 0, 20000
    for _ in range(requests):
        asked = [expert for expert in rng.sample(sorted(experts), active) if expert not in inside]
        fetched += 10 * len(set(asked) - set(there))
        there = [*(one for one in there if one not in asked), *asked][-active:]
    assert found.fetched == pytest.approx(fetched / requests, rel=0.05)
