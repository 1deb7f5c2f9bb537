"""Property: SmolLM2-135M-Instruct, a real chat model, gives the ids, logits and texts that transformers gives.

The folder that MOESAIC_SMOLLM2 names, or one that is built once below the folder of caches.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moesaic.artefacts.base import Base, load_base
from moesaic.nn import Cache
from moesaic.ops.losses import token_nll

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    if named := os.environ.get("MOESAIC_SMOLLM2"):
        return Path(named)
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moesaic" / "smollm2-135m"
    made = subprocess.run(
        [sys.executable, str(shared / "models/smollm2-135m/make.py"), str(place)], capture_output=True, text=True
    )
    if made.returncode:
        said = (made.stderr or made.stdout).strip().splitlines()[-1:]
        pytest.skip(f"SmolLM2 cannot be built here, and MOESAIC_SMOLLM2 names no folder: {' '.join(said)}")
    return place


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(folder)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "models/smollm2-135m/golden.json").read_text())


def test_a_question_becomes_the_ids_of_a_user_message(base, golden):
    for one in golden["generations"]:
        assert base.tokenizer.begin(one["user"]) == one["prompt_ids"]


def test_a_text_as_it_is_has_the_ids_and_the_nats_of_transformers(base, golden):
    for one in golden["texts"].values():
        assert base.tokenizer.begin(one["text"], raw=True) == one["ids"]
        ids = torch.tensor([one["ids"]])
        with torch.inference_mode():
            nats = token_nll(base.decoder(ids[:, :-1]).logits, ids[:, 1:]).mean().item()
        assert nats == pytest.approx(one["nats_per_token"], abs=2e-4)


def test_the_first_logits_and_the_greedy_text_are_those_of_transformers(base, golden):
    for one in golden["generations"]:
        ids, written = torch.tensor([one["prompt_ids"]]), []
        cache = Cache.empty(base.decoder.config, 1, ids.shape[1] + len(one["greedy_ids"]), base.decoder.norm.weight)
        while len(written) < len(one["greedy_ids"]):
            with torch.inference_mode():
                logits = base.decoder(ids, cache).logits[0, -1]
            if not written:
                best = {int(id): value for id, value in one["last_logits_top8"].items()}
                found = {id: logits[id].item() for id in best}
                assert found == pytest.approx(best, abs=2e-3)
                assert set(logits.topk(8).indices.tolist()) == set(best)
            cache = cache.advance(ids.shape[1])
            written.append(int(logits.argmax()))
            ids = torch.tensor([[written[-1]]])
        assert written == one["greedy_ids"]
        assert base.tokenizer.decode(written).strip() == one["greedy_text"].strip()
