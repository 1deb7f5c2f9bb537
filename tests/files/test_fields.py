"""A table's fields have the types that are read, or the first that has not is named with what was expected."""

import pytest

from moesaic.files.fields import MANIFESTS, MISSING, faults

ROUTER = {
    **{"router": "mlp", "feature": "hidden_mean", "base_fingerprint": "f" * 64, "shape": {}},
    "selection": {"kind": "soft", "k": None, "renormalise": False},
}
GUARD = {"shape": {"num_features": 8, "num_experts": 2, "hidden": [4]}, "least": 0.5}
MIXTURE = {"adopted": {"router": {"kind": "linear", "abstain": "auto", "abstained_own": 0.01}, "experts": {}}}
REFERENCE = {"place": "org/base@main", "fingerprint": "f" * 64}


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        *[("router", ROUTER), ("router", ROUTER | {"guard": GUARD})],
        *[("mixture", MIXTURE), ("mixture", {"base": None}), ("mixture", {"base": REFERENCE})],
        ("mixture", {"adopted": {"router": {"kind": "linear", "abstain": 0.9}, "experts": {}}}),
    ],
)
def test_a_table_that_is_written_has_no_faults(kind, table):
    assert not [*faults(table, MANIFESTS[kind])]


@pytest.mark.parametrize(
    ("kind", "table", "fault"),
    [
        ("router", ROUTER | {"guard": None}, ("guard", "a table", None)),
        ("router", ROUTER | {"guard": {"least": 0.5}}, ("guard.shape", "a table", MISSING)),
        ("router", ROUTER | {"guard": GUARD | {"least": "x"}}, ("guard.least", "a number", "x")),
        (
            "router",
            ROUTER | {"guard": GUARD | {"shape": GUARD["shape"] | {"hidden": [None]}}},
            ("guard.shape.hidden[0]", "a whole number", None),
        ),
        ("mixture", {"base": {"place": 5, "fingerprint": "f"}}, ("base.place", "text", 5)),
        ("mixture", {"base": {"place": "org/base"}}, ("base.fingerprint", "text", MISSING)),
        ("mixture", {"base": "org/base"}, ("base", "a table or null", "org/base")),
        (
            "mixture",
            {"adopted": {"router": {"kind": "linear", "abstain": "maybe"}, "experts": {}}},
            ("adopted.router.abstain", "auto or off or a number", "maybe"),
        ),
        (
            "mixture",
            {"adopted": {"router": {"kind": "linear", "abstained_neutral": None}, "experts": {}}},
            ("adopted.router.abstained_neutral", "a number", None),
        ),
    ],
)
def test_a_field_of_another_type_is_named(kind, table, fault):
    assert next(faults(table, MANIFESTS[kind])) == fault
