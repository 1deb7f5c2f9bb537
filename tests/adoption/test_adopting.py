"""A mixture of experts that are there already: who goes in, how sure its router is, and every later change."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from small_domains import TEXTS
from small_runs import Told

import moesaic
from moesaic.adapters import merge
from moesaic.adoption import adopting
from moesaic.adoption.adopting import features_of, unlike
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.compose.mixture import load_mixture
from moesaic.data.neutral import neutral
from moesaic.data.rows import read_examples
from moesaic.errors import CompatibilityError, DataError, MoesaicError, RecipeError, StorageError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.hub.locate import Located
from moesaic.tensors.tensors import read_tensors
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Message, Template, Tokenizer

NAMES = [*TEXTS]


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A base, an adapter for each domain (the first of them foreign), prompts, and fine-tuned models."""
    folder = tmp_path_factory.mktemp("adopted")
    tokenizer = Tokenizer.train([text for some in TEXTS.values() for text in some], 300)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("base", "tuned", "far", *NAMES):
        (folder / name).mkdir()
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = load_base(folder / "base").fingerprint
    experts = [toy_expert(decoder, seed, rank=seed + 1) for seed in range(3)]
    for name, lora in zip(NAMES, experts, strict=True):
        save_expert(folder / name, lora, fingerprint, {"name": name})
        (folder / f"{name}.txt").write_text("\n".join(TEXTS[name]))
    (folder / "sums" / MANIFEST).unlink()
    merge(decoder, [experts[1]], [0.1])
    save_base(folder / "tuned", decoder, tokenizer, {})
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(3)
    save_base(folder / "far", decoder, tokenizer, {})
    return folder


def adopt(parts, out, names=NAMES, prompts=True, **more):
    given = {name: parts / f"{name}.txt" for name in names} if prompts else None
    return moesaic.adopt([parts / name for name in names], parts / "base", out, prompts=given, **more)


def router_of(root):
    folder = root / "mixture" / "router"
    return {file: (folder / file).read_bytes() for file in ("router.safetensors", "training_info.json")}


# --- making one -------------------------------------------------------------------------------------------------------


def test_what_is_adopted_routes_answers_and_is_saved_like_any_mixture(parts, tmp_path):
    made = adopt(parts, tmp_path / "mine", abstain="off")
    assert made.names == (*NAMES,) and made.folder == tmp_path / "mine" / "mixture"
    assert made.router["kind"] == "linear" and made.router["of"] == dict.fromkeys(NAMES, 10)
    mixture = moesaic.load(tmp_path / "mine")
    texts = ["the heron sings in the old tree", "def z(x): return x * 77", "add 7 and 7 and say the sum"]
    assert [one.chosen for one in mixture.route(texts)] == ["birds", "code", "sums"]
    assert mixture.generate(texts[0], max_new_tokens=3).routing.chosen == "birds"
    mixture.save_pretrained(tmp_path / "copy")
    assert moesaic.load(tmp_path / "copy").route(texts) == mixture.route(texts)
    manifest = read_manifest(made.folder, "mixture")
    assert manifest["name"] == "mine" and manifest["adopted"]["router"] == made.router and manifest["disabled"] == []
    found = moesaic.inspect(made.folder)
    assert [found.parts[f"expert {name}"].verified for name in NAMES] == [False, True, True]
    assert [made.experts[name]["verified"] for name in NAMES] == [False, True, True]


def test_the_accuracy_that_is_told_is_that_of_prompts_left_out(parts, tmp_path):
    mixed = tmp_path / "mixed.txt"
    mixed.write_text("\n".join(TEXTS["sums"][::2] + TEXTS["birds"][::2]))
    names = ["sums", "birds"]
    told = moesaic.adopt(
        [parts / name for name in names],
        *(parts / "base", tmp_path / "out"),
        prompts={"sums": mixed, "birds": parts / "birds.txt"},
    ).router
    assert told["right"]["sums"] < 10 and told["accuracy"] == pytest.approx(sum(told["right"].values()) / 20)


@pytest.mark.slow
def test_without_prompts_the_router_is_made_of_weights_and_says_so(parts, tmp_path):
    made = adopt(parts, tmp_path / "out", prompts=False)
    assert made.router["kind"] == "arrow" and "accuracy" not in made.router
    assert set(made.router["alike"]) < set(NAMES) and 0 < made.router["overlap"] < 1
    mixture = moesaic.load(tmp_path / "out")
    texts = [text for some in TEXTS.values() for text in some]
    alone = [mixture.route(text).weights for text in texts]
    assert [one.weights for one in mixture.route(texts)] == alone
    made = mixture.generate(texts[0], max_new_tokens=2)
    assert made.routing.chosen == mixture.route(texts[0]).chosen


def test_experts_are_called_as_their_folders_or_as_one_says(parts, tmp_path):
    (tmp_path / "run" / "chat").mkdir(parents=True)
    shutil.copytree(parts / "code", tmp_path / "run" / "chat" / "best")
    chat = tmp_path / "run" / "chat"
    made = moesaic.adopt([chat, parts / "sums"], parts / "base", tmp_path / "one")
    assert made.names == ("chat", "sums")
    made = moesaic.adopt([chat / "best", parts / "sums"], parts / "base", tmp_path / "two")
    assert made.names == ("chat", "sums")
    made = moesaic.adopt({"x": parts / "code", "y": parts / "sums"}, parts / "base", tmp_path / "z", name="named")
    assert made.names == ("x", "y") and read_manifest(made.folder)["name"] == "named"


@torch.no_grad()
def test_a_fine_tuned_model_becomes_an_expert_that_answers_like_it(parts, tmp_path):
    told = Told()
    experts = {"tuned": parts / "tuned", "code": parts / "code"}
    made = moesaic.adopt(experts, parts / "base", tmp_path / "out", rank=4, progress=told)
    assert made.experts["tuned"]["kept"] == pytest.approx(1, abs=1e-6) and made.experts["tuned"]["outside"] == 0
    assert told.warnings == [] and "keeps 100.0%" in told.notes[0]
    mixture, tuned = load_mixture(made.folder), load_base(parts / "tuned").decoder
    ids = torch.tensor([mixture.tokenizer.begin("add 3 and 4")])
    from moesaic.routing import Gates

    found = mixture.model.score(ids, Gates.one(0, 1, 2, torch.zeros(1)))
    torch.testing.assert_close(found, tuned(ids).logits, rtol=1e-3, atol=1e-3)
    less = moesaic.adopt(experts, parts / "base", tmp_path / "less", rank=1).experts["tuned"]
    assert 0.3 < less["kept"] < 0.95


def test_what_fine_tuning_changed_elsewhere_is_told_or_too_much(parts, tmp_path):
    with pytest.raises(CompatibilityError, match=r"outside the linears; .*50%.*embed_tokens\.weight by 200\.00%"):
        moesaic.adopt([parts / "far", parts / "code"], parts / "base", tmp_path / "out")
    base = load_base(parts / "tuned")
    with torch.no_grad():
        base.decoder.norm.weight[0] += 0.1
    (tmp_path / "near").mkdir()
    save_base(tmp_path / "near", base.decoder, base.tokenizer, {})
    told = Told()
    moesaic.adopt([tmp_path / "near", parts / "code"], parts / "base", tmp_path / "out", progress=told)
    assert len(told.warnings) == 1 and "near: " in told.warnings[0] and "norm.weight by" in told.warnings[0]


def test_what_is_kept_of_a_prompt_is_its_own_feature_in_the_order_of_the_file(parts, tmp_path):
    texts = ["the owl", "a wren that sings in the old tree", "an old rook"]
    (tmp_path / "some.txt").write_text("\n".join(texts))
    given = {"sums": parts / "sums.txt", "birds": tmp_path / "some.txt"}
    moesaic.adopt([parts / "sums", parts / "birds"], parts / "base", tmp_path / "out", prompts=given)
    kept = read_tensors(tmp_path / "out/mixture/router/features.safetensors")["birds"]
    base = load_base(parts / "base")
    for row, text in zip(kept, texts, strict=True):
        torch.testing.assert_close(row, adopting.features_of(base, [text], "birds")[0], rtol=1e-5, atol=1e-5)


def test_a_tokenizer_beside_an_adapter_is_told_or_refused_by_the_name_of_the_expert(parts, tmp_path):
    own, told = load_base(parts / "base").tokenizer, Told()
    chat = shutil.copytree(parts / "code", tmp_path / "chat")
    own.template = Template("{{ messages[0].content }}")
    own.save(chat)
    made = moesaic.adopt([chat, parts / "birds"], parts / "base", tmp_path / "out", progress=told)
    assert made.names == ("chat", "birds")
    assert told.warnings == ["chat: its chat template differs from the base's, which is used"]
    Tokenizer.train(["other words"], 280).save(chat)
    with pytest.raises(CompatibilityError, match="chat: the tokenizer beside the adapter gives ids to other tokens"):
        moesaic.adopt([chat, parts / "birds"], parts / "base", tmp_path / "other")


def test_a_prompt_that_the_bases_chat_template_refuses_is_named(parts, tmp_path):
    base = load_base(parts / "base")
    base.tokenizer.template = Template(
        "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}ask"
    )
    said = [(Message("user", text),) for text in ("yes", "no")]
    with pytest.raises(DataError, match=r"^prompts\.birds\[1\]: the base's chat template .* conversation: never"):
        adopting.features_of(base, said, "birds")


# --- changing one -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [True, False])
def test_adding_one_expert_gives_the_router_of_adopting_all_at_once(prompts, parts, tmp_path):
    adopt(parts, tmp_path / "all", prompts=prompts)
    adopt(parts, tmp_path / "some", NAMES[:2], prompts)
    given = {"code": parts / "code.txt"} if prompts else None
    made = moesaic.amend(tmp_path / "some", [parts / "code"], prompts=given)
    assert made.names == (*NAMES,) and router_of(tmp_path / "some") == router_of(tmp_path / "all")


def traffic(path: Path, *rows: tuple[str, str | None], texts: bool = True) -> Path:
    """A trace of prompts that were answered by the base, each with its correction."""
    weights = dict.fromkeys(NAMES, 0.0)
    given = {"forced": False, "probabilities": None, "weights": weights, "chosen": "base", "mixture": "0123456789ab"}
    every = [
        {"time": "2026-01-31T12:00:00Z", "tokens": 9, "correction": expert, **given}
        | ({"prompt": prompt} if texts else {"prompt_sha256": "0" * 64})
        for prompt, expert in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in every))
    return path


STRANGE = ("wo ist die Katze?", "wer hat den Ball?", "wann kommt der Zug?", "wie alt ist das Haus?")


def test_a_router_learns_corrected_prompts_in_place_of_earlier_ones(parts, tmp_path):
    adopt(parts, tmp_path / "all")
    before, plain = router_of(tmp_path / "all"), moesaic.load(tmp_path / "all").route([*STRANGE])
    trace = traffic(tmp_path / "traffic.jsonl", *((text, "sums") for text in STRANGE), ("add 1 and 2", None))
    made = moesaic.amend(tmp_path / "all", corrections=trace)
    assert made.router["corrected"] == {"sums": 4} and made.router["of"]["sums"] > 4
    learned = moesaic.load(tmp_path / "all").route([*STRANGE])
    assert all(new.probabilities["sums"] > old.probabilities["sums"] for new, old in zip(learned, plain, strict=True))
    assert [one.chosen for one in learned] == ["sums"] * 4
    after = router_of(tmp_path / "all")
    moesaic.amend(tmp_path / "all", corrections=trace)
    assert router_of(tmp_path / "all") == after != before, "the same trace again changes nothing"
    for_base = traffic(tmp_path / "base.jsonl", (STRANGE[0], "sums"), (STRANGE[0], "base"), (STRANGE[1], "gone"))
    told = Told()
    made = moesaic.amend(tmp_path / "all", corrections=for_base, progress=told)
    assert made.router["corrected"] == {"base": 1} and "corrections name gone" in told.warnings[0]
    moesaic.amend(tmp_path / "all", drop=["code"])
    assert moesaic.amend(tmp_path / "all", [parts / "code"], prompts={"code": parts / "code.txt"}).router[
        "corrected"
    ] == {"base": 1}, "what corrections say stays when experts come and go"


def test_corrections_that_teach_nothing_are_refused(parts, tmp_path):
    adopt(parts, tmp_path / "all")
    hashed = traffic(tmp_path / "hashed.jsonl", ("x", "sums"), texts=False)
    with pytest.raises(
        DataError, match="no corrections to learn: 1 corrections, 0 prompts with their text; record texts too"
    ):
        moesaic.amend(tmp_path / "all", corrections=hashed)
    adopt(parts, tmp_path / "arrow", prompts=False)
    with pytest.raises(RecipeError, match="corrections: the mixture's router learns no single prompts"):
        moesaic.amend(tmp_path / "arrow", corrections=traffic(tmp_path / "some.jsonl", ("x", "sums")))


GROUPS = {"text": ["birds", "code"], "exact": ["sums"]}


def test_a_router_of_groups_is_a_tree_that_keeps_them_whatever_comes_and_goes(parts, tmp_path):
    made = adopt(parts, tmp_path / "all", groups=GROUPS)
    assert made.router["kind"] == "tree" and made.router["groups"] == GROUPS and made.router["accuracy"] > 0.8
    mixture = moesaic.load(tmp_path / "all")
    texts = ["the heron sings in the old tree", "def z(x): return x * 77", "add 7 and 7 and say the sum"]
    assert [one.chosen for one in mixture.route(texts)] == ["birds", "code", "sums"]
    mixture.save_pretrained(tmp_path / "copy")
    assert moesaic.load(tmp_path / "copy").route(texts) == mixture.route(texts)

    alone = adopt(parts, tmp_path / "some", NAMES[:2], groups={"text": ["birds"], "exact": ["sums"]})
    assert alone.router["groups"] == {"text": ["birds"], "exact": ["sums"]}
    given = {"code": parts / "code.txt"}
    added = moesaic.amend(tmp_path / "some", [parts / "code"], prompts=given, groups={"text": ["code"]})
    assert added.router == made.router and router_of(tmp_path / "some") == router_of(tmp_path / "all")
    assert moesaic.amend(tmp_path / "some", drop=["code"]).router["groups"] == alone.router["groups"]
    with pytest.raises(RecipeError, match="groups: too few groups; expected two or more; got text"):
        moesaic.amend(tmp_path / "all", drop=["sums"])


BAD_GROUPS = [
    (
        {"text": ["birds", "cod"], "exact": ["sums"]},
        "groups.text: no such expert.*got 'cod'|got cod; did you mean 'code'",
    ),
    ({"text": ["birds", "code"], "exact": ["sums", "code"]}, "groups.exact: the expert is in a group already: code"),
    ({"text": ["birds"], "exact": ["sums"]}, "groups: not every expert is in a group: .*add to a group: code"),
    ({"text": ["birds", "code", "sums"]}, "groups: too few groups"),
    ({"text": ["birds", "code", "sums"], "none": []}, "groups.none: a group without experts"),
]


@pytest.mark.parametrize(("groups", "said"), BAD_GROUPS, ids=lambda value: str(value)[:40])
def test_groups_that_do_not_hold_every_expert_once_are_refused(groups, said, parts, tmp_path):
    with pytest.raises(RecipeError, match=said):
        adopt(parts, tmp_path / "out", groups=groups)
    assert not (tmp_path / "out").exists()


def test_groups_need_prompts_and_a_mixture_that_has_groups(parts, tmp_path):
    with pytest.raises(RecipeError, match="no prompts for some of the experts"):
        adopt(parts, tmp_path / "out", prompts=False, groups=GROUPS)
    adopt(parts, tmp_path / "flat", NAMES[:2])
    given = {"code": parts / "code.txt"}
    with pytest.raises(RecipeError, match="groups: the mixture's router has no groups; adopt all experts anew"):
        moesaic.amend(tmp_path / "flat", [parts / "code"], prompts=given, groups={"text": ["code"]})
    adopt(parts, tmp_path / "tree", NAMES[:2], groups={"text": ["birds"], "exact": ["sums"]})
    with pytest.raises(RecipeError, match="not every expert is in a group.*add to a group: code"):
        moesaic.amend(tmp_path / "tree", [parts / "code"], prompts=given)
    with pytest.raises(RecipeError, match="groups.text: no such expert; expected code; got birds"):
        moesaic.amend(tmp_path / "tree", [parts / "code"], prompts=given, groups={"text": ["birds"]})


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [True, False])
def test_dropping_one_gives_the_router_of_the_others(prompts, parts, tmp_path):
    adopt(parts, tmp_path / "all", prompts=prompts)
    adopt(parts, tmp_path / "some", NAMES[1:], prompts)
    moesaic.amend(tmp_path / "all", drop=["sums"])
    assert router_of(tmp_path / "some") == router_of(tmp_path / "all")
    assert not (tmp_path / "all" / "mixture" / "experts" / "sums").exists()
    if prompts:
        assert set(read_tensors(tmp_path / "all/mixture/router/features.safetensors")) == {"birds", "code"}


def test_an_expert_is_replaced_by_dropping_it_and_adding_another_of_its_name(parts, tmp_path):
    adopt(parts, tmp_path / "out", prompts=False)
    before = load_mixture(tmp_path / "out" / "mixture").experts["birds"].fingerprint
    made = moesaic.amend(tmp_path / "out", {"birds": parts / "code"}, drop=["birds"])
    assert made.names == ("sums", "code", "birds")
    assert load_mixture(tmp_path / "out" / "mixture").experts["birds"].fingerprint != before


@pytest.mark.parametrize("prompts", [True, False])
def test_a_disabled_expert_is_never_chosen_but_answers_who_names_it(prompts, parts, tmp_path):
    adopt(parts, tmp_path / "out", prompts=prompts)
    text, standing = TEXTS["birds"][0], router_of(tmp_path / "out")
    before = moesaic.load(tmp_path / "out").route([text, *TEXTS["code"]])
    favourite = before[0].chosen
    made = moesaic.amend(tmp_path / "out", disable=[favourite])
    assert made.disabled == (favourite,) and router_of(tmp_path / "out") == standing
    mixture = moesaic.load(tmp_path / "out")
    told = mixture.route(text)
    assert told.chosen != favourite and told.weights[favourite] == 0 and sum(told.weights.values()) == 1
    assert mixture.generate(text, max_new_tokens=2).routing.chosen == told.chosen
    assert mixture.generate(text, max_new_tokens=2, expert=favourite).routing.chosen == favourite
    assert moesaic.amend(tmp_path / "out", enable=[favourite]).disabled == ()
    assert moesaic.load(tmp_path / "out").route([text, *TEXTS["code"]]) == before


@pytest.mark.slow
def test_a_disabled_expert_stays_so_when_others_come_and_go(parts, tmp_path):
    adopt(parts, tmp_path / "out", prompts=False)
    moesaic.amend(tmp_path / "out", disable=["birds"])
    assert moesaic.amend(tmp_path / "out", {"more": parts / "code"}).disabled == ("birds",)
    again = moesaic.amend(tmp_path / "out", {"birds": parts / "birds"}, drop=["birds"])
    assert again.disabled == (), "another expert of its name begins anew"
    assert moesaic.amend(tmp_path / "out", drop=["birds"], disable=["more"]).disabled == ("more",)


def test_a_base_is_copied_once_and_held_once_however_often_the_mixture_changes(parts, tmp_path, monkeypatch):
    """What is the user's may be written into, and is copied; what a version of ours holds is in the next the same."""
    adopt(parts, tmp_path / "out", NAMES[:2], prompts=False, embed=True)
    weights = tmp_path / "out" / "mixture" / "base" / "model.safetensors"
    assert not weights.samefile(parts / "base" / "model.safetensors")
    before, asked = os.stat(weights), []
    monkeypatch.setattr(adopting, "check_space", lambda path, needed, what: asked.append(needed))
    moesaic.amend(tmp_path / "out", [parts / "code"])
    moesaic.amend(tmp_path / "out", disable=["code"])
    assert os.stat(weights).st_ino == before.st_ino and os.stat(weights).st_nlink == 1, "no version is left behind"
    assert 0 < asked[0] < before.st_size and asked[1] == 0, "and no room is asked for it"
    assert moesaic.load(tmp_path / "out").names == (*NAMES,)


def test_a_mixture_refers_to_its_base_which_may_move_but_not_change(parts, tmp_path):
    base, text = shutil.copytree(parts / "base", tmp_path / "base"), "the heron sings in the old tree"
    moesaic.adopt({name: parts / name for name in NAMES}, base, tmp_path / "out", prompts=prompts_in(parts))
    mixture = moesaic.load(tmp_path / "out")
    expected = mixture.generate(text, max_new_tokens=4)
    assert not (mixture.folder / "base").exists() and read_manifest(mixture.folder)["base"]["place"] == str(base)
    assert moesaic.inspect(mixture.folder).parts["base"].verified
    copy = mixture.save_pretrained(tmp_path / "copy")
    assert (copy / "base" / "model.safetensors").is_file(), "a folder of this machine is copied along"
    assert "base" not in read_manifest(copy)
    thin = mixture.save_pretrained(tmp_path / "thin", embed=False)
    assert not (thin / "base").exists()

    base.rename(tmp_path / "moved")
    for gone in (tmp_path / "out", thin):
        with pytest.raises(WeightsError, match=r"the base of this mixture is missing: .*adopt --into MIXTURE --base"):
            moesaic.load(gone)
    assert moesaic.load(copy).generate(text, max_new_tokens=4) == expected
    found = moesaic.inspect(mixture.folder).parts["base"]
    assert found.kind == "missing base" and "is missing" in found.facts["problem"]
    with pytest.raises(CompatibilityError, match="base_fingerprint"):
        moesaic.amend(tmp_path / "out", base=parts / "far")
    moesaic.amend(tmp_path / "out", base=tmp_path / "moved")
    assert moesaic.load(tmp_path / "out").generate(text, max_new_tokens=4) == expected

    shutil.rmtree(tmp_path / "moved")
    shutil.copytree(parts / "far", tmp_path / "moved")
    with pytest.raises(CompatibilityError, match=r"the base at .*moved has changed.*put the old files back"):
        moesaic.load(tmp_path / "out")
    moesaic.amend(tmp_path / "out", base=parts / "base", embed=True)
    assert (tmp_path / "out" / "mixture" / "base").is_dir()
    assert moesaic.load(tmp_path / "out").generate(text, max_new_tokens=4) == expected


def prompts_in(parts):
    return {name: parts / f"{name}.txt" for name in NAMES}


def test_a_change_that_fails_leaves_the_mixture_as_it_was(parts, tmp_path):
    adopt(parts, tmp_path / "out")
    version = os.readlink(tmp_path / "out" / "mixture")
    broken = shutil.copytree(parts / "sums", tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="safetensors"):
        moesaic.amend(tmp_path / "out", {"broken": broken}, prompts={"broken": parts / "sums.txt"}, drop=["sums"])
    assert os.readlink(tmp_path / "out" / "mixture") == version
    assert moesaic.load(tmp_path / "out").names == (*NAMES,)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", ".versions", "mixture"]


def test_what_cannot_be_read_back_is_never_published(parts, tmp_path, monkeypatch):
    adopt(parts, tmp_path / "out", prompts=False)
    version, save = os.readlink(tmp_path / "out" / "mixture"), adopting.save_mixture

    def damaged(folder, *rest):
        save(folder, *rest)
        (folder / "experts" / "code" / "adapter_model.safetensors").write_bytes(b"damaged")

    monkeypatch.setattr(adopting, "save_mixture", damaged)
    with pytest.raises(WeightsError, match="the file was changed or damaged"):
        moesaic.amend(tmp_path / "out", disable=["code"])
    assert os.readlink(tmp_path / "out" / "mixture") == version


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "one alone": (["sums"], {}, RecipeError, "at least two experts"),
    "none": ([], {}, RecipeError, "at least two experts"),
    "no folder": (["sums", "nowhere"], {}, WeightsError, "nowhere: no such folder"),
    "twice": (["sums", "sums"], {}, RecipeError, "sums: given twice; give it a name: NAME=PATH"),
    "the base itself": (["sums", "base"], {}, RecipeError, "a reserved name"),
    "prompts for one": (["sums", "code"], {"sums": "sums.txt"}, RecipeError, "no prompts for some .*code"),
    "prompts of nobody": (["sums", "code"], {"cod": "code.txt"}, RecipeError, "no such expert.*did you mean 'code'"),
    "one prompt": (["sums", "code"], {"sums": "one.txt", "code": "code.txt"}, DataError, "at least 2; got 1"),
}


@pytest.mark.parametrize(("names", "prompts", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_mixture_is_refused_and_nothing_is_left(names, prompts, error, said, parts, tmp_path):
    (parts / "one.txt").write_text("one prompt\n")
    given = {name: parts / file for name, file in prompts.items()}
    with pytest.raises(error, match=said):
        moesaic.adopt([parts / name for name in names], parts / "base", tmp_path / "out", prompts=given)
    assert not (tmp_path / "out" / "mixture").exists()


def test_an_adapter_of_another_base_is_refused(parts, tmp_path):
    with pytest.raises(CompatibilityError, match="trained on another base"):
        moesaic.adopt([parts / "birds", parts / "code"], parts / "tuned", tmp_path / "out")
    other = tiny_decoder(3, torch.float32, num_layers=2, hidden_size=16, vocab_size=300)
    (tmp_path / "other").mkdir()
    save_expert(tmp_path / "other", toy_expert(other, 1), "0" * 64, {})
    (tmp_path / "other" / MANIFEST).unlink()
    with pytest.raises(CompatibilityError, match=r"_proj\.lora_\w\.weight: .*another base"):
        moesaic.adopt([tmp_path / "other", parts / "code"], parts / "base", tmp_path / "out")


def test_a_model_of_another_shape_is_no_fine_tuned_base(parts, tmp_path):
    tokenizer = load_base(parts / "base").tokenizer
    other = tiny_decoder(3, torch.float32, num_layers=3, vocab_size=tokenizer.vocab_size)
    (tmp_path / "other").mkdir()
    save_base(tmp_path / "other", other, tokenizer, {})
    with pytest.raises(CompatibilityError, match="num_layers: .*its shape differs; expected 2; got 3"):
        moesaic.adopt([tmp_path / "other", parts / "code"], parts / "base", tmp_path / "out")


def test_changes_that_cannot_be_made_are_refused_by_name(parts, tmp_path):
    adopt(parts, tmp_path / "out")
    adopt(parts, tmp_path / "bare", prompts=False)
    code = {"more": parts / "code"}
    for folder, how, error, said in [
        ("out", {}, RecipeError, "nothing to change"),
        ("out", {"experts": code}, RecipeError, "no prompts for some of the experts: more"),
        ("bare", {"experts": code, "prompts": {"more": parts / "code.txt"}}, RecipeError, "takes no prompts"),
        ("out", {"experts": [parts / "code"]}, RecipeError, "given twice"),
        ("out", {"drop": ["cod"]}, RecipeError, "drop: no such expert; .*did you mean 'code'"),
        ("out", {"enable": ["nobody"]}, RecipeError, "enable: no such expert"),
        ("out", {"drop": ["code", "birds"]}, RecipeError, "at least two experts; got sums|at least two experts: sums"),
        ("out", {"disable": NAMES}, RecipeError, "no expert would be left"),
        ("nowhere", {"drop": ["code"]}, WeightsError, "no mixture here"),
    ]:
        with pytest.raises(error, match=said):
            moesaic.amend(tmp_path / folder, **how)
    with pytest.raises(StorageError, match="a mixture already"):
        adopt(parts, tmp_path / "out")


def test_a_forged_list_of_disabled_experts_is_refused(parts, tmp_path):
    from moesaic.files import digest

    adopt(parts, tmp_path / "out", prompts=False)
    path = tmp_path / "out" / "mixture" / MANIFEST
    for forged in (["nobody"], "birds", [1]):
        said = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
        said["disabled"] = forged
        path.write_text(json.dumps({**said, "digest": digest(said)}))
        with pytest.raises(MoesaicError, match=r"disabled(\[0\])?: (unknown experts|the wrong type)"):
            load_mixture(tmp_path / "out" / "mixture")


# --- real texts -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_prompts_of_each_route_nine_in_ten_of_those_held_out(shared, tmp_path):
    """Over a base of 260 thousand parameters that knows children's stories, and nothing of any of these."""
    stories = shared / "models" / "stories260K"
    domains = {"math": "gsm8k", "code": "code_instruct", "tales": "tinystories"}
    if not stories.is_dir() or not all((shared / "data" / place).is_dir() for place in domains.values()):
        pytest.skip("a real model and real texts")
    base, prompts, held_out = load_base(stories), {}, {}
    for name, place in domains.items():
        rows = read_examples(shared / "data" / place / "test.jsonl")[:160]
        texts = [" ".join((row.prompt or row.response).split())[:300] for row in rows]
        random.Random(0).shuffle(texts)
        (tmp_path / name).mkdir()
        expert = toy_expert(base.decoder, len(prompts), targets=["q_proj"])
        save_expert(tmp_path / name, expert, base.fingerprint, {"name": name})
        prompts[name] = tmp_path / f"{name}.txt"
        prompts[name].write_text("\n".join(texts[:10]))
        held_out[name] = texts[10:110]
    made = moesaic.adopt([tmp_path / name for name in domains], stories, tmp_path / "out", prompts=prompts)
    mixture = moesaic.load(tmp_path / "out")
    shares = [sum(one.chosen == name for one in mixture.route(some)) / len(some) for name, some in held_out.items()]
    assert sum(shares) / 3 >= 0.9 and abs(made.router["accuracy"] - sum(shares) / 3) < 0.1


BASES = [  # the bases that two adapters declare, the one that is given, and the adapters that are told
    (("org/a", "org/a"), Located(Path("x"), "org/a@main"), []),
    (("org/a", "org/b"), Located(Path("x"), "org/a@main"), ["two"]),
    (("org/b", "org/b"), Located(Path("x"), "org/a@main"), ["one", "two"]),
    (("org/a", "org/a"), Located(Path("x")), []),  # a copy of it, as far as anybody can tell
    (("org/a", "org/b"), Located(Path("x")), ["one", "two"]),
    ((None, None), Located(Path("x")), []),
]


@pytest.mark.parametrize(("declared", "base", "told"), BASES)
def test_adapters_of_other_bases_are_told(declared, base, told, tmp_path):
    found = {}
    for name, place in zip(("one", "two"), declared, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": place}))
        found[name] = Located(tmp_path / name)
    assert [text.partition(":")[0] for text in adopting.of_other_bases(found, base)] == told


def test_a_neutral_prompt_that_is_an_experts_own_is_left_out():
    base = load_base(Path(moesaic.__file__).parent / "shipped" / "tiny")
    every = [one.prompt for one in neutral("validation")["general"][:60]]
    own, read = features_of(base, every[7:20], "own"), features_of(base, every, "neutral")
    left = unlike(read, own)
    assert left.equal(torch.cat([read[:7], read[20:]])), "also where they were read beside others"
