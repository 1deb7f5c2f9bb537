"""Journey: runs of every kind in bfloat16 beside the same in float32, from the first step to what is loaded and asked.

Tolerances: nats within 3 of a thousand, log-probabilities within a twentieth of a nat. bfloat16 has 8 bits of mantissa;
the models are two layers deep.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from small_kinds import fill, recipe_in
from small_runs import Told, opened, stale

import moesaic
from moesaic import stages
from moesaic.artefacts.base import load_base
from moesaic.compose.alone import base_alone, expert_alone
from moesaic.compose.mixture import load_mixture
from moesaic.errors import RecipeError
from moesaic.files import read_jsonl, read_manifest
from moesaic.hardware import HOST, Compute
from moesaic.recipe import Recipe
from moesaic.routing import Gates

pytestmark = pytest.mark.slow  # whole runs

NATS, LOGITS = 3e-3, 0.05
LOWER = Compute(torch.device("cpu"), torch.bfloat16)
FIRST: dict[str, dict[str, Any]] = {"lora": {"rank": 2}, "ffn": {"anchor": True}, "model": {}}
PROMPTS = ["add 3 to 4", "the wren of day 3", "add 9 to 2", "the swan of day 71"]
TASK = "router.compare=[{kind: linear, selection: soft, loss: {task: 1.0}, epochs: 1}]"
OVERRIDES = {
    "lora": ("evaluate.controls=[uniform, average]", "router.abstain=off", TASK),
    "ffn": ("evaluate.controls=[uniform, average]", "router.abstain=off", TASK),
    "model": ("evaluate.controls=[joint, uniform, average]", "router.abstain=off"),
}


class Ran(NamedTuple):
    """A finished run."""

    recipe: Recipe
    root: Path
    evaluation: dict[str, Any]
    notes: list[str]

    @property
    def nats(self) -> dict[str, float]:
        return {name: one["nats"]["all"] for name, one in self.evaluation["controls"].items()}

    @property
    def base(self) -> Path:
        return Path(self.recipe.base.place or "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("types"))


@pytest.fixture(scope="module", params=[*FIRST])
def both(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Ran]:
    """A kind's run in float32 and in bfloat16; routers learn from the loss of adapters and blocks, too."""
    kind, found = request.param, list[Ran]()
    for dtype in ("float32", "bfloat16"):
        recipe, told = recipe_in(place, kind, f"dtype={dtype}", *OVERRIDES[kind], **FIRST[kind]), Told()
        root = tmp_path_factory.mktemp("runs") / kind
        found.append(Ran(recipe, root, moesaic.run(recipe, root, told), told.notes))
    return found[0], found[1]


def losses(ran: Ran) -> dict[str, list[float]]:
    """The loss of every step of every training."""
    logs = sorted((ran.root / "metrics/experts").rglob("*.jsonl"))
    return {log.parent.name: [row["loss"] for _, row in read_jsonl(log)] for log in logs}


def tensors(folder: Path) -> Iterator[torch.Tensor]:
    for file in folder.rglob("*.safetensors"):
        yield from load_file(file).values()


def test_losses_and_scores_are_those_of_float32_within_the_tolerance(both):
    exact, lower = both
    assert lower.nats != exact.nats and lower.nats == pytest.approx(exact.nats, rel=NATS)
    curves = losses(lower)
    assert len(curves) == 2 and curves != losses(exact)
    for name, curve in losses(exact).items():
        assert curves[name] == pytest.approx(curve, rel=NATS)


def test_it_is_said_what_was_chosen(both):
    exact, lower = both
    assert "computes on cpu in bfloat16" in lower.notes
    assert not any("computes on" in note for note in exact.notes)  # as ever


def test_what_was_trained_is_float32_and_knows_its_base_by_the_same_fingerprint(both):
    exact, lower = both
    for ran in both:
        for part in ("experts", "router"):
            assert {tensor.dtype for tensor in tensors(ran.root / part)} == {torch.float32}
    prints = [read_manifest(ran.root / "experts/sums/best")["base_fingerprint"] for ran in both]
    assert prints[0] == prints[1] == load_base(exact.base).fingerprint == load_base(lower.base, None, LOWER).fingerprint


def test_the_type_is_a_part_of_keys_and_the_device_is_none(both):
    exact, lower = both
    everything = stale(opened(exact.recipe, lower.root))
    assert {"sums", "birds", "router"} <= everything == stale(opened(lower.recipe, exact.root))
    for ran in both:
        assert not stale(opened(ran.recipe.model_copy(update={"device": "cpu"}), ran.root))


def test_an_expert_read_back_gives_its_figures(both):
    found = stages.verify_expert(both[1].recipe, both[1].root, [])
    assert {one["name"] for one in found} == {"sums", "birds"}


def test_one_hot_is_the_expert_alone_and_abstaining_is_the_base_in_every_bit(both):
    lower = both[1]
    stored, kind = load_mixture(lower.root / "mixture", compute=LOWER), lower.recipe.kind
    ids = torch.tensor([stored.tokenizer.begin("add 3 to 4")[:5], stored.tokenizer.begin("the wren of day")[:5]])

    def base() -> Any:
        return load_base(lower.base, None, LOWER)

    with torch.inference_mode():
        none = stored.model.score(ids, Gates.of(torch.zeros(2, 2)))
        assert none.equal(base_alone(base().decoder).score(ids, Gates.of(torch.zeros(2, 0))))
        for index, name in enumerate(stored.model.names):
            own = base()
            alone = expert_alone(kind, own, name, kind.read(lower.root / "mixture/experts" / name, own))
            one_hot = stored.model.score(ids, Gates.one(index, 2, 2, torch.zeros(1)))
            assert one_hot.equal(alone.score(ids, Gates.one(0, 2, 1, torch.zeros(1)))) and not one_hot.equal(none)


def test_greedy_tokens_are_those_of_float32_where_the_two_best_are_apart(both):
    """Both types score what float32 writes, with the expert that it chose."""
    root, apart, seen = both[0].root, 0, 0
    found = [moesaic.load(root, dtype=dtype) for dtype in ("float32", "bfloat16")]
    for prompt in PROMPTS:
        made = found[0].generate(prompt, max_new_tokens=12)
        assert found[1].route(prompt).chosen == made.routing.chosen
        ids = torch.tensor([[*found[0].engine.tokenizer.begin(prompt), *made.ids]])
        expert = found[0].names.index(made.routing.chosen)
        gates = Gates.one(expert, 1, 2, torch.zeros(1))
        with torch.inference_mode():
            exact, lower = (model.engine.mixture.score(ids, gates)[0].float() for model in found)
        assert (exact.log_softmax(-1) - lower.log_softmax(-1)).abs().max() < LOGITS
        best = exact.topk(2, -1).values
        clear = best[:, 0] - best[:, 1] > 2 * LOGITS
        assert exact.argmax(-1)[clear].equal(lower.argmax(-1)[clear])
        apart, seen = apart + int(clear.sum()), seen + len(clear)
    assert apart > seen / 2


def test_a_mixture_of_either_type_is_loaded_in_either(both):
    for ran, dtype in zip(both, ("auto", "float32"), strict=True):
        with moesaic.load(ran.root, device="cpu", dtype=dtype) as model:
            assert len(model.generate(PROMPTS[0], max_new_tokens=3).ids) <= 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_a_card_that_is_not_there_is_refused_before_any_work(place, tmp_path):
    recipe = recipe_in(place, "lora", "device=cuda")
    for verb in (moesaic.run, stages.evaluate, lambda *args: stages.train_expert(*args, [])):
        with pytest.raises(
            RecipeError, match="device: this machine has no such device; expected auto or cpu; got cuda"
        ):
            verb(recipe, tmp_path / "run")
    assert not [*tmp_path.rglob("*.safetensors")]
    for load in (moesaic.load, moesaic.load_model):
        with pytest.raises(RecipeError, match="device: this machine has no such device"):
            load("shipped:tiny", device="cuda")
    assert opened(recipe_in(place, "lora"), tmp_path).models.compute == HOST
