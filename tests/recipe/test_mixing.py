"""Which kinds of expert, sites, levels and routers go together, and is the rest refused by its name?"""

from typing import Any

import pytest
import yaml

from moesaic.errors import RecipeError
from moesaic.kinds import KINDS
from moesaic.recipe import Recipe, dump, parse

DATA = {"train": "a.jsonl", "test": "b.jsonl"}


def made(
    *kinds: str,
    router: dict[str, Any] | None = None,
    mixture: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    **first: Any,
) -> Recipe:
    """Experts `one`, `two`, ... of these kinds; `first`: more about the first of them."""
    names = ("one", "two", "three")[: len(kinds)]
    experts: dict[str, dict[str, Any]] = {
        name: {"kind": kind, "data": DATA} for name, kind in zip(names, kinds, strict=True)
    }
    experts["one"] |= first
    sections = {"mixture": mixture, "evaluate": evaluate}
    return parse(
        {
            "name": "x",
            "base": {"path": "base"},
            "experts": experts,
            "router": router or {"kind": "linear"},
            **{key: section for key, section in sections.items() if section is not None},
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_site_follows_from_the_kind_and_is_written_out(kind: str) -> None:
    site = KINDS[kind].site
    for mixture in (None, {}, {"level": "sequence"}, {"site": site}):
        recipe = made(kind, kind, mixture=mixture)
        assert recipe.site == recipe.mixture.site == site
        assert f"site: {site}" in dump(recipe)


def test_distributions_are_combined_where_there_are_several_only() -> None:
    assert made("model", "model", mixture={"combine": "product"}).mixture.combine == "product"
    assert "combine: mixture" in dump(made("model", "model"))
    assert "combine" not in dump(made("ffn", "ffn"))
    for mixture in ({"combine": "product"}, {"combine": "product", "site": "ffn"}):
        with pytest.raises(RecipeError, match=r"mixture.combine: has no effect here; it goes with site: model"):
            made("ffn", "ffn", mixture=mixture)


def test_adapters_of_both_kinds_meet_and_no_other_kinds_do() -> None:
    assert made("lora", "tt_lora").site == "linear"
    what = (
        r"experts.two.kind: ffn experts \('two'\) cannot be mixed with lora experts \('one'\); expected lora or tt_lora"
    )
    with pytest.raises(RecipeError, match=what):
        made("lora", "ffn")
    with pytest.raises(
        RecipeError, match=r"experts.three.kind: tt_lora experts \('three'\).* with model .*; expected mo"
    ):
        made("model", "model", "tt_lora")


def test_what_cannot_be_mixed_is_named() -> None:
    with pytest.raises(RecipeError, match=r"mixture.site: ffn experts \('one'\) .* at site linear; expected site ffn"):
        made("ffn", mixture={"site": "linear"})
    for kind in ("lora", "tt_lora"):
        with pytest.raises(RecipeError, match=r"mixture.level: .* at level token; expected level sequence"):
            made(kind, mixture={"level": "token"})
    assert made("model", mixture={"level": "token"}).mixture.level == "token"


@pytest.mark.parametrize("kind", ["ffn", "model"])
@pytest.mark.parametrize(
    "said", [{"rank": 4}, {"alpha": 2.0}, {"targets": ["q_proj"]}, {"factors": "auto"}, {"init": "zero"}], ids=str
)
def test_what_only_adapters_have_is_refused(kind: str, said: dict[str, Any]) -> None:
    (key,) = said
    kinds = "tt_lora" if key in ("factors", "init") else "lora or tt_lora"
    with pytest.raises(RecipeError, match=rf"experts.one.{key}: unknown key; it goes with kind: {kinds}$"):
        made(kind, kind, **said)
    if key in ("rank", "alpha", "targets"):
        with pytest.raises(RecipeError, match=rf"experts.one.sweep.{key}: unknown key; it goes with kind: {kinds}$"):
            made(kind, kind, sweep={key: [said[key]]})
    assert made(kind, kind, sweep={"lr": [0.1, 0.2]}).experts["one"].trials == [
        made(kind, sweep={"lr": [0.1, 0.2]}).experts["one"]
    ]


def test_layers_anchors_and_rests_have_their_kinds() -> None:
    assert made("ffn", layers="1..", anchor=True).experts["one"].anchor
    assert made("ffn", path="there", ignore_rest=True).experts["one"].ignore_rest
    for kind, said, why in (
        ("model", {"layers": "1.."}, "layers: has no effect here; all layers of a whole model"),
        ("model", {"anchor": True}, "anchor: unknown key; it goes with kind: ffn"),
        ("lora", {"anchor": False}, "anchor: unknown key; it goes with kind: ffn"),
        ("ffn", {"path": "there", "anchor": True}, "anchor: has no effect here; an expert with path is trained"),
        ("ffn", {"path": "there", "layers": "1.."}, "layers: has no effect here; an expert with path is trained"),
        ("ffn", {"ignore_rest": True}, "ignore_rest: has no effect here; it goes with kind: ffn and path"),
        ("model", {"path": "there", "ignore_rest": True}, "ignore_rest: unknown key; it goes with kind: ffn"),
        ("ffn", {"ancor": True}, "ancor: unknown key; did you mean 'anchor'"),
    ):
        with pytest.raises(RecipeError, match=rf"experts.one.{why}"):
            made(kind, **said)


def test_experts_of_other_kinds_do_not_classify() -> None:
    labelled = {"columns": ["text"], "label": "label", "labels": ["a", "b"], "train": "a.jsonl", "test": "b.jsonl"}
    for kind in ("ffn", "model"):
        with pytest.raises(
            RecipeError, match=rf"experts.one.kind: {kind} experts do not classify; expected lora or tt"
        ):
            made(kind, data=labelled)


def test_a_router_may_read_the_bare_trunk_of_blocks_and_no_trunk_of_whole_models() -> None:
    deep = {"kind": "linear", "feature": "hidden@1"}
    assert made("ffn", router=deep, layers="1..").router.depth == 1
    with pytest.raises(
        RecipeError, match=r"expert 'one' has blocks of layers from 0, but the router reads hidden@1; set"
    ):
        made("ffn", router=deep)
    with pytest.raises(
        RecipeError, match=r"router.feature: .* whole models, which share no trunk with the base: 'hidden@1'; read"
    ):
        made("model", router=deep)
    assert made("model", router={"kind": "linear", "compare": [deep]}).router.compare[0].depth == 1


def test_what_decides_before_every_token_reads_states_that_run_with_it() -> None:
    token = {"level": "token"}
    for feature in ("embedding_mean", "hidden_mean", "hidden_last"):
        assert made("model", router={"kind": "mlp", "feature": feature}, mixture=token)
    for router in (
        {"kind": "keyword"},
        {"kind": "attention"},
        {"kind": "linear", "feature": {"kind": "encoder", "model": "there"}},
    ):
        with pytest.raises(RecipeError, match=r"router.feature: a router that decides before every token"):
            made("model", router=router, mixture=token)
        assert made("model", router=router)


def test_whole_models_have_no_loss_of_the_task_and_no_wide_control() -> None:
    taught = {"kind": "linear", "loss": {"task": 1.0}}
    with pytest.raises(RecipeError, match=r"router.loss.task: not supported for whole models"):
        made("model", router=taught)
    with pytest.raises(RecipeError, match=r"router.compare\[0\].loss.task: not supported for whole models"):
        made("model", router={"kind": "linear", "compare": [taught]})
    assert made("ffn", router=taught).trained_controls == ("joint", "joint_wide")
    assert made("model").trained_controls == ("joint",)
    with pytest.raises(RecipeError, match=r"evaluate.joint_wide: has no effect here; no whole model is as large"):
        made("model", evaluate={"joint_wide": {"steps": 2}})
    with pytest.raises(RecipeError, match=r"evaluate.controls\[1\]: cannot be computed; no whole model is as large"):
        made("model", evaluate={"controls": ["base", "joint_wide"]})


GATED: dict[str, Any] = {"kind": "gates"}


def test_blocks_are_routed_token_by_token_by_gates_alone() -> None:
    recipe = made("ffn", "ffn", router=GATED, mixture={"level": "token"})
    assert (recipe.router.selection, recipe.router.k, recipe.router.gates.start) == ("top_k", 2, "ridge")
    assert "feature" not in dump(recipe) and parse(yaml.safe_load(dump(recipe))) == recipe
    beside = made("ffn", "ffn", router={"kind": "linear", "compare": [GATED]})
    assert beside.router.gates is None and beside.router.compare[0].k == 2


@pytest.mark.parametrize(
    ("router", "level", "said"),
    [
        (
            GATED,
            "sequence",
            "router.kind: a gates router does not decide at level sequence; expected mixture.level: token",
        ),
        (
            {"kind": "linear"},
            "token",
            "router.kind: a linear router does not decide at level token; expected kind: gates",
        ),
        ({**GATED, "lr": 0.1}, "token", "router.lr: has no effect here; gates route tokens"),
        ({**GATED, "loss": {"balance": 0.1}}, "token", "router.loss: has no effect here; gates route tokens"),
        ({**GATED, "k": 3}, "token", "router.k: more than the number of experts; expected at most 2; got 3"),
        ({**GATED, "selection": "top_1"}, "token", "router.selection: a single expert of weight 1 gives gates no grad"),
        ({**GATED, "k": 1}, "token", "router.selection: a single expert of weight 1 gives gates no gradient"),
        ({**GATED, "gates": {"start": "hiden"}}, "token", "router.gates.start: wrong value.*did you mean 'hidden'"),
        ({**GATED, "gates": {"steps": 0, "lr": 0.1}}, "token", "router.gates.lr: has no effect here; steps: 0 trains"),
        ({**GATED, "gates": {"balance": "none", "strength": 1.0}}, "token", "gates.strength: has no effect here; noth"),
        (
            {"kind": "linear", "gates": {}},
            "sequence",
            "router.gates: has no effect here; a linear router decides about",
        ),
    ],
)
def test_keys_of_gates_have_their_place(router: dict[str, Any], level: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made("ffn", "ffn", router=router, mixture={"level": level})


def test_a_gate_may_choose_one_expert_where_it_is_not_trained_or_its_weight_tells() -> None:
    for router in (
        {**GATED, "selection": "top_1", "gates": {"steps": 0}},
        {**GATED, "selection": "top_1", "renormalise": False},
    ):
        assert made("ffn", "ffn", router=router, mixture={"level": "token"}).router.chosen(2) == 1


def test_adapters_and_whole_models_have_no_gates_in_layers() -> None:
    for kind in ("lora", "model"):
        with pytest.raises(
            RecipeError, match=r"router.compare\[0\].kind: gates choose .* expected experts of kind ffn"
        ):
            made(kind, router={"kind": "linear", "compare": [GATED]})
