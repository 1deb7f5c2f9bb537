"""Property: do real and reference models give the logits, texts and perplexities that are published with them?"""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from moesaic.errors import WeightsError
from moesaic.generate.language_model import load_model
from moesaic.interop.pretrained import LoadedDecoder
from moesaic.nn import Cache

FIXTURES = ["gemma3-tiny", "llama3-tiny-untied", "llama32-tiny", "mixtral-tiny", "qwen2-tiny"]


def greedy(model: LoadedDecoder, ids: torch.Tensor, length: int) -> list[int]:
    """The ids of a prompt (1, t) and what follows, one token at a time through the cache."""
    cache = Cache.empty(model.config, 1, length, like=model.decoder.norm.weight)
    found, chunk = ids[0].tolist(), ids
    while len(found) < length:
        logits = model.decoder(chunk, cache).logits[:, -1]
        cache = cache.advance(chunk.shape[1])
        chunk = logits.argmax(-1)[:, None]
        found.append(int(chunk))
    return found


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("style", ["config.json", "config.hub-style.json"])
@pytest.mark.parametrize("name", FIXTURES)
def test_a_reference_model_gives_its_golden_logits_states_and_greedy_ids(name, style, shared, tmp_path):
    source = shared / "models" / "reference_fixtures" / name
    shutil.copy(source / style, tmp_path / "config.json")
    shutil.copy(source / "model.safetensors", tmp_path)
    model, golden = load_model(tmp_path), load_file(source / "golden.safetensors")
    real = golden["attention_mask"].bool()
    found = model(golden["input_ids"], attention_mask=golden["attention_mask"])
    last = max((key for key in golden if key.startswith("hidden_")), key=lambda key: int(key[7:]))
    close(found.logits[real], golden["logits"][real])
    close(found.hidden[real], golden[last][real])
    close(model(golden["short_input_ids"]).logits, golden["short_logits"])
    expected = golden["greedy_ids"][0].tolist()
    assert greedy(model, golden["short_input_ids"], len(expected)) == expected


def test_gpt2_is_refused_by_name(shared):
    with pytest.raises(WeightsError, match=r"model_type: .*one of llama.*; got gpt2"):
        load_model(shared / "models" / "reference_fixtures" / "gpt2-tiny")


@pytest.fixture(scope="module")
def stories(shared):
    folder = shared / "models" / "stories260K"
    return (
        load_model(folder),
        load_file(folder / "golden.safetensors"),
        json.loads((folder / "golden.json").read_text()),
    )


@torch.no_grad()
def test_stories260k_gives_its_golden_logits_and_greedy_ids(stories):
    model, golden, _ = stories
    for index in range(sum(key.startswith("logits_") for key in golden)):
        ids = golden[f"input_ids_{index}"][None]
        assert (model(ids).logits[0] - golden[f"logits_{index}"]).abs().max() <= 1e-3
        expected = golden[f"greedy_ids_{index}"].tolist()
        assert greedy(model, ids, len(expected)) == expected


@torch.no_grad()
@pytest.mark.slow
def test_stories260k_has_its_golden_perplexities_to_four_digits(stories, shared):
    from tokenizers import Tokenizer

    model, _, facts = stories
    tokenizer = Tokenizer.from_file(str(shared / "models" / "stories260K" / "tokenizer.json"))
    for expected in facts["perplexity"]:
        rows = (shared / "data" / expected["file"]).read_text().splitlines()[: expected["rows"]]
        nats, tokens = 0.0, 0
        for row in rows:
            ids = torch.tensor([[1, *tokenizer.encode(json.loads(row)["text"], add_special_tokens=False).ids][:512]])
            logits = model(ids).logits[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += ids.shape[1] - 1
        assert tokens == expected["tokens"], expected["file"]
        assert f"{math.exp(nats / tokens):.4g}" == f"{expected['perplexity']:.4g}", expected["file"]
