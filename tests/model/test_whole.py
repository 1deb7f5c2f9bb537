"""Do whole models behind a router answer as each would alone, and only those that are asked?"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from moesaic.config import Feature
from moesaic.errors import CompatibilityError, GatesError, RecipeError
from moesaic.generate.engine import Engine
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, read
from moesaic.model.mixture import Routed, Session
from moesaic.model.whole import ModelMixture
from moesaic.routing import Gates, Routing, Selection
from moesaic.testing import ByteTokenizer, FixedRouter, FunctionRouter, prefilled, tiny_decoder

LOGITS = [[2.0, 0, 0], [0, 0, 3.0], [1.0, 4.0, 0], [0, 0, 1.0]]
NAMES = ("one", "two", "three")


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def passes(monkeypatch) -> list[tuple[Decoder, int, int]]:
    """Every pass through blocks: of which decoder, with how many rows and tokens."""
    found, run = [], Decoder.run

    def counted(self, x, cache, layers, gates, mask=None):
        if len(layers):
            found.append((self, len(x), x.shape[1]))
        return run(self, x, cache, layers, gates, mask)

    monkeypatch.setattr(Decoder, "run", counted)
    return found


def decoders() -> list[Decoder]:
    """Of other depths and widths: whole models need to share only their vocabulary."""
    sizes = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 40}
    return [tiny_decoder(1), tiny_decoder(2, **sizes), tiny_decoder(3, context=48)]


class Reads:
    """A router that goes by the states it reads: a fixed random matrix."""

    num_parameters = num_encoder_parameters = 0

    def __init__(self, features: int, experts: int, sharp: float = 3.0):
        self.matrix = torch.randn(features, experts, generator=torch.Generator().manual_seed(3)) * sharp

    def __call__(self, features):
        return features @ self.matrix


def mixture(experts: Sequence[Decoder] | None = None, kind: str = "top_1", router=None, **more) -> ModelMixture:
    experts = decoders() if experts is None else experts
    router = router or FixedRouter([row[: len(experts)] for row in LOGITS])
    feature = Feature.parse(more.pop("feature", "hidden_mean"))
    base = more.pop("base", None) or tiny_decoder(0)
    selection = Selection(kind=kind, k=2 if kind == "top_k" else None)
    decider = Decider.over(base, NAMES[: len(experts)], router, feature, selection)
    return ModelMixture(base, experts, decider, **more)


def prompts(*lengths: int) -> Prompts:
    rows = [torch.randint(61, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    return Prompts.pad(rows, [""] * len(rows))


def rows_of(batch: Prompts) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(batch.ids, batch.lengths, strict=True)]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def alone(model: ModelMixture, row: list[int], weights: Tensor) -> Tensor:
    """Probabilities after a row by the formula: no cache, no batch, every model asked. The base has what is left."""
    every = [*(model.model(int(one.argmax())) for one in model.own)]
    shares = [*weights.tolist(), 1 - float(weights.detach().sum())]
    z = torch.stack([each(torch.tensor([row])).logits[0, -1] for each in every])
    if model.combine == "product":
        return (torch.tensor(shares) @ z).softmax(-1)
    return torch.tensor(shares) @ z.softmax(-1)


# --- decided once, from the prompt ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["mixture", "product"])
@pytest.mark.parametrize("kind", ["top_1", "top_k", "soft"])
def test_rows_in_a_batch_decode_greedily_as_the_naive_loop(kind, combine):
    model, batch = mixture(kind=kind, combine=combine), prompts(3, 9, 5, 6)
    weights, rows = model.route(batch).weights, rows_of(batch)
    logits, session = prefilled(model, batch, 6)
    for _ in range(6):
        for row, (ids, own) in enumerate(zip(rows, weights, strict=True)):
            close(logits[row].softmax(-1), alone(model, ids, own))
        chosen = logits.argmax(-1)
        rows = [[*ids, token] for ids, token in zip(rows, chosen.tolist(), strict=True)]
        logits, session = model.decode(chosen, session)


def test_one_hot_is_the_experts_own_logits_exactly_and_minus_1_the_bases():
    model, batch = mixture(), prompts(4, 4)
    for expert in (-1, 0, 1, 2):
        weights = Gates.one(expert, 2, 3, torch.zeros(1)).weights
        decoder = model.base if expert < 0 else model.model(expert)
        expected = decoder(batch.ids).logits
        assert model.score(batch.ids, Gates.of(weights)).equal(expected)
        close(prefilled(model, batch, 2, Routing(weights, weights))[0], expected[:, -1])


@pytest.mark.parametrize("combine", ["mixture", "product"])
def test_identical_experts_are_the_dense_model(combine):
    """Copies, not the same object: they are computed each by itself."""
    model, batch = mixture([tiny_decoder(0) for _ in range(3)], kind="soft", combine=combine), prompts(4, 4)
    assert len(model.models) == 4
    gates = Gates.of(model.route(batch).weights)
    close(model.score(batch.ids, gates), tiny_decoder(0)(batch.ids).logits)


def test_a_mixture_of_one_is_its_expert():
    model, batch = mixture([tiny_decoder(7)], kind="soft", router=FixedRouter([[0.3], [0.4]])), prompts(4, 4)
    assert model.score(batch.ids, Gates.of(model.route(batch).weights)).equal(tiny_decoder(7)(batch.ids).logits)


def test_select_means_skip_and_rows_of_one_expert_go_together(passes):
    model, batch = mixture(feature="embedding_mean"), prompts(5, 5, 5, 5)
    one, two, three = (model.model(n) for n in range(3))
    passes.clear()
    logits, session = prefilled(model, batch, 4)
    assert passes == [(one, 1, 5), (two, 1, 5), (three, 2, 5)]
    passes.clear()
    again, following = model.decode(logits.argmax(-1), session)
    assert passes == [(one, 1, 1), (two, 1, 1), (three, 2, 1)]
    close(again, model.decode(logits.argmax(-1), session)[0])
    session.cache.room.free([0, 2])
    session = following.select([3, 1])
    places = {number: shelf.places.keys() for number, shelf in session.cache.room.shelves.items()}
    assert places == {0: set(), 1: set(), 2: {1, 3}}, "nobody keeps what nobody will ask for"
    passes.clear()
    model.decode(torch.tensor([1, 2]), session)
    assert passes == [(three, 2, 1)]


def test_what_weights_leave_of_1_is_answered_by_the_base():
    model = mixture(kind="soft")
    weights = torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.0, 0.0]])
    ids = prompts(6, 6).ids
    found = model.score(ids, Gates.of(weights))[:, -1]
    for row in range(2):
        close(found[row].softmax(-1), alone(model, ids[row].tolist(), weights[row]))
    with pytest.raises(GatesError, match="a sum of 1 at most"):
        model.score(ids, Gates.of(weights + 0.5))


def test_the_base_may_be_an_expert_and_is_asked_once(passes):
    base = tiny_decoder(0)
    model, batch = mixture([tiny_decoder(1), base], kind="soft", base=base), prompts(5, 5)
    assert len(model.models) == 2
    weights = torch.tensor([[0.5, 0.25], [0.0, 0.0]])
    found = model.score(batch.ids, Gates.of(weights))[:, -1]
    assert sum(decoder is base for decoder, *_ in passes) == 1
    for row in range(2):
        close(found[row].softmax(-1), alone(model, batch.ids[row].tolist(), weights[row]))


def test_rows_join_multiply_and_leave_between_steps():
    model = mixture(kind="soft")
    room = model.room(6, 30)
    early, late = prompts(3, 8), prompts(5)
    w = [torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.25, 0.75]])]
    first, one = model.prefill(early, room, room.spare.take(2), Routing(w[0], w[0]))
    second, one = model.decode(first.argmax(-1), one)
    third, two = model.prefill(late, room, room.spare.take(1), Routing(w[1], w[1]))
    session = Session.join([one, two])
    rows = [*rows_of(early), *rows_of(late)]
    rows = [[*rows[0], int(first[0].argmax())], [*rows[1], int(first[1].argmax())], rows[2]]
    logits = torch.cat([second, third])
    room.free([1])
    session = session.select([2, 0]).repeat([(2, 1), (0, 3)])
    rows, logits, weights = [rows[2], rows[2], rows[0], rows[0]], logits[[2, 2, 0, 0]], torch.cat(w)[[2, 2, 0, 0]]
    for step in range(4):
        chosen = logits.topk(2, -1).indices[torch.arange(4), torch.tensor([0, 1, 0, 1]) if step == 0 else 0]
        rows = [[*row, token] for row, token in zip(rows, chosen.tolist(), strict=True)]
        logits, session = model.decode(chosen, session)
        for place in range(4):
            close(logits[place].softmax(-1), alone(model, rows[place], weights[place]))


def test_generation_through_the_engine_equals_the_naive_loop():
    """Rows end at different steps, so the engine drops them between two steps."""
    sizes = {"vocab_size": 257}
    router = FixedRouter([[0.5, 0.4], [2.0, 0.0], [0.0, 2.0]])
    model = mixture([tiny_decoder(1, **sizes), tiny_decoder(2, **sizes)], "soft", router, base=tiny_decoder(0, **sizes))
    texts = ["abc", "hello you", "12"]
    made = Engine(model, ByteTokenizer()).generate(texts, max_new_tokens=8, stop=("\x03",))
    weights = model.route(Prompts.pad([list(t.encode()) for t in texts], texts)).weights
    for text, (row,), own in zip(texts, made, weights, strict=True):
        ids = list(text.encode())
        for place, token in enumerate(row.ids):
            probabilities = alone(model, ids, own)
            if not place:
                probabilities[256] = 0
            assert int(probabilities.argmax()) == token
            ids.append(token)


def test_a_router_learns_through_the_answer():
    router = torch.nn.Linear(32, 3, bias=False)
    model, batch = mixture(kind="soft", router=FunctionRouter(router)), prompts(4, 7, 5)
    gates = Gates.of(model.route(batch).weights)
    model.score(batch.ids, gates).log_softmax(-1)[:, 2, 5].sum().backward()
    assert router.weight.grad.abs().min() > 0


# --- decided at every token -------------------------------------------------------------------------------------------


FEATURES = ["embedding_mean", "hidden_mean", "hidden_last", "hidden@2", "hidden@1_last"]


@pytest.mark.parametrize(
    "feature", [FEATURES[0], *(pytest.param(each, marks=pytest.mark.slow) for each in FEATURES[1:])]
)
@pytest.mark.parametrize("kind", ["top_1", "soft"])
def test_at_level_token_every_step_is_decided_from_all_that_was_read(feature, kind):
    base = tiny_decoder(0)
    model = mixture(kind=kind, router=Reads(32, 3), feature=feature, level="token", base=base)
    batch = prompts(3, 9, 5)
    rows, chosen_by = rows_of(batch), set()
    logits, session = prefilled(model, batch, 6)
    close(session.routing.weights, model.route(batch).weights)
    for _ in range(6):
        for row, ids in enumerate(rows):
            states = read(model.feature, base, 3, Prompts.pad([ids], [""]))
            weights = model.decider.selection(model.router(states)).weights[0]
            chosen_by.add((row, int(weights.argmax())))
            close(logits[row].softmax(-1), alone(model, ids, weights))
        chosen = logits.argmax(-1)
        rows = [[*ids, token] for ids, token in zip(rows, chosen.tolist(), strict=True)]
        logits, session = model.decode(chosen, session)
    assert len(chosen_by) > 3, "some row changed its expert, or this shows nothing"


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", ["top_1", "soft"])
def test_scoring_at_level_token_equals_decoding_step_by_step(feature, kind):
    model = mixture(kind=kind, router=Reads(32, 3), feature=feature, level="token")
    ids = prompts(12, 12).ids
    logits, session = prefilled(model, Prompts(ids[:, :5], torch.tensor([5, 5]), [""] * 2), 8)
    found = [logits]
    for at in range(5, 12):
        logits, session = model.decode(ids[:, at], session)
        found.append(logits)
    close(torch.stack(found, 1), model.score(ids)[:, 4:])


def test_at_level_token_an_expert_reads_what_it_missed_in_one_pass(passes):
    """The second row's expert is asked first, then not for three tokens, then again."""
    turns = iter([0, 0, 1, 1, 1, 0])
    experts = [tiny_decoder(1), tiny_decoder(2)]
    model = mixture(experts, router=FunctionRouter(lambda f: torch.eye(2)[[next(turns)] * len(f)] * 50), level="token")
    batch, rows = prompts(4), rows_of(prompts(4))
    logits, session = prefilled(model, batch, 8)
    for expert in (0, 1, 1, 1, 0):
        rows = [[*rows[0], int(logits.argmax())]]
        passes.clear()
        logits, session = model.decode(logits.argmax(-1), session)
        own = [(rows, tokens) for decoder, rows, tokens in passes if decoder is experts[expert]]
        assert not any(decoder is experts[1 - expert] for decoder, *_ in passes)
        close(logits[0], experts[expert](torch.tensor(rows)).logits[0, -1])
        assert own == [(1, {(0, 5): 1, (1, 6): 6, (1, 7): 1, (1, 8): 1, (0, 9): 4}[expert, len(rows[0])])]
        passes.clear()


def test_what_some_rows_have_read_they_do_not_read_again(passes):
    """The first row stays with its expert; the second, which shares the expert's cache, goes elsewhere."""
    experts, turns = [tiny_decoder(1), tiny_decoder(2)], iter([[0, 0], [0, 1], [0, 1], [0, 1]])
    model = mixture(experts, router=FunctionRouter(lambda f: torch.eye(2)[next(turns)] * 50), level="token")
    logits, session = prefilled(model, prompts(5, 5), 4)
    passes.clear()
    for _ in range(3):
        logits, session = model.decode(logits.argmax(-1), session)
    assert [(rows, tokens) for decoder, rows, tokens in passes if decoder is experts[0]] == [(1, 1)] * 3


def test_the_base_that_the_router_reads_is_not_read_again_to_answer(passes):
    base = tiny_decoder(0)
    router = FunctionRouter(lambda features: torch.tensor([[0, 9.0]] * len(features)))
    model = mixture([tiny_decoder(1), base], router=router, base=base, level="token")
    logits, session = prefilled(model, prompts(5), 4)
    model.decode(logits.argmax(-1), session)
    assert passes == [(base, 1, 5), (base, 1, 1)]
    passes.clear()
    close(model.score(prompts(5).ids), base(prompts(5).ids).logits)
    assert [decoder for decoder, *_ in passes] == [base, base], "once to score, once here"


def test_at_level_token_rows_leave_and_join_too_those_of_named_experts_beside_the_others():
    model = mixture(kind="soft", router=Reads(32, 3), level="token", feature="hidden_last")
    room = model.room(4, 30)
    one, two = prompts(4, 7), prompts(9)
    taken, a = model.prefill(one, room, room.spare.take(2))
    first, a = model.decode(taken.argmax(-1), a)
    second, b = model.prefill(two, room, room.spare.take(1))
    named = Gates.one(-1, 1, 3, torch.zeros(1)).weights
    third, c = model.prefill(two, room, room.spare.take(1), Routing(named, named))
    session = Session.join([a, b, c]).select([2, 1, 3])
    rows = [rows_of(two)[0], [*rows_of(one)[1], int(taken[1].argmax())], rows_of(two)[0]]
    logits = torch.stack([second[0], first[1], third[0]])
    for _ in range(4):
        chosen = logits.argmax(-1)
        rows = [[*row, token] for row, token in zip(rows, chosen.tolist(), strict=True)]
        logits, session = model.decode(chosen, session)
        for place, row in enumerate(rows[:2]):
            close(logits[place], model.score(torch.tensor([row]))[0, -1])
        close(logits[2], model.base(torch.tensor([rows[2]])).logits[0, -1])
    assert session.gates.weights[2].tolist() == [0, 0, 0, 1] and session.routing.weights[2].tolist() == [0, 0, 0]


def test_at_level_token_a_session_says_what_its_latest_step_decided():
    turns = iter([0, 2, 1])
    model = mixture(router=FunctionRouter(lambda f: torch.eye(3)[[next(turns)] * len(f)] * 50), level="token")
    logits, session = prefilled(model, prompts(4), 4)
    for expert in (0, 2, 1):
        assert session.routing.best.tolist() == [expert] and session.gates.present == (expert,)
        if expert != 1:
            logits, session = model.decode(logits.argmax(-1), session)


def test_who_is_named_answers_every_token():
    model, batch = mixture(router=Reads(32, 3), level="token"), prompts(5)
    weights = Gates.one(1, 1, 3, torch.zeros(1)).weights
    logits, session = prefilled(model, batch, 4, Routing(weights, weights))
    rows = rows_of(batch)
    for _ in range(4):
        close(logits, model.model(1)(torch.tensor(rows)).logits[:, -1])
        rows = [[*rows[0], int(logits.argmax())]]
        logits, session = model.decode(logits.argmax(-1), session)


def test_a_router_at_level_token_learns_through_the_answer():
    router = torch.nn.Linear(32, 3, bias=False)
    model = mixture(kind="soft", router=FunctionRouter(router), level="token")
    model.score(prompts(6, 6).ids).log_softmax(-1)[:, 2:, 5].sum().backward()
    assert router.weight.grad.abs().min() > 0


def test_near_the_end_of_the_context_nobody_reads_beyond_it():
    """A row that has missed one token stands beside one that has missed all: no pass may reach beyond the context."""
    experts = [tiny_decoder(1, context=20), tiny_decoder(2, context=20)]
    turns = iter([[0, 0], [0, 1], [0, 1], [1, 0], [0, 0]])
    model = mixture(experts, router=FunctionRouter(lambda f: torch.eye(2)[next(turns)] * 50), level="token")
    assert model.context == 20
    rows = rows_of(prompts(16, 3))
    logits, session = prefilled(model, prompts(16, 3), 4)
    for own in ([0, 1], [0, 1], [1, 0], [0, 0]):
        chosen = logits.argmax(-1)
        rows = [[*row, token] for row, token in zip(rows, chosen.tolist(), strict=True)]
        logits, session = model.decode(chosen, session)
        for place, (row, expert) in enumerate(zip(rows, own, strict=True)):
            close(logits[place], experts[expert](torch.tensor([row])).logits[0, -1])


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(CompatibilityError, match=r"two\.vocab_size: .* expected 61; got 60"):
        mixture([tiny_decoder(1), tiny_decoder(2, vocab_size=60)])
    for feature in ("text", "hidden_tokens"):
        with pytest.raises(RecipeError, match="a router at level token reads pooled states"):
            mixture(feature=feature, level="token")
    with pytest.raises(GatesError, match="route first"):
        mixture().score(prompts(3).ids)


_: type[Routed] = ModelMixture
