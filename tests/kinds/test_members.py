"""Property: fine-tuned models adopted as experts of kinds `ffn` and `model`: who answers, what is told, and
what is refused.
"""

import json
from pathlib import Path

import pytest
import torch
from small_domains import TEXTS
from small_runs import Told

import moesaic
from moesaic.adapters.feedforward import FFN
from moesaic.artefacts.base import load_base, save_base
from moesaic.cli.adopting import summary
from moesaic.compose.mixture import load_mixture
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.model.features import Prompts
from moesaic.testing import prefilled, tiny_decoder
from moesaic.tokenizer import Tokenizer

NAMES = [*TEXTS]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A base, a fine-tune of its feed-forward blocks for each domain, and prompts; `else` differs elsewhere too."""
    folder = tmp_path_factory.mktemp("members")
    tokenizer = Tokenizer.train([text for some in TEXTS.values() for text in some], 300)
    for seed, name in enumerate(("base", *NAMES, "else")):
        decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, weight in decoder.named_parameters():
                if (seed and ".mlp." in path) or (name == "else" and "norm" in path):
                    weight.add_(torch.empty_like(weight).normal_(0, 0.1, generator=generator))
        (folder / name).mkdir()
        save_base(folder / name, decoder, tokenizer, {})
        if name in TEXTS:
            (folder / f"{name}.txt").write_text("\n".join(TEXTS[name]))
    (folder / "sums" / MANIFEST).unlink()
    return folder


def adopt(parts, out, kind, names=NAMES, **more):
    given = {name: parts / f"{name}.txt" for name in names}
    experts = {name: more.pop(name, parts / name) for name in names}
    return moesaic.adopt(experts, parts / "base", out, prompts=given, kind=kind, **more)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ffn", "model"])
def test_each_answers_its_own_prompts_as_the_model_it_was(parts, tmp_path, kind):
    made = adopt(parts, tmp_path / "out", kind)
    assert made.router["kind"] == "linear" and made.router["accuracy"] > 0.9
    manifest = read_manifest(made.folder, "mixture")
    assert (manifest["site"], manifest["level"]) == (kind, "sequence")
    stored = load_mixture(made.folder)
    for name in NAMES:
        tuned = load_base(parts / name)
        ids = tuned.tokenizer.begin(TEXTS[name][3])
        routing = stored.model.route(Prompts.pad([ids], [""]))
        assert stored.model.names[int(routing.best)] == name
        logits, _ = prefilled(stored.model, Prompts.pad([ids], [""]), 2, None)
        torch.testing.assert_close(logits[0], tuned.decoder(torch.tensor([ids])).logits[0, -1], rtol=1e-4, atol=1e-4)
    mixture = moesaic.load(tmp_path / "out")
    assert mixture.generate(TEXTS["birds"][0], max_new_tokens=3).routing.chosen == "birds"
    told = "\n".join(summary(made, tmp_path / "out"))
    assert {"ffn": "sums   fine-tuned model, 9,216 parameters", "model": "sums   model, "}[kind] in told


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ffn", "model"])
def test_one_by_one_is_the_mixture_of_all_at_once(parts, tmp_path, kind):
    adopt(parts, tmp_path / "whole", kind)
    adopt(parts, tmp_path / "grown", kind, NAMES[:2])
    moesaic.amend(tmp_path / "grown", {"code": parts / "code"}, prompts={"code": parts / "code.txt"})
    moesaic.amend(tmp_path / "grown", disable=["sums"])
    moesaic.amend(tmp_path / "grown", enable=["sums"])
    whole, grown = (tmp_path / name / "mixture" for name in ("whole", "grown"))
    for path in sorted(path for path in whole.rglob("*.safetensors")):
        assert (grown / path.relative_to(whole)).read_bytes() == path.read_bytes()
    made = moesaic.amend(tmp_path / "grown", drop=["birds"])
    assert made.names == ("sums", "code")
    assert set(load_mixture(made.folder).model.names) == {"sums", "code"}


def test_an_ffn_expert_of_a_mixture_joins_another_as_it_stands(parts, tmp_path):
    first = adopt(parts, tmp_path / "first", "ffn")
    expert = first.folder / "experts" / "birds"
    again = adopt(parts, tmp_path / "second", "ffn", birds=expert)
    assert again.experts["birds"]["from"] == "feed-forward expert" and again.experts["birds"]["verified"]
    copied = again.folder / "experts" / "birds" / "model.safetensors"
    assert copied.read_bytes() == (expert / "model.safetensors").read_bytes()


def test_whole_models_are_written_without_what_the_base_has(parts, tmp_path):
    made = adopt(parts, tmp_path / "out", "model")
    facts = json.loads((made.folder / "experts" / "birds" / MANIFEST).read_text())
    assert facts["own_parameters"] == 2 * 3 * 48 * 32
    assert facts["fingerprint"] == load_base(parts / "birds").fingerprint


def test_a_model_that_differs_elsewhere_is_told_tensor_by_tensor_and_refused(parts, tmp_path):
    told = Told()
    with pytest.raises(CompatibilityError, match=r"outside its feed-forward blocks .* in 5 tensors: "):
        adopt(parts, tmp_path / "out", "ffn", birds=parts / "else", progress=told)
    assert len(told.warnings) == 5 and all(
        w.startswith("birds: model.") and "% of its norm" in w for w in told.warnings
    )
    assert not (tmp_path / "out" / "mixture").exists()
    made = adopt(parts, tmp_path / "out", "ffn", birds=parts / "else", ignore_rest=True, progress=Told())
    assert made.experts["birds"]["ignored"] == 5
    assert "5 tensors with other differences ignored" in "\n".join(summary(made, Path()))
    assert isinstance(load_mixture(made.folder).experts["birds"].ffn, FFN)


def test_without_prompts_such_experts_cannot_be_told_apart(parts, tmp_path):
    with pytest.raises(RecipeError, match="prompts: no prompts for some .*: sums, birds, code; give prompts for all"):
        moesaic.adopt([parts / name for name in NAMES], parts / "base", tmp_path / "out", kind="ffn")


def test_what_fits_no_kind_is_refused(parts, tmp_path):
    with pytest.raises(RecipeError, match="kind: unknown kind; expected lora or ffn or model; got mlp"):
        adopt(parts, tmp_path / "out", "mlp")
    made = adopt(parts, tmp_path / "ffns", "ffn")
    with pytest.raises(WeightsError, match="adapter: another kind; expected model; got ffn"):
        adopt(parts, tmp_path / "out", "model", birds=made.folder / "experts" / "birds")
    other = Tokenizer.train(["nothing of the kind"], 300)
    (tmp_path / "other").mkdir()
    save_base(
        tmp_path / "other",
        tiny_decoder(0, torch.float32, vocab_size=load_base(parts / "base").tokenizer.vocab_size),
        other,
        {},
    )
    with pytest.raises(CompatibilityError, match="tokenizer"):
        adopt(parts, tmp_path / "out", "model", birds=tmp_path / "other")
