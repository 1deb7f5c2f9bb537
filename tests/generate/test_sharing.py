"""Does a mixture go to a hub whole and come back the same, with a card that says what it is and no more than is so?"""

import json

import pytest
import torch
from huggingface_hub import ModelCard

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import RecipeError, WeightsError
from moesaic.files import MANIFEST, digest, write_sealed
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

TEXT = "the sum of two and two is four"
EVALUATION = {
    "measure": "nats",
    "verdict": {"sentence": "Use the mixture: 2.767 nats per token."},
    "controls": {"router": {"nats": {"all": 2.767}, "versus_router": None}},
    "domains": ["one", "two"],
    "intervals": {"level": 0.95},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A mixture of two adapters, one of them foreign, adopted without prompts."""
    folder = tmp_path_factory.mktemp("sharing")
    tokenizer = Tokenizer.train([TEXT], 262)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("base", "one", "two"):
        (folder / name).mkdir()
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = load_base(folder / "base").fingerprint
    for seed, name in enumerate(("one", "two"), 1):
        save_expert(folder / name, toy_expert(decoder, seed, rank=seed), fingerprint, {"name": name})
    (folder / "two" / MANIFEST).unlink()
    moesaic.adopt([folder / "one", folder / "two"], folder / "base", folder / "run", name="sharing")
    (folder / "run" / "mixture" / "notes.json").write_text('{"mine": "alone"}')
    return folder / "run"


def card_of(hub, name="me/mine", branch="main") -> ModelCard:
    return ModelCard(hub.repositories[name].branches[branch]["README.md"].decode())


@pytest.mark.slow
def test_a_mixture_that_was_pushed_answers_the_same_from_the_hub(hub, made):
    mixture = moesaic.load(made)
    url = mixture.push_to_hub("me/mine", private=True, license="apache-2.0")
    pushed = hub.repositories["me/mine"].branches["main"]
    assert url.startswith(f"{hub.url}/me/mine/commit/") and hub.repositories["me/mine"].private
    assert pushed.keys() == {*json.loads(pushed[MANIFEST])["files"], MANIFEST, "README.md", ".gitattributes"}
    assert "notes.json" not in pushed
    found = moesaic.load("me/mine")
    assert found.route([TEXT, "two"]) == mixture.route([TEXT, "two"])
    assert found.generate(TEXT, max_new_tokens=4).text == mixture.generate(TEXT, max_new_tokens=4).text
    there, here = (moesaic.inspect(place).facts for place in ("me/mine@main", made / "mixture"))
    assert {**there, "files": 0} == {**{key: here[key] for key in here if key != "base"}, "files": 0}
    assert "base" in here and "base/model.safetensors" in there["files"], "a folder of this machine is pushed along"
    found.push_to_hub("me/again")
    assert hub.repositories["me/again"].branches["main"].keys() == pushed.keys()


def test_its_card_tells_the_parts_and_how_many_numbers_each_has(hub, made):
    moesaic.load(made).push_to_hub("me/mine", revision="v2")
    text = card_of(hub, branch="v2").text
    experts = [moesaic.load(made).stored.experts[name].lora for name in ("one", "two")]
    for expert, name in zip(experts, ("one", "two"), strict=True):
        assert f"| expert `{name}` | lora of rank {expert.rank}, {expert.num_parameters:,} parameters |" in text
    base = load_base(made.parent / "base")
    count = sum(weight.numel() for weight in base.decoder.parameters())
    assert f"| base | {count:,} parameters, fingerprint `{base.fingerprint[:12]}` |" in text
    assert "| router | arrow on projections" in text and "It was not evaluated" in text
    assert 'moesaic.load("me/mine@v2")' in text


def test_a_verdict_is_told_of_the_mixture_that_it_is_about_and_of_no_other(hub, made, tmp_path):
    copy = moesaic.load(made).save_pretrained(tmp_path / "mixture")
    told = {key: value for key, value in json.loads((copy / MANIFEST).read_text()).items() if key != "digest"}
    told["stage_key"] = "this one"
    (copy / MANIFEST).write_text(json.dumps({**told, "digest": digest(told)}))
    for key in ("this one", "another", None):
        write_sealed(tmp_path / "evaluation.json", EVALUATION | ({"mixture": key} if key else {}))
        moesaic.load(tmp_path).push_to_hub("me/mine")
        assert (EVALUATION["verdict"]["sentence"] in card_of(hub).text) == (key == "this one")


def test_what_was_changed_since_it_was_loaded_is_not_pushed(hub, made, tmp_path):
    copy = moesaic.load(made).save_pretrained(tmp_path / "copy")
    mixture = moesaic.load(copy)
    path = copy / "router" / "training_info.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(WeightsError, match="training_info.json: .*the file was changed or damaged"):
        mixture.push_to_hub("me/mine")
    assert not hub.repositories


def test_a_name_that_is_none_is_refused_before_anything_is_asked(hub, made):
    with pytest.raises(RecipeError, match="expected owner/name"):
        moesaic.load(made).push_to_hub("mine")
    assert not hub.asked
