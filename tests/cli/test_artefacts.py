"""Does `inspect` say what a person asks for of a router, and of an encoder that travels inside it?"""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, processors

from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.artefacts.sentence_encoder import StoredEncoder
from moesaic.cli.artefacts import LEVELS, WHERE, abstention
from moesaic.kinds import KINDS, sites
from moesaic.model.sentences import SentenceEncoder
from moesaic.routing import Selection
from moesaic.routing.routers import MLPRouter
from moesaic.testing import tiny_encoder


@pytest.fixture
def folder(tmp_path):
    """A router over a tiny encoder, both as a run leaves them."""
    inner = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "owl": 2, "?": 3}, "?"))
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    encoder = tiny_encoder(dtype=torch.float32)
    sentences = SentenceEncoder(encoder, lambda text: inner.encode(text).ids, 9, "cls", normalise=True)
    stored = StoredEncoder(sentences, inner, "0123456789abcdef")
    router = StoredRouter(MLPRouter(32, 2, []), "linear", ("a", "b"), "encoder", Selection(), {}, stored)
    save_router(tmp_path, router, "f" * 64, {})
    return tmp_path


def test_the_encoder_inside_a_router_is_described_under_it_and_alone(folder, moesaic):
    code, out, _ = moesaic("inspect", folder)
    assert code == 0 and out.startswith("router") and "encoder/model.safetensors" in out
    size = sum(weight.numel() for weight in tiny_encoder().parameters())
    told = [line.strip() for line in out.partition("\n\n")[2].splitlines()]
    assert told == [
        "encoder",
        "encoder      bert, the state of its first token at unit length, of 9 tokens at most",
        f"parameters   {size:,}",
        "fingerprint  0123456789ab",
    ]
    code, out, _ = moesaic("inspect", folder / "encoder")
    assert code == 0 and set(told) <= {line.strip() for line in out.splitlines()}
    assert "yes: every file has the hash" in out


def test_its_facts_are_there_as_json(folder, moesaic):
    raw = json.loads(moesaic("inspect", folder, "--json")[1])["parts"]["encoder"]
    assert (raw["kind"], raw["facts"]["pool"], raw["facts"]["limit"]) == ("encoder", "cls", 9)


GUARD = {"router": "linear", "guard": {"least": 0.25}}


def keywords(words: list[list[str]], **more: bool) -> dict[str, object]:
    return {"router": "keyword", "shape": {"words": words, **more}}


OWN, NEUTRAL = {"abstained_own": 0.01}, {"abstained_neutral": 0.9}


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (keywords([["a"], []]), "where a prompt has no keyword of an expert"),
        (keywords([["a"], ["b"]], first=True), "where a prompt has no keyword of an expert"),
        (keywords([["a"], []], first=True), "never: every prompt goes to an expert"),
        ({"router": "linear"}, "never: every prompt goes to an expert"),
        (GUARD, "where a prompt belongs to an expert with a probability below 0.250"),
        (
            {**GUARD, "metrics": {f"validation_{key}": share for key, share in (OWN | NEUTRAL).items()}},
            "where a prompt belongs to an expert with a probability below 0.250; "
            "90.0% of neutral text; 1.0% of the experts' own prompts",
        ),
        (
            {**GUARD, "metrics": NEUTRAL},
            "where a prompt belongs to an expert with a probability below 0.250; 90.0% of neutral text",
        ),
    ],
    ids=[
        "keyword",
        "first keyword",
        "first keyword or the rest",
        "no guard",
        "guard",
        "guard of a run",
        "adopted guard",
    ],
)
def test_when_a_router_abstains_is_told(facts, told):
    assert abstention(facts) == told


def test_a_folder_of_ours_is_described_without_torch(parts, tmp_path):
    folders = [parts.folder / name for name in ("mixture", "base", "one", "router")]
    script = "import sys; from moesaic.cli.main import status\n"
    script += "for place in sys.argv[1:]: print(status(['inspect', place]), 'torch' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", script, *map(str, folders), "shipped:tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.split("\n") == ["0 False"] * 5 + [""]


def test_the_sites_and_levels_of_inspect_are_those_of_the_kinds():
    assert list(WHERE) == sites()
    assert set(LEVELS) == {level for kind in KINDS.values() for level in kind.levels}
