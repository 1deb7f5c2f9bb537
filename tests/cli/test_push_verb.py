"""Journey: models of a hub on the command line: adopted, inspected, pushed, asked from there, and wrong lines."""

import json

import pytest
import torch

from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.files import MANIFEST
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """A folder, and a hub that has a base and two adapters of it."""
    tokenizer = Tokenizer.train(["one two three four five"], 262)
    decoder = tiny_decoder(1, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("base", "sums", "birds"):
        (tmp_path / "made" / name).mkdir(parents=True)
    save_base(tmp_path / "made" / "base", decoder, tokenizer, {})
    fingerprint = load_base(tmp_path / "made" / "base").fingerprint
    for seed, name in enumerate(("sums", "birds")):
        save_expert(tmp_path / "made" / name, toy_expert(decoder, seed), fingerprint, {"name": name})
    for folder in (tmp_path / "made").iterdir():
        hub.put(f"org/{folder.name}", {f.name: f.read_bytes() for f in folder.iterdir() if f.name != MANIFEST})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_from_the_hub_and_back_by_four_commands(here, hub, moesaic):
    code, said, _ = moesaic("adopt", "org/sums", "wren=org/birds@main", "--base", "org/base", "--out", "mix")
    assert code == 0 and said.startswith("adopted sums, wren\n")
    code, said, _ = moesaic("inspect", "mix")
    commit = hub.repositories["org/base"].commit("main")
    assert code == 0 and f"base from   org/base@main at {commit}" in said and "wren from   org/birds@main at " in said
    code, said, _ = moesaic("push", "mix", "me/mine", "--private", "--revision", "v1", "--license", "mit")
    assert code == 0 and said.startswith(f"{hub.url}/me/mine/commit/") and said.count("\n") == 1
    assert hub.repositories["me/mine"].private
    assert b"\nlicense: mit\n" in hub.repositories["me/mine"].branches["v1"]["README.md"]
    code, said, _ = moesaic("generate", "me/mine@v1", "one two", "--max-new-tokens", 2, "--json")
    assert code == 0 and json.loads(said)["chosen"] in ("sums", "wren", "base")
    moesaic("generate", "mix", "one two", "--max-new-tokens", 1, "--trace", "trace.jsonl", "--trace-texts")
    code, said, _ = moesaic("replay", "trace.jsonl", "--router", "mix", "--base", "org/base", "--json")
    assert code == 0 and json.loads(said)["agreement"] == 1 and commit in json.loads(said)["base"]
    code, said, _ = moesaic("inspect", "me/mine@v1", "--text", "one two")
    assert code == 0 and said.startswith("mixture mix") and "\nrouted to " in said


def test_what_is_wrong_is_one_line_with_its_exit_code(here, hub, moesaic):
    moesaic("adopt", "org/sums", "org/birds", "--base", "org/base", "--out", "mix")
    for arguments, exit_code, words in [
        (("push", "mix", "mine"), 2, "expected owner/name"),
        (("push", "made/base", "me/mine"), 5, "only mixtures are pushed: base"),
        (("push", "nowhere", "me/mine"), 4, "nowhere: no such folder; give a folder"),
        (("push", "org/none", "me/mine"), 4, "org/none: no such folder, and the download failed"),
        (("push", "mix"), 2, "missing argument 'owner/name'"),
        (("adopt", "org/none", "org/birds", "--base", "org/base", "--out", "x"), 4, "org/none: no such folder"),
        (("adopt", "org/sums", "org/sums@main", "--base", "org/base", "--out", "x"), 2, "given twice"),
        (("generate", "shipped:none", "x"), 4, "no such model is shipped"),
    ]:
        code, _, said = moesaic(*arguments)
        assert (code, words in said.replace("OWNER/NAME", "owner/name")) == (exit_code, True), said
    hub.refusals["/api/repos/create"] = 403, "You may not create this"
    code, _, said = moesaic("push", "mix", "me/mine")
    assert code == 4 and "the push failed" in said and "You may not create this" in said
