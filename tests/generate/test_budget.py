"""Property: does a mixture under a budget of memory write what it writes without one, fetching what its plan says?"""

import json
import os
import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.adapters.feedforward import FetchedFFN
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import identify, save_base
from moesaic.artefacts.ffn import save_ffn
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.artefacts.whole_model import save_whole
from moesaic.cli.main import status
from moesaic.compose.budget import budget
from moesaic.compose.memory import LIBRARIES
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.compose.plan import plan
from moesaic.config import DecoderConfig
from moesaic.errors import MemoryLimitError, RecipeError, WeightsError
from moesaic.generate import Request, Sampling, Scheduler
from moesaic.generate.loaded import WritingMixture
from moesaic.model.decoder import Decoder, initialise
from moesaic.routing import Gates, Selection
from moesaic.routing.routers import KeywordRouter, MLPRouter
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.safetensors_file import Opened
from moesaic.testing import toy_expert, toy_ffn
from moesaic.tokenizer import Tokenizer

NAMES = ("alpha", "beta", "gamma", "delta")
CONFIG = DecoderConfig(
    vocab_size=300, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=48, context=64
)
SITES = ("model", "ffn", "shared", "half")
PROMPTS = [f"one two {name}" for name in (*NAMES, "alpha", "nobody", *reversed(NAMES))]


def fresh(seed: int) -> Decoder:
    return initialise(Decoder(CONFIG), torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixtures of four experts that are chosen by their names: whole models; blocks; models that share all but their
    blocks with the base; models of 16 bits; adapters; models, and blocks, two of which answer a row; models that are
    chosen at every token."""
    folder = tmp_path_factory.mktemp("budget")
    tokenizer, base = Tokenizer.train(["one two alpha beta gamma delta"], 280), fresh(0)
    (folder / "base").mkdir()
    save_base(folder / "base", base, tokenizer, {})
    fingerprint = identify(base, tokenizer)
    for seed, name in enumerate(NAMES, 1):
        for site in (*SITES, "linear"):
            (folder / f"{site}-{name}").mkdir()
        save_whole(folder / f"model-{name}", fresh(seed), tokenizer, fingerprint, {})
        save_whole(folder / f"half-{name}", fresh(seed).to(torch.bfloat16), tokenizer, fingerprint, {})
        save_ffn(folder / f"ffn-{name}", toy_ffn(base, seed), fingerprint, {})
        save_expert(folder / f"linear-{name}", toy_expert(base, seed), fingerprint, {})
        tuned = fresh(0)
        for layer, theirs in zip(tuned.layers, fresh(seed).layers, strict=True):
            layer.mlp = theirs.mlp
        save_whole(folder / f"shared-{name}", tuned, tokenizer, fingerprint, {})
    words = KeywordRouter([[name] for name in NAMES])
    torch.manual_seed(0)
    states = MLPRouter(32, 4, [6]).eval()
    for kind, router, feature, selection in (
        ("keyword", words, "text", Selection()),
        ("mlp", states, "hidden_mean", Selection(kind="top_k", k=2)),
        ("every", states, "embedding_mean", Selection()),
    ):
        (folder / kind).mkdir()
        stored = StoredRouter(router, "mlp" if kind == "every" else kind, NAMES, feature, selection, {})
        save_router(folder / kind, stored, fingerprint, {})
    compose(folder, "model", "keyword")
    compose(folder, "ffn", "keyword")
    compose(folder, "shared", "keyword")
    compose(folder, "half", "keyword")
    compose(folder, "linear", "keyword")
    compose(folder, "model", "mlp", to="two")
    compose(folder, "ffn", "mlp", to="two-ffn")
    compose(folder, "model", "every", to="token", level="token")
    return folder


def compose(folder: Path, kind: str, router: str, to: str = "", level: str = "sequence") -> None:
    to = to or kind
    (folder / to).mkdir()
    site = "model" if kind in ("shared", "half") else kind
    facts = {"site": site, "level": level} | ({"combine": "mixture"} if site == "model" else {})
    experts = {name: folder / f"{kind}-{name}" for name in NAMES}
    save_mixture(folder / to, folder / "base", experts, folder / router, facts)


def room(folder: Path, experts: float) -> int:
    """Bytes in which a mixture runs with so many of its experts at once."""
    found = plan(folder)
    size = max(part.bytes for part in found.parts if part.role == "expert")
    return found.bytes_of("shared", "router") + found.working + LIBRARIES + int(experts * size)


def watched(mixture: WritingMixture) -> list[int]:
    """How many bytes of experts are there whenever one is fetched."""
    found, source = [], mixture.stored.source
    bring = source.bring

    def told(expert: int) -> None:
        bring(expert)
        found.append(source.weight(source.here))

    source.bring = told
    return found


# --- the same, in less memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [1, pytest.param(2.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("site", [*SITES, "two", "two-ffn", "token"])
def test_what_is_written_is_what_is_written_without_a_budget(made, site, experts):
    experts = max(experts, 2) if site.startswith("two") else experts
    whole, mixture = moesaic.load(made / site), moesaic.load(made / site, ram=room(made / site, experts))
    held = watched(mixture)
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):
        expected = whole.generate(PROMPTS, max_new_tokens=6, sampling=sampling)
        assert mixture.generate(PROMPTS, max_new_tokens=6, sampling=sampling) == expected
        assert "".join(mixture.engine.stream(PROMPTS[0], max_new_tokens=6, sampling=sampling)) == expected[0].text
    assert held and max(held) <= mixture.stored.source.most
    for prompt, one in zip(PROMPTS, expected, strict=True):
        alone = mixture.route(prompt)
        assert alone.chosen == one.routing.chosen and alone.weights == pytest.approx(one.routing.weights, abs=1e-6)
    some = mixture.engine.generate(PROMPTS[:2], max_new_tokens=3, n=2)
    assert some == whole.engine.generate(PROMPTS[:2], max_new_tokens=3, n=2)


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_each_expert_is_fetched_once_for_all_of_its_rows(made, site):
    mixture = moesaic.load(made / site, ram=room(made / site, 1))
    mixture.generate(PROMPTS, max_new_tokens=6)
    traffic = mixture.traffic
    size = max(part.bytes for part in plan(made / site).parts if part.role == "expert")
    assert (traffic.fetches, traffic.bytes, traffic.hits) == (4, 4 * size, 0) and traffic.seconds > 0
    mixture.generate(PROMPTS, max_new_tokens=6)
    assert (mixture.traffic.fetches, mixture.traffic.hits) == (7, 1), "whoever is there still comes first"


def test_where_all_fit_each_is_fetched_once_and_rows_stay_together(made):
    mixture = moesaic.load(made / "model", ram=room(made / "model", 4))
    assert not mixture.stored.source.sorts
    for _ in range(3):
        mixture.generate(PROMPTS, max_new_tokens=2)
    assert mixture.traffic.fetches == 4 and moesaic.load(made / "model").traffic.fetches == 0


def test_what_experts_share_with_the_base_is_held_once_and_never_fetched(made):
    stored = load_mixture(made / "shared", budget(made / "shared", None, room(made / "shared", 1)))
    base = dict(stored.model.base.named_parameters())
    for place in range(4):
        with stored.source.using((place,)):
            model = dict(stored.model.model(place).named_parameters())
            own = {name for name in base if model[name].data_ptr() != base[name].data_ptr()}
            assert own == {name for name in base if ".mlp." in name} and not any(model[name].is_meta for name in base)
        assert (
            stored.source.sizes[place] == sum(base[name].nbytes for name in own) + 2 * 64 * 8 * 4
        )  # and its rotations


def test_sizes_are_those_of_the_plan(made):
    for site in (*SITES, "linear"):
        source = load_mixture(made / site, budget(made / site, None, "1GB")).source
        told = {part.name: part.bytes for part in plan(made / site).parts if part.role == "expert"}
        assert source.sizes == ([0] * 4 if site == "linear" else [told[name] for name in NAMES])


def test_at_level_token_who_is_there_is_asked_first(made):
    mixture = moesaic.load(made / "token", ram=room(made / "token", 1))
    with mixture.stored.source.using((2,)):
        pass
    gates = Gates.of(torch.tensor([[0.25] * 4]))
    before = mixture.traffic.fetches
    expected = moesaic.load(made / "token").stored.model.score(torch.tensor([[3, 4, 5]]), gates)
    with torch.no_grad():
        assert mixture.stored.model.score(torch.tensor([[3, 4, 5]]), gates).equal(expected)
    assert mixture.traffic.fetches - before == 3


def test_a_trace_keeps_the_order_of_the_prompts(made, tmp_path):
    with moesaic.load(made / "model", ram=room(made / "model", 1), trace=tmp_path / "t.jsonl") as mixture:
        mixture.generate(PROMPTS, max_new_tokens=2)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows] == [*NAMES, "alpha", "base", *reversed(NAMES)]
    assert not any(row["forced"] for row in rows)


# --- the plan, and the running ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("site", ["model", "ffn"])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_what_a_run_fetches_is_what_the_plan_and_a_simulation_say(made, site, experts):
    ram, rng, there, fetched = room(made / site, experts), random.Random(0), list[str](), 0
    mixture, placement = moesaic.load(made / site, ram=ram), plan(made / site, ram=ram).placement
    size = mixture.stored.source.sizes[0]
    for _ in range(120):
        name = rng.choice(NAMES)
        mixture.generate(f"one {name}", max_new_tokens=1)
        fetched += name not in there
        there = [*(one for one in there if one != name), name][-experts:]
        assert mixture.traffic.fetches == fetched
    assert mixture.traffic.bytes / 120 == fetched * size / 120 == pytest.approx(placement.fetched, rel=0.2)


def test_what_cannot_fit_is_refused_before_anything_is_loaded(made, monkeypatch, capsys):
    read = []
    monkeypatch.setattr(Opened, "stored", lambda self, name: read.append(name))
    for site in (*SITES, "linear"):
        least = room(made / site, 4 if site == "linear" else 1)
        missing = plan(made / site, ram=least - 1)
        with pytest.raises(MemoryLimitError, match="RAM: the plan does not fit: 1 bytes are missing") as refused:
            moesaic.load(made / site, ram=least - 1)
        with pytest.raises(MemoryLimitError) as planned:
            missing.require()
        assert str(refused.value) == str(planned.value) and not read
        assert status(["generate", str(made / site), "one", "--ram", str(least - 1)]) == 8
        assert "error: RAM: the plan does not fit: 1 bytes are missing" in capsys.readouterr().err


def test_adapters_are_held_whole(made):
    mixture = moesaic.load(made / "linear", ram=room(made / "linear", 4))
    assert mixture.generate(PROMPTS, max_new_tokens=4) == moesaic.load(made / "linear").generate(
        PROMPTS, max_new_tokens=4
    )
    assert mixture.traffic.fetches == 0


@pytest.mark.slow
def test_a_prompt_that_needs_more_memory_than_there_is_is_refused_by_its_bytes(made):
    mixture = moesaic.load(made / "model", ram=room(made / "model", 1))
    prompt = [5] * 20
    assert len(mixture.engine.generate([prompt] * 9, max_new_tokens=40)) == 9, "one after the other"
    with pytest.raises(MemoryLimitError, match="not enough memory for the answer; .* to answer 50 rows of 60 tokens"):
        mixture.engine.generate([prompt], max_new_tokens=40, n=50)
    source = mixture.stored.source
    source.budget = replace(source.budget, working=lambda rows, tokens: source.budget.room - source.sizes[0] + 1)
    for ask in (mixture.engine.stream, mixture.generate):
        with pytest.raises(MemoryLimitError, match="to answer a row of"):
            ask("one alpha", max_new_tokens=1)


def test_room_for_the_experts_of_one_row_is_always_kept(made):
    size = max(part.bytes for part in plan(made / "model").parts if part.role == "expert")
    for site, least in (("model", size), ("two", 2 * size), ("linear", 0)):
        assert budget(made / site, None, "1GB").least == least


def test_a_device_must_be_there_and_only_one(made):
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="vram: no accelerator on this machine"):
            moesaic.load(made / "model", vram="1GB")
    with pytest.raises(RecipeError, match="vram: a mixture runs on one device"):
        moesaic.load(made / "model", vram="1GB,1GB")


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_on_a_device_by_way_of_the_host_it_is_the_same(made, site):
    """The device is the host here; what differs is who copies."""
    on_cpu = budget(made / site, None, room(made / site, 1))
    there = type(on_cpu)(on_cpu.room, on_cpu.kept, on_cpu.least, on_cpu.working, torch.device("cpu"), 10**6)
    mixture = WritingMixture(made / site, budget=there)
    assert mixture.generate(PROMPTS, max_new_tokens=6) == moesaic.load(made / site).generate(PROMPTS, max_new_tokens=6)
    assert len(mixture.stored.source.carrier.near) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("site", [*SITES, "linear", "token"])
def test_on_an_accelerator_it_is_the_same(made, site):
    mixture = moesaic.load(made / site, vram=room(made / site, 4 if site == "linear" else 1) - LIBRARIES, ram="1GB")
    expected = moesaic.load(made / site).generate(PROMPTS, max_new_tokens=6)
    assert [one.text for one in mixture.generate(PROMPTS, max_new_tokens=6)] == [one.text for one in expected]


# --- what may happen meanwhile ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "model", tmp_path / "mixture")


def test_a_folder_that_is_deleted_or_replaced_meanwhile_changes_nothing(made, copy):
    mixture = moesaic.load(copy, ram=room(copy, 1))
    expected = mixture.generate(PROMPTS, max_new_tokens=4)
    files = copy / "experts"
    (files / "alpha").rename(files / "old")
    shutil.copytree(files / "beta", files / "alpha")
    shutil.rmtree(files / "old")
    assert mixture.generate(PROMPTS, max_new_tokens=4) == expected
    shutil.rmtree(copy)
    assert mixture.generate(PROMPTS, max_new_tokens=4) == expected and mixture.traffic.fetches > 8


def test_a_damaged_expert_is_named_when_it_is_loaded_and_when_it_is_fetched(copy):
    at = copy / "experts" / "beta" / TENSORS
    mixture, data = moesaic.load(copy, ram=room(copy, 1)), at.read_bytes()
    expected = mixture.generate("one alpha", max_new_tokens=3)
    written = at.stat()
    for damaged, what in (
        (data[:-100], "changed while it was in use"),
        (data[:-100] + b"\xff" * 100, "changed while it was in use"),
    ):
        at.write_bytes(damaged)
        with pytest.raises(WeightsError, match=what) as refused:
            mixture.generate("one beta", max_new_tokens=3)
        assert refused.value.path == at
        assert mixture.generate("one alpha", max_new_tokens=3) == expected, "the others go on"
    os.utime(at, ns=(written.st_atime_ns, written.st_mtime_ns))
    with pytest.raises(WeightsError, match="the tensor holds NaN"):
        mixture.generate("one beta", max_new_tokens=3)
    with pytest.raises(WeightsError, match="the file was changed or damaged") as refused:
        moesaic.load(copy, ram=room(copy, 1))
    assert refused.value.path == at


def test_ctrl_c_during_a_fetch_leaves_a_mixture_that_answers(made, monkeypatch):
    mixture = moesaic.load(made / "model", ram=room(made / "model", 1))
    expected = mixture.generate(PROMPTS, max_new_tokens=3)
    get, calls = Opened.get, iter(range(100))

    def interrupted(self: Opened, name: str) -> torch.Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return get(self, name)

    monkeypatch.setattr(Opened, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mixture.generate("one alpha", max_new_tokens=3)
    source = mixture.stored.source
    own, weights = source.experts[0].own, dict(mixture.stored.model.model(0).named_parameters())
    assert not source.pins and not source.coming and not source.here and all(weights[name].is_meta for name in own)
    monkeypatch.setattr(Opened, "get", get)
    assert mixture.generate(PROMPTS, max_new_tokens=3) == expected


@pytest.mark.slow
@pytest.mark.parametrize("site", ["model", "ffn"])
def test_two_threads_get_what_each_would_get_alone(made, site):
    mixture = moesaic.load(made / site, ram=room(made / site, 1))
    expected, held = mixture.generate(PROMPTS, max_new_tokens=4), watched(mixture)
    found: dict[int, object] = {}

    def ask(number: int) -> None:
        order = PROMPTS[number:] + PROMPTS[:number]
        made = mixture.generate(order, max_new_tokens=4)
        found[number] = made[len(PROMPTS) - number :] + made[: len(PROMPTS) - number]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert list(map(found.get, range(3))) == [expected] * 3
    assert max(held) <= mixture.stored.source.most


def test_an_unfinished_stream_is_closed_before_something_else_is_asked(made):
    mixture = moesaic.load(made / "model", ram=room(made / "model", 1))
    stream = mixture.engine.stream("one alpha", max_new_tokens=5)
    next(stream)
    with pytest.raises(RecipeError, match="another answer of this mixture is not finished"):
        mixture.generate("one beta", max_new_tokens=1)
    stream.close()
    assert mixture.generate("one beta", max_new_tokens=1).routing.chosen == "beta"


def test_blocks_have_places_that_are_empty_until_they_are_fetched(made):
    model = load_mixture(made / "ffn", budget(made / "ffn", None, room(made / "ffn", 2))).model
    slots = [part for part in model.decoder.modules() if isinstance(part, FetchedFFN)]
    assert len(slots) == 3 and not any(slot.blocks for slot in slots)
    with model.source.using((1, 2)):
        assert all(slot.blocks.keys() == {1, 2} for slot in slots)
    with model.source.using((3,)):
        assert all(slot.blocks.keys() == {2, 3} for slot in slots)


def test_a_copy_is_checked_without_loading_it_again(made, tmp_path, monkeypatch):
    mixture = moesaic.load(made / "model", ram=room(made / "model", 1))
    monkeypatch.setattr("moesaic.generate.loaded.load_mixture", None)
    mixture.save_pretrained(tmp_path / "copy")
    monkeypatch.undo()
    assert moesaic.load(tmp_path / "copy").generate("one beta", max_new_tokens=2) == mixture.generate(
        "one beta", max_new_tokens=2
    )


# --- from outside -----------------------------------------------------------------------------------------------------


def test_the_command_line_says_what_was_fetched(made, capsys):
    ram = str(room(made / "model", 1))
    assert (
        status(["generate", str(made / "model"), "one alpha", "one beta", "--ram", ram, "--max-new-tokens", "2"]) == 0
    )
    told = capsys.readouterr()
    assert told.err.startswith("[2 experts fetched, ") and told.err.endswith("s waited; 0 found in memory]\n")
    assert "alpha" in told.out and "fetched" not in told.out
    assert status(["inspect", str(made / "model"), "--text", "one beta", "--ram", ram]) == 0
    assert "routed to beta" in capsys.readouterr().out
    assert status(["inspect", str(made / "model"), "--ram", ram]) == 2
    assert status(["generate", str(made / "model"), "one", "--ram", "much"]) == 2
    assert "ram: wrong size of memory" in capsys.readouterr().err


# --- rows in flight ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["linear", "ffn", "model", "token"])
def test_a_scheduler_writes_within_the_memory_what_is_written_without(made, site):
    cache = 200_000
    mixture = moesaic.load(made / site, ram=room(made / site, 4) + 2 * cache)
    held, scheduler = watched(mixture), Scheduler(mixture.engine, cache, rows=2, prefill=16)
    tickets = [scheduler.submit(Request(prompt=prompt, max_new_tokens=6)) for prompt in PROMPTS]
    while not scheduler.idle:
        scheduler.step()
    expected = moesaic.load(made / site).generate(PROMPTS, max_new_tokens=6)
    assert [ticket.rows[0].ids for ticket in tickets] == [one.ids for one in expected]
    source = mixture.stored.source
    used = cache + max(source.budget.working(2, 1), source.budget.working(1, 16))
    assert site == "linear" or (held and max(held) <= source.budget.room - used)


def test_rows_in_flight_beside_which_the_experts_do_not_fit_are_refused(made):
    mixture = moesaic.load(made / "ffn", ram=room(made / "ffn", 2))
    with pytest.raises(MemoryLimitError, match="not enough memory to serve; expected at most .* bytes together; got"):
        Scheduler(mixture.engine, 200_000, rows=2)
    enough = moesaic.load(made / "ffn", ram=room(made / "ffn", 4))
    with pytest.raises(MemoryLimitError, match="give more memory, or a smaller cache"):
        Scheduler(enough.engine, 10**9, rows=2)
