"""Does a base, a merge or one expert answer what it answers inside a mixture, by every way to load it?"""

import shutil

import pytest
import torch
from small_domains import TEXTS

import moesaic
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import CompatibilityError, MoesaicWarning, RecipeError, StorageError, WeightsError
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Template, Tokenizer

PROMPTS = ["the heron sings", "add 7 and 7"]
NEW = {"max_new_tokens": 6}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A base with a chat template, two adapters (the second foreign, naming its base), and their mixture."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = Tokenizer.train([*TEXTS["birds"], *TEXTS["sums"], "<user>:"], 290)
    tokenizer.template = Template(TEMPLATE)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=290)
    for name in ("base", "birds", "sums"):
        (folder / name).mkdir()
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = load_base(folder / "base").fingerprint
    for seed, name in enumerate(("birds", "sums")):
        save_expert(folder / name, toy_expert(decoder, seed), fingerprint, {"name": name})
    (folder / "sums" / "manifest.json").unlink()
    moesaic.adopt([folder / "birds", folder / "sums"], folder / "base", folder / "run")
    return folder


def test_each_part_answers_as_it_does_in_a_mixture(parts):
    mixture = moesaic.load(parts / "run")
    base, birds = moesaic.load(parts / "base"), moesaic.load(parts / "birds")
    sums = moesaic.load(parts / "sums", base=parts / "base")
    for model, name in ((base, "base"), (birds, "birds"), (sums, "sums")):
        expected = mixture.generate(PROMPTS, expert=name, **NEW)
        found = model.generate(PROMPTS, **NEW)
        assert [one.text for one in found] == [one.text for one in expected]
        assert {one.routing.chosen for one in found} == {name} and model.route(PROMPTS[0]).chosen == name
        assert "".join(model.stream(PROMPTS[0], **NEW)) == expected[0].text
        assert model.generate(PROMPTS, expert="base", **NEW)[1].text == base.generate(PROMPTS[1], **NEW).text
    assert base.names == () and birds.names == ("birds",)
    assert repr(birds) == f"<WritingModel of birds from {parts / 'birds'}>"


def test_a_model_that_is_called_answers_as_one_that_is_loaded(parts):
    called, loaded = moesaic.load_model(parts / "base"), moesaic.load(parts / "base")
    for settings in ({}, {"temperature": 0.9, "seed": 3}, {"raw": True}):
        assert called.generate(PROMPTS, **NEW, **settings) == loaded.generate(PROMPTS, **NEW, **settings)
    assert "".join(called.stream(PROMPTS[0], **NEW)) == loaded.generate(PROMPTS[0], **NEW).text
    assert called(torch.tensor([[1, 2]])).logits.shape == (1, 2, 290)


def test_a_text_is_a_message_where_the_base_has_a_template_unless_it_is_raw(parts):
    for model in (moesaic.load(parts / name) for name in ("base", "birds", "run")):
        message = [{"role": "user", "content": PROMPTS[0]}]
        read = [model.engine.tokenizer.begin(PROMPTS[0], raw) for raw in (False, True)]
        assert model.generate(PROMPTS[0], **NEW) == model.generate(message, **NEW)
        ((raw,),) = model.engine.generate([read[1]], **NEW)
        assert model.generate(PROMPTS[0], raw=True, **NEW) == raw and read[0] != read[1]
        assert model.route(PROMPTS[0], raw=True) == raw.routing


def test_keywords_of_sampling_are_those_of_the_value(parts):
    model = moesaic.load(parts / "base")
    words = {"temperature": 0.8, "top_p": 0.9, "top_k": 9, "seed": 4}
    assert model.generate(PROMPTS, **words, **NEW) == model.generate(PROMPTS, sampling=moesaic.Sampling(**words), **NEW)
    with pytest.raises(RecipeError, match="seed: given beside sampling"):
        model.generate(PROMPTS, seed=1, sampling=moesaic.Sampling())


def test_what_cannot_answer_says_why(parts, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="nothing here answers prompts"):
        moesaic.load(tmp_path / "empty")
    with pytest.raises(WeightsError, match="a router decides and writes no text"):
        moesaic.load(parts / "run" / "mixture" / "router")
    with pytest.raises(WeightsError, match=r"the expert does not name its base.*--base"):
        moesaic.load(parts / "sums")
    for settings, field in (({"trace": tmp_path / "t"}, "trace"), ({"ram": "1GB"}, "ram"), ({"base": parts}, "base")):
        with pytest.raises(RecipeError, match=f"{field}: has no meaning here"):
            moesaic.load(parts / "base", **settings)
    with pytest.raises(RecipeError, match=r"base: has no meaning here.*adopt --into"):
        moesaic.load(parts / "run", base=parts / "base")
    with pytest.raises(CompatibilityError, match=r"only mixtures are pushed.*load_model"):
        moesaic.load(parts / "base").push_to_hub("me/mine")


def test_an_expert_apart_from_its_base_is_found_by_no_other(parts, tmp_path):
    shutil.copytree(parts / "birds", tmp_path / "birds")
    with pytest.raises(WeightsError, match="its base is not in the folders around it.*--base"):
        moesaic.load(tmp_path / "birds")
    there = moesaic.load(tmp_path / "birds", base=parts / "base")
    assert there.generate(PROMPTS, **NEW) == moesaic.load(parts / "birds").generate(PROMPTS, **NEW)


def test_saving_replaces_a_saved_model_only_when_asked_and_nothing_else_ever(parts, tmp_path):
    for model in (moesaic.load(parts / "run"), moesaic.load(parts / "base"), moesaic.load_model(parts / "base")):
        target = tmp_path / "saved"
        for overwrite in (target.exists(), True):
            model.save_pretrained(target, overwrite=overwrite)
        with pytest.raises(StorageError, match="already exists.*overwrite=True"):
            model.save_pretrained(target)
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".new")]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "poem.txt").write_text("mine")
    with pytest.raises(StorageError, match="not the folder of a saved model"):
        model.save_pretrained(tmp_path / "notes", overwrite=True)
    with pytest.raises(StorageError, match="loaded from this folder"):
        model.save_pretrained(parts / "base", overwrite=True)
    assert (tmp_path / "notes" / "poem.txt").read_text() == "mine"


def test_a_prompt_that_spells_a_special_token_is_text_and_warned_of(parts):
    model = moesaic.load(parts / "base")
    token = model.engine.tokenizer.decode([model.engine.tokenizer.eos]) or "<|end|>"
    for ask in (model.generate, model.stream):
        with pytest.warns(
            MoesaicWarning, match=r"spells the special token <\|end\|>, which is read as text: give messages"
        ):
            ask(f"hello {token}", **NEW)
    model.generate([{"role": "user", "content": "hello"}], **NEW)  # warnings are errors


def test_objects_print_what_they_are(parts):
    made = moesaic.load(parts / "birds").generate(PROMPTS[0], **NEW)
    assert repr(made) == f"Generation({made.text!r}, by birds, {made.finish} after {len(made.ids)} tokens)"
