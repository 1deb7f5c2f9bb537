"""Experts of kinds `ffn` and `model`: trained as the naive loop would, kept, taken up again, read back, refused."""

import json
from pathlib import Path

import pytest
import torch
from small_kinds import LAYERS, WIDTH, fill, recipe_in
from small_runs import Told, opened, silent
from torch.nn import functional as F

from moesaic.adapters.feedforward import FFN
from moesaic.artefacts.ffn import load_ffn, save_ffn
from moesaic.data.batches import Schedule, pad
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.files import read_manifest
from moesaic.kinds.kind import Started
from moesaic.kinds.whole_model import Whole
from moesaic.model.decoder import Decoder
from moesaic.ops.losses import UNSCORED
from moesaic.runs.jobs import Jobs
from moesaic.stages import experts
from moesaic.stages.experts import ExpertPart, plan_of, train_one, verify_expert
from moesaic.tasks import Run
from moesaic.tasks.task import Plan
from moesaic.tasks.texts import TextTrainer
from moesaic.tensors.tensors import read_tensors
from moesaic.train.loop import factor


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("kinds"))


def trained(run: Run, name: str) -> Path:
    """The folder of a contender that is trained in this process."""
    train_one(run.address, name, silent())
    return run.dir.part_at(name)


def started_in(run: Run, plan: Plan) -> tuple[Decoder, Started]:
    """A fresh base with a contender in it, and the contender."""
    decoder = run.task.fresh().decoder
    return decoder, plan.begin(decoder, run.recipe.seed)


def naive(run: Run, name: str, learns, halved: bool = False) -> dict[str, torch.Tensor]:
    """The same by hand, over the model that transformers makes of the base: its parameters after the last step."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.models.base_at, dtype=torch.float32)
    plan = plan_of(run, name)
    settings, trainer = plan.settings, TextTrainer(run.task, plan)
    learned = {path: p.requires_grad_(learns(path)) for path, p in model.named_parameters() if learns(path)}
    for path, p in model.named_parameters():
        p.requires_grad_(path in learned)
    if halved:
        for layer in model.model.layers:
            frozen = [
                part.weight.detach().clone() for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
            ]

            def beside(x, mlp=layer.mlp, own=frozen):
                gate, up, down = own
                base = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
                return 0.5 * base + 0.5 * mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))

            layer.mlp.forward = beside
    optimiser = torch.optim.AdamW(learned.values(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    (rows,) = trainer.train
    schedule = Schedule(rows, settings.batch, run.recipe.seed)
    for step in range(settings.steps):
        batch = pad(schedule(step))
        logits = model(batch.ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=UNSCORED)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.values(), settings.clip)
        optimiser.param_groups[0]["lr"] = plan.settings.lr * factor(step, settings)
        optimiser.step()
    return {path: p.detach() for path, p in model.named_parameters()}


@pytest.mark.parity
@pytest.mark.parametrize(("layers", "inside"), [(None, (0, 1)), ("1..", (1,))])
def test_an_ffn_expert_is_what_the_naive_loop_makes_of_those_tensors_alone(place, tmp_path, layers, inside):
    more = {} if layers is None else {"layers": layers}
    run = opened(recipe_in(place, "ffn", **more), tmp_path)
    folder = trained(run, "sums")
    expected = naive(run, "sums", lambda path: any(f"layers.{n}.mlp." in path for n in inside))
    found = read_tensors(folder / "model.safetensors")
    assert set(found) == {path for path in expected if any(f"layers.{n}.mlp." in path for n in inside)}
    base = read_tensors(place / "base/model.safetensors")
    for path, tensor in found.items():
        torch.testing.assert_close(tensor, expected[path], atol=2e-6, rtol=1e-4)
        assert not torch.allclose(tensor, base[path], atol=1e-4), "it was trained"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "ffn_config.json", "manifest.json"}
    manifest = read_manifest(folder)
    assert (manifest["layers"], manifest["adapter"], "anchor" in manifest) == ([*inside], "ffn", False)
    assert manifest["parameters"] == len(inside) * 3 * 32 * WIDTH


@pytest.mark.parity
def test_a_whole_model_is_what_the_naive_loop_makes_of_all_tensors(place, tmp_path):
    # Adam makes a whole step of a gradient that is rounding alone, so the steps are small beside the bound.
    run = opened(recipe_in(place, "model", "experts.sums.train.lr=1e-3"), tmp_path)
    folder = trained(run, "sums")
    expected = naive(run, "sums", lambda path: True)
    found = read_tensors(folder / "model.safetensors")
    base = read_tensors(place / "base/model.safetensors")
    assert set(found) == set(base)
    for path, tensor in found.items():
        torch.testing.assert_close(tensor, expected[path], atol=2e-6, rtol=1e-4)
        assert not torch.equal(tensor, base[path]), "everything learns, the embedding too"
    assert (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file(), "a model by itself"


@pytest.mark.parity
def test_an_anchored_expert_is_trained_with_half_the_say(place, tmp_path):
    run = opened(recipe_in(place, "ffn", anchor=True), tmp_path)
    folder = trained(run, "sums")
    expected = naive(run, "sums", lambda path: ".mlp." in path, halved=True)
    for path, tensor in read_tensors(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[path], atol=2e-6, rtol=1e-4)
    assert read_manifest(folder)["anchor"] is True
    assert verify_expert(run, "sums")["gain"] > 0, "measured as it was trained"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "more"), [("ffn", {}), ("ffn", {"anchor": True}), ("model", {})], ids=str)
def test_only_what_is_trained_is_in_its_state_and_killed_and_resumed_it_has_the_same_bytes(
    place, tmp_path, monkeypatch, kind, more
):
    whole = trained(opened(recipe_in(place, kind, **more), tmp_path / "whole"), "sums")
    run, honest = opened(recipe_in(place, kind, **more), tmp_path / "cut"), experts.fit

    def killed(parameters, batch, loss, validate, settings, lr, record, *rest, **more):
        def last_words(row):
            record(row)
            if row["step"] == 2:
                raise KeyboardInterrupt

        return honest(parameters, batch, loss, validate, settings, lr, last_words, *rest, **more)

    monkeypatch.setattr(experts, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(run, "sums")
    (state,) = run.dir.states_at(run.dir.part_at("sums")).glob("lr-*/state.safetensors")
    held = {name for name in read_tensors(state) if name.startswith("parameters.")}
    assert len(held) == (3 * LAYERS if kind == "ffn" else len(read_tensors(place / "base/model.safetensors")))
    steps = []

    def counted(*given, **more):
        return honest(*given[:6], lambda row: (steps.append(row["step"]), given[6](row)), *given[7:], **more)

    monkeypatch.setattr(experts, "fit", counted)
    again = trained(run, "sums")
    assert steps == [2, 3], "taken up after the state that was saved"
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not run.dir.states_at(run.dir.part_at("sums")).exists()


@pytest.mark.parametrize("kind", ["ffn", "model"])
def test_a_tether_changes_what_is_learned(place, tmp_path, kind):
    def learned(*overrides: str) -> dict[str, torch.Tensor]:
        more = ("experts.sums.train.steps=6", *overrides)  # an expert that changes nothing yet does not diverge
        run = opened(recipe_in(place, kind, *more), tmp_path / str(len(more)))
        return read_tensors(trained(run, "sums") / "model.safetensors")

    free, tethered = learned(), learned("experts.sums.train.tether=5")
    assert free.keys() == tethered.keys()
    assert any(not torch.allclose(free[path], tethered[path], atol=1e-4) for path in free)


@pytest.mark.parametrize("kind", ["ffn", "model"])
def test_what_an_expert_depends_on_is_in_its_key(place, tmp_path, kind):
    def key(*overrides: str, name: str = "sums", **more: object) -> str:
        return ExpertPart(opened(recipe_in(place, kind, *overrides, **more), tmp_path), name).key

    assert key() == key("workers=2", "evaluate.limit=3", "router.epochs=9", "experts.birds.train.steps=9")
    changed = [key("seed=1"), key("experts.sums.train.steps=9"), key("experts.sums.data.test=birds_test.jsonl")]
    changed += [key("experts.sums.data.validation=0.4"), key("experts.sums.train.lr=[0.1]")]
    changed += [key("experts.sums.train.tether=0.5")]
    if kind == "ffn":
        changed += [key(layers="1.."), key(anchor=True)]
    assert len({key(), *changed}) == 1 + len(changed) - 1, "all but the test split, which it does not depend on"


@pytest.mark.parametrize("kind", ["ffn", "model"])
def test_an_expert_is_read_back_and_one_that_does_nothing_is_noticed(place, tmp_path, kind):
    run = opened(recipe_in(place, kind), tmp_path)
    trained(run, "sums")
    found = verify_expert(run, "sums")
    assert found["validation_nats"] == pytest.approx(found["manifest"], rel=1e-5) and found["gain"] > 0
    facts = {key: read_manifest(run.dir.part_at("sums"))[key] for key in ("metrics", "name")}
    facts["metrics"]["validation_nats"] = found["base"]
    plan, base = plan_of(run, "sums"), run.models.base
    made = started_in(run, plan)[1].take()
    run.dir.publish(run.dir.part_at("sums"), lambda folder: plan.kind.save(folder, made, base, facts), 0)
    with pytest.raises(CompatibilityError, match="does not do what its manifest says.*changes nothing"):
        verify_expert(run, "sums")


def test_the_control_of_all_blocks_starts_as_the_base_and_is_as_wide_as_all_experts(place, tmp_path):
    run = opened(recipe_in(place, "ffn", anchor=True), tmp_path)
    joint, wide = (plan_of(run, name) for name in ("joint", "joint_wide"))
    assert (joint.design.inner, joint.design.anchor, wide.design.inner) == (0, False, 2 * WIDTH)
    assert joint.settings.steps == wide.settings.steps == 6 and set(joint.train) == {"sums", "birds"}
    decoder, begun = started_in(run, wide)
    ids = torch.tensor([run.models.base.tokenizer.encode("add 3 to 4")])
    torch.testing.assert_close(decoder(ids).logits, run.models.base.decoder(ids).logits, atol=1e-6, rtol=1e-5)
    ffn = begun.take()
    assert isinstance(ffn, FFN) and ffn.num_parameters == 2 * LAYERS * 3 * 32 * WIDTH
    gate, _, down = ffn.blocks["layers.0.mlp"]
    assert not down[WIDTH:].any() and gate[WIDTH:].std() == pytest.approx(gate[:WIDTH].std().item(), rel=0.1)
    folder = trained(run, "joint_wide")
    read = wide.kind.reload(folder, run.task.fresh(), wide.design)
    assert read.decoder.get_parameter("layers.1.mlp.down_proj.weight")[:, WIDTH:].any(), "what was added learns"
    assert read_manifest(folder)["parameters"] == ffn.num_parameters


def test_where_experts_have_other_layers_the_wide_control_has_no_fewer_parameters(place, tmp_path):
    run = opened(recipe_in(place, "ffn", layers="1.."), tmp_path)
    wide = plan_of(run, "joint_wide")
    assert wide.layers is None and wide.design.inner == 74 >= 3 * WIDTH / 2  # three blocks over two layers


def test_whole_models_have_one_joint_control(place, tmp_path):
    run = opened(recipe_in(place, "model"), tmp_path)
    assert plan_of(run, "joint").design == Whole()
    with pytest.raises(RecipeError, match="no expert 'joint_wide' is trained here"):
        experts.check_names(run.recipe, ["joint_wide"])
    assert isinstance(started_in(run, plan_of(run, "joint"))[1].take(), Decoder)


def test_an_expert_of_another_base_is_refused(place, tmp_path):
    run = opened(recipe_in(place, "ffn"), tmp_path)
    trained(run, "sums")
    stored, plan = load_ffn(run.dir.part_at("sums")), plan_of(run, "sums")
    run.dir.publish(run.dir.part_at("sums"), lambda at: save_ffn(at, stored.ffn, "f" * 64, {}), 0)
    with pytest.raises(CompatibilityError, match="trained on another base"):
        plan.kind.reload(run.dir.part_at("sums"), run.task.fresh(), plan.design)


def test_an_expert_tells_of_rows_that_are_cut_and_warns_of_rows_that_spell_special_tokens(tmp_path):
    place, told = fill(tmp_path), Told()
    rows = [{"text": f"{word} " * 30 + "<|end|>"} for word in ("add", "sing", "say", "ask")]
    (place / "sums_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = opened(recipe_in(place, "ffn", "train.steps=1"), tmp_path / "run")
    train_one(run.address, "sums", Jobs(1, told).report("sums"))
    (cut,) = [note for note in told.notes if "cut" in note]
    share = read_manifest(run.dir.part_at("sums"))["rows"]["cut"]
    assert (
        cut == f"sums: 3 of 3 training rows are cut to 48 tokens (train.length): {share:.1%} of all tokens are not read"
    )
    lengths = [len(run.models.base.tokenizer.begin(row.response)) + 1 for row in run.materials.domains["sums"].train]
    assert share == 1 - 3 * 48 / sum(lengths)
    (warned,) = told.warnings
    assert warned.startswith("sums: 3 of 3 rows spell special tokens, such as <|end|>, which are read as text")
    train_one(run.address, "birds", Jobs(1, told).report("birds"))
    assert len(told.warnings) == 1 and not any("birds" in note for note in told.notes)
