"""Do experts join, leave and change places in a mixture whose layers route every token, and do the others stay?"""

from pathlib import Path

import pytest
import torch
from small_parts import Parts

import moesaic
from moesaic.adoption.adopting import Adoption
from moesaic.adoption.gating import joined, parted
from moesaic.artefacts.ffn import save_ffn
from moesaic.compose.export import export
from moesaic.errors import RecipeError
from moesaic.testing import toy_ffn

PROMPTS = {
    "maths": ["the sum of two", "two and two", "four and two is", "the sum of four", "is two four", "sum and sum"],
    "code": ["def add(a, b)", "return a + b", "def b(a)", "add(a, a)", "return add(b)", "def a(b): return"],
    "talk": ["and and and", "of the of the", "is is is", "the the the", "and of and of", "is the is the"],
}


@pytest.fixture(scope="module")
def place(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts with their files of prompts, and a second version of the last of them."""
    folder = tmp_path_factory.mktemp("blocks")
    for seed, name in enumerate((*PROMPTS, "again")):
        (folder / name).mkdir()
        save_ffn(folder / name, toy_ffn(parts.decoder, seed), parts.fingerprint, {"name": name})
    for name, some in PROMPTS.items():
        (folder / f"{name}.txt").write_text("\n".join(some))
    return folder


def prompts(place: Path, *names: str) -> dict[str, Path]:
    return {name: place / f"{name}.txt" for name in names}


@pytest.fixture
def made(parts: Parts, place: Path, tmp_path: Path) -> Adoption:
    names = ("maths", "code")
    where = {name: place / name for name in names}
    how = {"kind": "ffn", "level": "token", "prompts": prompts(place, *names)}
    return moesaic.adopt(where, parts.folder / "base", tmp_path / "mix", **how)


def files(at: Path, name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((at / "experts" / name).iterdir())]


def test_prompts_are_kept_as_one_tensor():
    some = [[3, 1], [4], [1, 5, 9]]
    assert parted(joined(some)) == some


def test_every_token_is_routed_and_the_gates_are_tested_on_prompts_left_out(made, tmp_path):
    assert made.router["kind"] == "gates" and made.router["of"] == {"maths": 2, "code": 2}
    assert made.nats.keys() == {"maths", "code"} and all(before is None for before, _ in made.nats.values())
    with moesaic.load(tmp_path / "mix") as model:
        assert model.level == "token"
        weights = model.route("the sum of two").weights
        assert set(weights) == {"maths", "code"} and sum(weights.values()) == pytest.approx(1, abs=1e-5)
        assert model.generate("def add", max_new_tokens=4, expert="code").routing.chosen == "code"
        ids, wanted = torch.tensor([[5, 6, 7, 8]]), model.engine.mixture
        sparse = moesaic.load_model(str(export(tmp_path / "mix", tmp_path / "sparse", "mixtral")))
        with torch.no_grad():
            assert (sparse(ids).logits - wanted.score(ids)).abs().max() < 1e-5


def test_an_expert_joins_is_replaced_and_leaves_and_the_others_keep_their_bytes(made, place, tmp_path):
    root = tmp_path / "mix"
    at, first = root / "mixture", {name: files(root / "mixture", name) for name in ("maths", "code")}
    gates = (at / "router/router.safetensors").read_bytes()
    grown = moesaic.amend(root, {"talk": place / "talk"}, prompts=prompts(place, "talk"))
    assert grown.names == ("maths", "code", "talk")
    for name in first:
        assert grown.nats[name][0] == pytest.approx(made.nats[name][1], abs=1e-6)
    assert grown.nats["talk"][0] is not None, "the domain was scored before its expert came"
    before = files(at, "talk")
    how = {"drop": ["talk"], "prompts": prompts(place, "talk")}
    replaced = moesaic.amend(root, {"talk": place / "again"}, **how)
    assert files(at, "talk") != before and replaced.nats["talk"][0] == pytest.approx(grown.nats["talk"][1], abs=1e-6)
    left = moesaic.amend(root, drop=["talk"])
    assert left.names == ("maths", "code") and left.nats["talk"][1] == pytest.approx(grown.nats["talk"][0], abs=1e-6)
    assert {name: files(at, name) for name in first} == first
    assert (at / "router/router.safetensors").read_bytes() == gates


def test_who_is_disabled_gets_no_token_and_nothing_is_made_anew(made, place, tmp_path):
    root = tmp_path / "mix"
    gates = (root / "mixture/router/router.safetensors").read_bytes()
    changed = moesaic.amend(root, disable=["code"])
    assert (root / "mixture/router/router.safetensors").read_bytes() == gates
    assert changed.nats["code"][0] != changed.nats["code"][1]
    with moesaic.load(root) as model:
        assert model.route("def add(a, b)").weights == {"maths": pytest.approx(1.0), "code": 0.0}
    assert moesaic.load_model(str(export(root, tmp_path / "one", "mixtral"))).config.num_experts == 1
    back = moesaic.amend(root, enable=["code"])
    assert {name: after for name, (_, after) in back.nats.items()} == pytest.approx(
        {name: after for name, (_, after) in made.nats.items()}
    )


def test_what_cannot_be_routed_so_is_refused(parts, place, tmp_path):
    base, two = parts.folder / "base", prompts(place, "maths", "code")
    blocks = {name: place / name for name in two}
    for where, how, said in (
        ({"one": parts.folder / "one", "two": parts.folder / "two"}, {}, "level: lora experts are not adopted at this"),
        (blocks, {"kind": "ffn", "prompts": two, "groups": {"a": ["maths"], "b": ["code"]}}, "groups: gates in the la"),
        (blocks, {"kind": "ffn", "prompts": two, "abstain": 0.5}, "abstain: gates in the layers"),
        (blocks, {"kind": "ffn"}, "prompts: no prompts for some"),
    ):
        with pytest.raises(RecipeError, match=said):
            moesaic.adopt(where, base, tmp_path / "none", level="token", **how)
