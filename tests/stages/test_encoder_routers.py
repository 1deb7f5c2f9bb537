"""Journey: a small real run whose router reads sentences with all-MiniLM-L6-v2: trained, judged, moved,
replayed, run again.
"""

import json
import shutil

import pytest
import torch
from small_runs import opened, silent

import moesaic
from moesaic.artefacts.base import load_base
from moesaic.artefacts.manifest_words import ENCODER
from moesaic.artefacts.router import load_router
from moesaic.artefacts.sentence_encoder import load_sentences, save_sentences
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.evaluate.replay import replay
from moesaic.files import MANIFEST, read_manifest, write_manifest
from moesaic.recipe import parse
from moesaic.runs.progress import Silent
from moesaic.stages import train_router
from moesaic.stages.routers import RouterPart, features_of, read_features, specs

RECIPE = {
    "name": "sentences",
    "workers": 1,
    "base": {
        "size": "nano",
        "vocab_size": 300,
        "pretrain": {"steps": 2, "batch": 4, "length": 64, "lr": 1e-2, "evaluate_every": 0},
    },
    "train": {"steps": 2, "batch": 4, "length": 64, "lr": [1e-2], "evaluate_every": 0},
    "experts": {
        name: {"kind": "lora", "rank": 2, "data": {"train": f"{name}.jsonl", "test": f"{name}_test.jsonl"}}
        for name in ("cooking", "weather")
    },
    "evaluate": {"controls": ["base"], "samples": 0},
}
COOKING = ["onions", "carrots", "leeks", "beans", "noodles"], ["fry", "boil", "roast", "steam"]
WEATHER = ["Oslo", "Lima", "Cairo", "Perth", "Quito"], ["rain", "snow", "thunder", "sunshine"]
LONG = "How do I keep my soup warm? " * 20
ASKED = ["How long do I bake a potato?", "Is a storm coming to Rome?", "salt", "Nach Regen kommt Sonne."]

pytestmark = pytest.mark.slow  # a run of its own over real MiniLM weights


@pytest.fixture(scope="module")
def made(tmp_path_factory, minilm):
    """The recipe, and the run directory where all of it was made."""
    folder = tmp_path_factory.mktemp("sentences")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps({"prompt": p, "response": "Yes."}) + "\n" for p in rows))

    cooking = [f"How should I {verb} {thing} for dinner?" for thing in COOKING[0] for verb in COOKING[1]]
    weather = [f"Will there be {kind} in {city} tomorrow?" for city in WEATHER[0] for kind in WEATHER[1]]
    for name, rows in (("cooking", cooking), ("weather", weather)):
        write(f"{name}.jsonl", rows[:16])
        write(f"{name}_test.jsonl", rows[16:])
    short = shutil.copytree(minilm, folder / "short")  # the same model, reading no more than 9 tokens of a text
    (short / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    whole, cut = ({"kind": "encoder", "model": str(at)} for at in (minilm, short))
    router = {"kind": "linear", "epochs": 5, "feature": whole, "abstain": "off"}  # a guard knows no such words
    rivals = [{"kind": "centroid", "feature": one} for one in (cut, whole, "embedding_mean")]
    recipe = parse({**RECIPE, "router": {**router, "compare": rivals}}, (), folder / "recipe.yaml")
    root = folder / "run"
    return recipe, root, moesaic.run(recipe, root)


def test_it_tells_experts_apart_that_it_never_read_the_words_of(made):
    _, root, evaluation = made
    tried = {(router["kind"], router["feature"]): router for router in evaluation["router"]["tried"]}
    assert tried["linear", "encoder"]["accuracy"] == 1.0
    assert {*tried} >= {("centroid", "encoder"), ("centroid", "embedding_mean")}
    assert evaluation["parameters"]["encoder"] == 22_713_216
    assert [one.chosen for one in moesaic.load(root).route(ASKED[:2])] == ["cooking", "weather"]


def test_a_run_holds_an_encoder_once_however_many_routers_read_it(made):
    """The one that reads less of a text is another encoder; the mixture holds that of its own router."""
    _, root, _ = made
    folders = [root / "router", root / "mixture" / "router", *sorted((root / "controls" / "routers").glob("*"))]
    found = [at / ENCODER / "model.safetensors" for at in folders if (at / ENCODER).is_dir()]
    assert len(found) == 4 and len({path.stat().st_ino for path in found}) == 2
    assert found[0].samefile(found[1])


def test_moved_elsewhere_it_answers_the_same_without_the_encoder_it_was_made_with(made, tmp_path):
    _, root, _ = made
    mixture = moesaic.load(root)
    before = mixture.route(ASKED), [one.text for one in mixture.generate(ASKED, max_new_tokens=5)]
    moved = moesaic.load(shutil.copytree(root / "mixture", tmp_path / "moved"))
    assert (moved.route(ASKED), [one.text for one in moved.generate(ASKED, max_new_tokens=5)]) == before
    again = moesaic.load(moved.save_pretrained(tmp_path / "saved"))
    assert again.route(ASKED) == before[0]
    assert moesaic.inspect(tmp_path / "moved").parts["router"].parts["encoder"].kind == "encoder"


def test_a_prompt_is_routed_the_same_alone_and_in_a_batch(made):
    mixture = moesaic.load(made[1])
    for text, together in zip(ASKED, mixture.route(ASKED), strict=True):
        alone = mixture.route(text)
        assert alone.chosen == together.chosen
        assert alone.weights == pytest.approx(together.weights, abs=1e-5)


@torch.no_grad()
def test_what_is_learned_from_is_what_is_read_when_asked(made, minilm):
    """The features of training are the vectors of the prompts' texts, in the order of the rows."""
    recipe, root, _ = made
    run = opened(recipe, root)
    rows = [row for some in run.task.test_rows.values() for row in some]
    own = recipe.router.feature
    states, vectors = features_of(run, rows, ["embedding_mean", own], silent())
    texts = [run.models.base.tokenizer.decode(row.ids[: row.prompt]) for row in rows]
    assert any("onions" in text or "noodles" in text for text in texts) and len(states) == len(texts)
    encoder = load_sentences(minilm).sentences
    for text, vector in zip(texts, vectors, strict=True):
        assert (encoder([text])[0] - vector).abs().max() <= 1e-6
    assert features_of(run, rows, [own], silent())[0].equal(vectors)


def test_a_text_that_comes_again_is_computed_once(made, monkeypatch):
    recipe, root, _ = made
    run = opened(recipe, root)
    row = run.task.test_rows["cooking"][0]
    seen = []
    sentences = run.models.encoder(recipe.router.feature).sentences
    forward = type(sentences).forward
    monkeypatch.setattr(type(sentences), "forward", lambda self, texts: seen.extend(texts) or forward(self, texts))
    (vectors,) = features_of(run, [row] * 3, [recipe.router.feature], silent())
    assert len(seen) == 1 and vectors.shape == (3, 384) and vectors[0].equal(vectors[2])


def test_texts_that_are_cut_are_counted(made):
    recipe, root, _ = made
    features = [recipe.router.feature, recipe.router.compare[0].feature, "text"]
    read = read_features(opened(recipe, root).address, "weather", "train", dict.fromkeys(features, 99), silent())
    assert [*read.truncated.values()] == [0, len(read.features[features[0]]), 0]
    infos = {name: root / "controls" / "routers" / name for name in ("centroid-encoder", "centroid-embedding_mean")}
    infos = {name: json.loads((at / "training_info.json").read_text()) for name, at in infos.items()}
    short = infos["centroid-encoder"]
    read_once = sum(short["examples"].values()) // short["forms"], short["validation_examples"] // short["forms"]
    assert short["truncated"] == dict(zip(("train", "validation"), read_once, strict=True))
    assert "truncated" not in infos["centroid-embedding_mean"]
    assert json.loads((root / "router" / "training_info.json").read_text())["truncated"] == {
        "train": 0,
        "validation": 0,
    }


def test_a_trace_of_it_is_replayed_with_the_encoder_that_lies_in_the_router(made, tmp_path):
    _, root, _ = made
    with moesaic.load(root, trace=tmp_path / "trace.jsonl", trace_texts=True) as mixture:
        mixture.generate(ASKED, max_new_tokens=1)
    for router in (root, root / "router", root / "mixture" / "router"):
        found = replay(tmp_path / "trace.jsonl", router)
        assert (found["compared"], found["agreement"]) == (len(ASKED), 1.0)
    assert replay(tmp_path / "trace.jsonl", root / "controls" / "routers" / "centroid-encoder")["compared"] == len(
        ASKED
    )


def test_run_again_it_is_skipped_wherever_the_encoder_lies_and_another_encoder_redoes_it(made, minilm, tmp_path):
    recipe, root, _ = made
    key = read_manifest(root / "router")["stage_key"]
    elsewhere = recipe.router.feature.model_copy(update={"model": str(shutil.copytree(minilm, tmp_path / "copy"))})
    moved = recipe.model_copy(update={"router": recipe.router.model_copy(update={"feature": elsewhere})})
    for one in (recipe, moved):
        run = opened(one, root)
        assert RouterPart(run, "router", specs(run)["router"]).finished(Silent())
    train_router(moved, root)
    assert read_manifest(root / "router")["stage_key"] == key
    (tmp_path / "copy" / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    run = opened(moved, root)
    assert not RouterPart(run, "router", specs(run)["router"]).finished(Silent())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_router_over_another_encoder_or_none_is_refused(made, tmp_path):
    _, root, _ = made
    router = shutil.copytree((root / "router").resolve(), tmp_path / "router")
    base = load_base(root / "base").fingerprint
    fields = {k: v for k, v in read_manifest(router).items() if k not in ("files", "format_version", "package_version")}
    stored = load_router(router, base).encoder
    stored.sentences.encoder.embeddings.LayerNorm.bias.data += 1
    shutil.rmtree(router / ENCODER)
    with pytest.raises(WeightsError, match="the file is missing"):
        load_router(router, base)
    (router / ENCODER).mkdir()
    save_sentences(router / ENCODER, stored)
    write_manifest(router, fields)
    with pytest.raises(CompatibilityError, match="encoder_fingerprint: the router was trained on another encoder"):
        load_router(router, base)
    assert (router / ENCODER / MANIFEST).is_file()


def test_an_encoder_that_is_not_there_is_named(made, tmp_path):
    recipe, _, _ = made
    nowhere = recipe.router.feature.model_copy(update={"model": "someone/their-encoder"})
    recipe = recipe.model_copy(update={"router": recipe.router.model_copy(update={"feature": nowhere})})
    run = opened(recipe, tmp_path)
    with pytest.raises(WeightsError, match=r"^router\.feature\.model: no such folder.*: someone/their-encoder"):
        run.models.encoder(recipe.router.feature)
