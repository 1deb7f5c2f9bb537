"""Property: what may be said of a router beside what: kinds, features, losses, exploration."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moesaic.config import Feature
from moesaic.errors import RecipeError
from moesaic.recipe import Recipe, dump, parse
from moesaic.sections.routers import RouterSpec

TASK = {"task": 1.0}
GUMBEL, NOISY = {"kind": "gumbel"}, {"kind": "noisy_top_k"}
DIVIDED = {"a": ["math"], "b": ["code"]}


def made(**router: Any) -> Recipe:
    experts = {name: {"kind": "lora", "data": {"demo": name}} for name in ("math", "code")}
    return parse({"name": "x", "base": {"path": "b"}, "experts": experts, "router": router})


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"kind": "attention", "feature": "hidden_mean"},
        "feature",
        "expected embedding_tokens, hidden_tokens or hidden@K",
    ),
    ({"kind": "attention", "feature": {"kind": "encoder", "model": "m"}}, "feature", "cannot read 'encoder'"),
    ({"kind": "linear", "feature": "hidden_tokens"}, "feature", "only attention reads tokens"),
    ({"kind": "centroid", "feature": "hidden@1_tokens"}, "feature", "only attention reads tokens"),
    ({"kind": "attention", "hidden": [8, 8]}, "hidden", "one width, a multiple of heads = 4; got [8, 8]"),
    ({"kind": "attention", "hidden": [8], "heads": 3}, "hidden", "a multiple of heads = 3"),
    ({"kind": "mlp", "heads": 2}, "heads", "a mlp router does not attend"),
    ({"kind": "mlp", "bias": False}, "bias", "only a linear router can omit its bias"),
    ({"kind": "attention", "bias": True}, "bias", "only a linear router can omit its bias"),
    ({"kind": "centroid", "mix": "balanced"}, "mix", "a centroid router is not trained by gradient"),
    ({"kind": "keyword", "exploration": GUMBEL}, "exploration", "is not trained by gradient"),
    ({"kind": "linear", "mix": "even"}, "mix", "expected 'balanced' or 'proportional'"),
    ({"kind": "linear", "loss": {"expert": 0}}, "loss", "nothing to learn from; give task or expert a weight"),
    ({"kind": "linear", "loss": {"expert": 0, "balance": 1.0}}, "loss", "nothing to learn from"),
    ({"kind": "linear", "loss": {"taks": 1}}, "loss.taks", "did you mean 'task'?"),
    ({"kind": "linear", "exploration": GUMBEL}, "exploration.kind", "no effect here; give loss.task a weight"),
    (
        {"kind": "linear", "exploration": GUMBEL, "loss": TASK, "selection": "soft"},
        "exploration.kind",
        "gumbel samples one expert with weight 1; expected top_1 with renormalise",
    ),
    (
        {"kind": "mlp", "exploration": GUMBEL, "loss": TASK, "renormalise": False},
        "exploration.kind",
        "top_1 with renorm",
    ),
    ({"kind": "linear", "exploration": NOISY, "selection": "soft"}, "exploration.kind", "soft selects all experts"),
    (
        {"kind": "linear", "exploration": NOISY, "feature": {"kind": "encoder", "model": "m"}},
        "exploration.kind",
        "expected a feature of the base",
    ),
    ({"kind": "tree"}, "groups", "missing; name the experts of each group, as in groups: {exact: [math, code]"),
    ({"kind": "mlp", "groups": {"a": ["math"]}}, "groups", "a mlp router decides between all experts at once"),
    ({"kind": "tree", "groups": {"a": ["math", "code"]}}, "groups", "too few groups; expected two or more; got a"),
    ({"kind": "tree", "groups": {"a": [], "b": ["math", "code"]}}, "groups.a", "expected 1 or more"),
    (
        {"kind": "tree", "groups": {"a": ["math"], "b": ["cod"]}},
        "groups.b[0]",
        "no such expert; expected one of math, code; got 'cod'; did you mean 'code'?",
    ),
    (
        {"kind": "tree", "groups": {"a": ["math"], "b": ["code", "math"]}},
        "groups.b[1]",
        "the expert is in a group already; expected each expert once; got 'math'; it is in group 'a'",
    ),
    ({"kind": "tree", "groups": {"a": ["math"], "b": ["math"]}}, "groups.b[0]", "in a group already"),
    (
        {"kind": "tree", "groups": DIVIDED, "exploration": NOISY},
        "exploration.kind",
        "a tree has no logits of experts to add noise to; expected none or gumbel",
    ),
    ({"kind": "tree", "groups": DIVIDED, "feature": "hidden_tokens"}, "feature", "only attention reads tokens"),
    ({"kind": "tree", "groups": DIVIDED, "heads": 2}, "heads", "a tree router does not attend"),
    ({"kind": "tree", "groups": DIVIDED, "init": "centroids"}, "init", "a tree router cannot be initialised"),
    ({"kind": "linear", "match": "first"}, "match", "a linear router does not read words"),
    ({"kind": "keyword", "match": "last"}, "match", "expected 'first'; got 'last'"),
    (
        {"kind": "keyword", "match": "first"},
        "match",
        "the rule learns no keywords; expected keywords of all experts but one, which takes the other prompts; "
        "got none of math and code; list experts.math.keywords",
    ),
    ({"kind": "linear", "exploration": {"temperature": 2.0}}, "exploration.temperature", "none has no temperature"),
    (
        {"kind": "linear", "exploration": NOISY | {"temperature": 1}},
        "exploration.temperature",
        "noisy_top_k has no temp",
    ),
    (
        {"kind": "linear", "exploration": GUMBEL | {"temperature": 0}, "loss": TASK},
        "exploration.temperature",
        "more than 0",
    ),
]


@pytest.mark.parametrize(("router", "field", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_does_not_go_together_is_refused_by_its_key(router, field, said):
    with pytest.raises(RecipeError) as refused:
        made(**router)
    assert refused.value.field == f"router.{field}" and said in str(refused.value)


@pytest.mark.parametrize(
    ("groups", "at", "said"),
    [
        ({"a": ["math"], "b": ["code"]}, "groups", "not every expert is in a group: math, code; add to a group: prose"),
        (
            {"a": ["math"], "b": ["code", "math"]},
            "groups.b[1]",
            "the expert is in a group already; expected each expert once; got 'math'; it is in group 'a'",
        ),
        ({"a": ["math", "proze"], "b": ["code"]}, "groups.a[1]", "got 'proze'; did you mean 'prose'?"),
    ],
    ids=str,
)
@pytest.mark.parametrize("compared", [False, True])
def test_groups_that_miss_or_repeat_an_expert_are_refused_where_they_do(groups, at, said, compared):
    experts = {name: {"kind": "lora", "data": {"demo": name}} for name in ("math", "code", "prose")}
    spec = {"kind": "tree", "groups": groups}
    router = {"kind": "linear", "compare": [spec]} if compared else spec
    with pytest.raises(RecipeError) as refused:
        parse({"name": "x", "base": {"path": "b"}, "experts": experts, "router": router})
    assert refused.value.field == f"router.{'compare[0].' * compared}{at}" and said in str(refused.value)


@pytest.mark.parametrize(
    "router",
    [
        {"kind": "attention", "hidden": [1024]},
        {"kind": "attention", "feature": "embedding_tokens", "heads": 2, "dropout": 0.2, "exploration": NOISY},
        {"kind": "linear", "feature": "hidden_last", "bias": False, "exploration": NOISY, "loss": {"expert": 21.0}},
        {"kind": "mlp", "exploration": GUMBEL | {"temperature": 0.5}, "loss": {"task": 1, "expert": 0}},
        {"kind": "linear", "selection": "top_k", "k": 1, "exploration": GUMBEL, "loss": TASK},
        {"kind": "tree", "groups": DIVIDED, "exploration": GUMBEL, "loss": TASK},
        {"kind": "linear", "compare": [{"kind": "tree", "groups": DIVIDED, "selection": "soft"}]},
        {"kind": "linear", "mix": "proportional", "selection": "soft", "loss": {"task": 1, "balance": 1, "z": 1}},
    ],
    ids=str,
)
def test_the_published_routers_can_be_written_and_read_again(router):
    recipe = made(**router)
    assert parse(yaml.safe_load(dump(recipe))) == recipe


def test_each_kind_reads_by_itself_what_it_can_read():
    kinds = ("keyword", "centroid", "linear", "mlp", "attention")
    assert RouterSpec(kind="tree", groups=DIVIDED).feature == "hidden_mean"
    assert [RouterSpec(kind=kind).feature for kind in kinds] == ["text", *["hidden_mean"] * 3, "hidden_tokens"]


@pytest.mark.parametrize(
    ("feature", "exploration", "reads"),
    [
        ("hidden_last", NOISY, ["hidden_last", "hidden_mean"]),
        ("hidden@3_last", NOISY, ["hidden@3_last", "hidden@3"]),
        ("hidden_mean", NOISY, ["hidden_mean"]),
        ("embedding_mean", NOISY, ["embedding_mean"]),
        ("hidden_last", {}, ["hidden_last"]),
    ],
)
def test_the_size_of_noise_is_learned_from_the_mean_of_the_states_that_the_router_reads(feature, exploration, reads):
    spec = RouterSpec(kind="linear", feature=feature, exploration=exploration)
    assert spec.reads == reads
    parsed = [Feature.parse(str(name)) for name in spec.reads]
    assert len({(one.source, one.depth) for one in parsed}) == 1 and (parsed[-1].pool == "mean" or not exploration)


@given(
    st.sampled_from([("soft", None), ("top_1", None), ("top_k", 1), ("top_k", 2)]),
    st.booleans(),
    st.sampled_from(["none", "gumbel", "noisy_top_k"]),
    st.sampled_from([0.0, 2.0]),
)
def test_the_loss_of_the_task_is_idle_just_where_every_weight_is_1_and_nobody_is_drawn(
    selection, renormalise, how, task
):
    kept = {"selection": selection[0]} | ({"k": selection[1]} if selection[1] else {})
    try:
        spec = RouterSpec(
            kind="linear", renormalise=renormalise, exploration={"kind": how}, loss={"task": task}, **kept
        )
    except ValidationError:
        return
    certain = renormalise and selection in (("top_1", None), ("top_k", 1))
    assert spec.certain == certain and spec.untaught == (bool(task) and certain and how != "gumbel")


def test_only_layers_with_room_begin_at_centroids() -> None:
    assert "init" not in RouterSpec(kind="mlp").model_dump() and RouterSpec(kind="mlp", init="centroids").init
    for kind in ("keyword", "centroid", "attention"):
        with pytest.raises(RecipeError, match=r"router.init: has no effect here; a \w+ router cannot be initialised"):
            made(kind=kind, init="centroids")
    with pytest.raises(RecipeError, match=r"router.bias: init: centroids needs a bias"):
        made(kind="linear", init="centroids", bias=False)
    with pytest.raises(RecipeError, match=r"router.init: wrong value; expected 'centroids'; got 'centroid'"):
        made(kind="linear", init="centroid")
    made(kind="mlp", init="centroids", hidden=[4, 9])
    narrow = {"kind": "mlp", "init": "centroids", "hidden": [9, 3]}
    with pytest.raises(RecipeError, match=r"router.hidden: too narrow to start from centroids; expected at least 4 in"):
        made(**narrow)
    with pytest.raises(RecipeError, match=r"router.compare\[0\].hidden: too narrow to start from centroids"):
        made(kind="linear", compare=[narrow])
