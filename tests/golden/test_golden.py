"""Property: five small runs give what is recorded beside their recipes: stage keys, weights and figures.

Where the arithmetic of this processor is the recorded one, bytes are compared; elsewhere figures and sums within a
tolerance. `python tests/golden/record.py` records anew.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from comparing import TOLERANCE, Record, close_differences, exact_differences, record_of
from pinned import HERE, NAMES, failure, run_all

Ran = tuple[Path, dict[str, str]]


def recorded(name: str) -> Record:
    return json.loads((HERE / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("golden")
    return folder, run_all(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_gives_what_is_recorded(name: str, ran: Ran) -> None:
    folder, probe = ran
    assert not failure(folder, name), failure(folder, name)
    expected, found, known = recorded(name), record_of(folder / name / "run"), recorded("probe")
    if probe == known:
        print(f"{name}: bytes compared, as the arithmetic is the recorded one")
        differ = exact_differences(expected, found)
    else:
        why = ", ".join(f"{key} {probe[key]} instead of {known[key]}" for key in known if probe[key] != known[key])
        print(f"{name}: figures compared within {TOLERANCE}, as the arithmetic is not the recorded one: {why}")
        differ = close_differences(expected, found, expected["rounded_keys"])
    assert not differ, "\n".join([f"{name}: {len(differ)} differences", *differ])


def change_key(record: Record) -> None:
    record["stage_keys"]["experts/sums/best"] = "0" * 64


def change_bytes(record: Record) -> None:
    record["weights"]["experts/sums/best/model.safetensors"]["sha256"] = "0" * 64


def change_sums(record: Record) -> None:
    sums = record["weights"]["experts/sums/best/model.safetensors"]["tensors"]["model.layers.1.mlp.up_proj.weight"]
    sums[0] += 2 * TOLERANCE * sums[1]


def change_copy(record: Record) -> None:
    record["weights"]["mixture/router/router.safetensors"]["same_as"] = "another"


def change_figure(record: Record) -> None:
    record["evaluation"]["controls"]["joint"]["nats"]["all"] *= 1 + 2 * TOLERANCE


def change_count(record: Record) -> None:
    record["evaluation"]["controls"]["joint"]["cost"]["parameters"] += 1


def change_order(record: Record) -> None:
    record["contenders"][:2] = record["contenders"][1::-1]


def drop_file(record: Record) -> None:
    del record["weights"]["controls/joint/best/model.safetensors"]


def add_control(record: Record) -> None:
    record["evaluation"]["controls"]["another"] = {"nats": 1.0}


KEY, WEIGHTS = "stage key of experts/sums/best", "weights experts/sums/best/model.safetensors"
NATS, PARAMETERS = "evaluation.controls.joint.nats.all", "evaluation.controls.joint.cost.parameters"


@pytest.mark.parametrize(
    ("change", "exact", "close"),
    [
        (change_key, KEY, KEY),
        (change_bytes, WEIGHTS, None),
        (change_sums, None, f"{WEIGHTS}: model.layers.1.mlp.up_proj.weight"),
        (change_copy, None, "weights mixture/router/router.safetensors"),
        (change_figure, NATS, NATS),
        (change_count, PARAMETERS, PARAMETERS),
        (change_order, "contenders[", "contenders["),
        (drop_file, "weights controls/joint/best/model.safetensors", "weights controls/joint/best/model.safetensors"),
        (add_control, "evaluation.controls.another.nats", "evaluation.controls.another.nats"),
    ],
)
def test_a_difference_is_found_and_named(
    change: Callable[[Record], None], exact: str | None, close: str | None
) -> None:
    """One for each way in which a run can differ, in either comparison; None: that comparison does not look there."""
    expected = recorded("ffn")
    found = copy.deepcopy(expected)
    change(found)
    for differ, name in (
        (exact_differences(expected, found), exact),
        (close_differences(expected, found, expected["rounded_keys"]), close),
    ):
        assert bool(differ) == (name is not None)
        assert all(line.startswith(str(name)) for line in differ)
