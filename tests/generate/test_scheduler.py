"""Property: a request gets from a scheduler what it gets alone, within a fixed memory, whoever comes and goes."""

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_mixtures import KINDS, REQUESTS, alone, mixture, near

from moesaic.compose.alone import base_alone
from moesaic.errors import DataError, MemoryLimitError, NonFiniteError, RecipeError
from moesaic.generate import Engine, Generation, Request, Sampling
from moesaic.generate.scheduler import Scheduler, Ticket, common
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.nn import Cache
from moesaic.routing import Gates
from moesaic.testing import ByteTokenizer, tiny_decoder

STEADY = KINDS[:4]
SMALL = [replace(request, logprobs=3) for request in REQUESTS]
LONG = "a sum of code, written with care; "
TOKEN = 2 * 3 * 2 * 8 * 8
"""Bytes of a token's keys and values in one tiny decoder."""


pytestmark = pytest.mark.usefixtures("double")


@cache
def engine(kind: str = "linear") -> Engine:
    return Engine(mixture(kind), ByteTokenizer())


@pytest.fixture(params=KINDS)
def any_engine(request) -> Engine:
    return engine(request.param)


def agree(found: list[Generation], expected: list[Generation]) -> None:
    """The same continuations, with the same log-probabilities up to rounding, as far as both report them."""
    bare = [[replace(near(made), logprobs=[]) for made in some] for some in (found, expected)]
    assert bare[0] == bare[1]
    both = [[one for made in some for one in made.logprobs] for some in (found, expected)]
    assert [one.id for one in both[0]] == [one.id for one in both[1]]
    shares = [[share for one in some for share in (one.logprob, *dict(one.top).values())] for some in both]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5)


def as_alone(engine: Engine, ticket: Ticket) -> None:
    agree(ticket.generations(), alone(engine, ticket.request))


def finish(scheduler: Scheduler, most: int = 1000) -> list[Ticket]:
    """Step until nothing is left; the tickets that finished, in order."""
    found = []
    for _ in range(most):
        if scheduler.idle:
            return found
        found += [ticket for ticket in scheduler.step() if ticket.finished]
        within_the_bound(scheduler)
    raise AssertionError("it does not end")


def within_the_bound(scheduler: Scheduler) -> None:
    """What attention reads and writes lies in the one tensor of the bound, in pieces that do not overlap."""
    arena, pool = scheduler.pool.arena, scheduler.pool
    assert arena.bytes.untyped_storage().nbytes() == scheduler.bound
    ends = [0, *(at for piece in arena.pieces for at in piece), scheduler.bound]
    assert ends == sorted(ends)
    held = [slot for pieces in pool.pieces.values() for slot in pieces.held]
    assert len(arena.pieces) == len(held)
    assert set(held) == {seat.slot for seat in scheduler.inside()} | set(scheduler.kept)
    assert scheduler.used + sum(map(pool.taken, scheduler.kept)) == sum(end - start for start, end in arena.pieces)
    if scheduler.flight and isinstance(scheduler.flight.session.cache, Cache):
        for run in scheduler.flight.session.cache.runs:
            for tensor in (*run.block.keys, *run.block.values):
                assert tensor.untyped_storage().data_ptr() == arena.bytes.data_ptr()


def counted(monkeypatch, kind: type = AdapterMixture) -> list[int]:
    """The number of tokens of each later pass."""
    passes = []

    def watch(name: str) -> None:
        read = getattr(kind, name)

        def counting(self, tokens, lengths, session):
            passes.append(sum(lengths))
            return read(self, tokens, lengths, session)

        monkeypatch.setattr(kind, name, counting)

    for name in ("read", "read_on") if kind is AdapterMixture else ("read",):
        watch(name)
    return passes


# --- what is written --------------------------------------------------------------------------------------------------

MANY = [
    *SMALL,
    Request(prompt=LONG, logprobs=3, max_new_tokens=14),
    Request(prompt=LONG + "def", logprobs=3, max_new_tokens=9, sampling=Sampling(temperature=1.0, seed=11)),
    Request(prompt=LONG, logprobs=3, max_new_tokens=12, expert="code", n=3, sampling=Sampling(temperature=0.8, seed=5)),
    Request(prompt=LONG, logprobs=3, max_new_tokens=6, expert="base"),
    Request(prompt="x", logprobs=3, max_new_tokens=20, expert="maths"),
]


@cache
def answers(kind: str, place: int):
    return alone(engine(kind), MANY[place])


@settings(max_examples=15)
@given(
    kind=st.sampled_from(KINDS),
    order=st.lists(st.integers(0, len(MANY) - 1), min_size=1, max_size=7),
    tight=st.booleans(),
    rows=st.integers(1, 6),
    prefill=st.sampled_from([3, 16, 40, 256]),
    seed=st.integers(0, 2**16),
)
def test_whatever_comes_when_gets_what_it_gets_alone(kind, order, tight, rows, prefill, seed):
    """In memory for a single long row, too: the others wait, or lose their slots and begin again."""
    pace, asked = random.Random(seed), {"model": 3, "token": 4}.get(kind, 1)
    scheduler = Scheduler(engine(kind), asked * 64 * TOKEN if tight else None, rows, prefill)
    tickets, finished = [], []
    for place in order:
        tickets.append(scheduler.submit(MANY[place]))
        for _ in range(pace.choice((0, 0, 1, 4))):
            finished += [ticket for ticket in scheduler.step() if ticket.finished]
            within_the_bound(scheduler)
    finished += finish(scheduler)
    assert sorted(map(id, finished)) == sorted(map(id, tickets)), "each finishes once"
    for ticket, place in zip(tickets, order, strict=True):
        agree(ticket.generations(), answers(kind, place))
        assert ticket.routing == ticket.rows[0].routing


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_outgrow_the_memory_take_that_of_the_youngest_which_goes_on_later(kind, monkeypatch):
    preempted, preempt = [], Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda s, seat: preempted.append((seat, s.inside())) or preempt(s, seat))
    requests = [Request(prompt=[5, 6, at], max_new_tokens=20, expert="base", logprobs=3) for at in range(3)]
    scheduler = Scheduler(engine(kind), 64 * TOKEN, rows=4)
    tickets = [scheduler.submit(request) for request in requests]
    finish(scheduler)
    assert preempted and all(seat is inside[-1] for seat, inside in preempted)
    assert preempted[0][0].row.ids, "it had begun to write"
    for ticket in tickets:
        as_alone(engine(kind), ticket)


def test_a_single_row_may_fill_the_memory_although_it_cannot_grow_there(monkeypatch):
    """To grow, a row needs both pieces at once; where they do not fit, it reads its tokens again in one for all."""
    preempted, preempt = [], Scheduler.preempt
    monkeypatch.setattr(Scheduler, "preempt", lambda s, seat: preempted.append(seat) or preempt(s, seat))
    request = Request(prompt=[5, 6, 7], max_new_tokens=28, expert="maths", logprobs=3)
    scheduler = Scheduler(engine(), 32 * TOKEN)
    ticket = scheduler.submit(request)
    finish(scheduler)
    assert len(preempted) == 1
    as_alone(engine(), ticket)


def test_a_base_without_experts_answers():
    plain = Engine(base_alone(tiny_decoder(vocab_size=257)), ByteTokenizer())
    scheduler = Scheduler(plain)
    ticket = scheduler.submit(Request(prompt="hello", max_new_tokens=5))
    finish(scheduler)
    assert ticket.generations() == plain.generate(["hello"], max_new_tokens=5)[0]
    assert ticket.routing.chosen == "base"


@pytest.mark.parametrize("prefill", [4, 256])
def test_an_answer_goes_on_where_its_router_has_stopped_reading(prefill, monkeypatch):
    """No block reads a token of the prompt twice, also where a row gives way while it reads."""
    passes, run = [], Decoder.run
    monkeypatch.setattr(
        Decoder, "run", lambda s, x, c, layers, *r: passes.append((x.shape[1], layers)) or run(s, x, c, layers, *r)
    )
    single = engine("trunk")
    request = Request(prompt=LONG[:20], max_new_tokens=2, logprobs=3)
    routing, begun = single.begun(single.read([request]))
    tokens = begun.tokens
    assert passes == [(tokens, range(1))] and begun.cache.runs[0].block.keys[0].shape[2] == tokens
    passes.clear()
    scheduler = Scheduler(single, prefill=prefill)
    ticket = scheduler.submit(request, routing, begun)
    scheduler.step()
    if prefill < tokens:
        scheduler.preempt(scheduler.inside()[0])
    finish(scheduler)
    reading = [one for one in passes if one[1] == range(1, 3)]
    assert sum(read for read, _ in reading) == tokens + (prefill if prefill < tokens else 0)
    assert [one for one in passes if one not in reading] == [(1, range(3))], "the first written token"
    as_alone(single, ticket)


def test_what_routers_have_read_is_bounded():
    """Requests that wait hold it for a few steps' tokens, or for one prompt; the others read their prompts again."""
    single = engine("trunk")
    for prefill, expected in ((1, 1), (5, 2), (256, 6)):
        scheduler, tickets = Scheduler(single, prefill=prefill), []
        for at in range(6):
            request = Request(prompt=f"{at} sums now", max_new_tokens=3, logprobs=3)
            tickets.append(scheduler.submit(request, *single.begun(single.read([request]))))
        assert sum(ticket.begun is not None for ticket in tickets) == expected
        finish(scheduler)
        for ticket in tickets:
            as_alone(single, ticket)


def test_a_decision_that_its_caller_has_made_is_kept():
    scheduler = Scheduler(engine())
    ticket = scheduler.submit(Request(prompt="def f", max_new_tokens=5), engine().decision_of([0]))
    finish(scheduler)
    assert ticket.routing.chosen == "maths"
    assert [ticket.rows[0].ids] == [
        one.ids for one in alone(engine(), Request(prompt="def f", expert="maths", max_new_tokens=5))
    ]


# --- memory and order -------------------------------------------------------------------------------------------------


def test_rows_are_admitted_by_what_fits_and_in_the_order_of_their_requests(any_engine):
    scheduler = Scheduler(any_engine, rows=3)
    tickets = [scheduler.submit(Request(prompt=f"{at} sums", max_new_tokens=6)) for at in range(5)]
    assert (scheduler.running, scheduler.waiting, scheduler.idle, scheduler.used) == (0, 5, False, 0)
    assert scheduler.step() == tickets[:4], "the head of the queue is decided ahead"
    assert (scheduler.running, scheduler.waiting) == (3, 2) and scheduler.used > 0
    assert [len(ticket.rows) for ticket in tickets] == [1, 1, 1, 1, 0]
    assert sorted(ticket.number for ticket in finish(scheduler)) == [1, 2, 3, 4, 5]
    assert (scheduler.running, scheduler.waiting, scheduler.idle, scheduler.used) == (0, 0, True, 0)


def test_a_large_request_is_not_overtaken_by_small_ones():
    scheduler = Scheduler(engine(), 64 * TOKEN)
    small = [scheduler.submit(Request(prompt=[1, at], max_new_tokens=20)) for at in range(2)]
    large = scheduler.submit(Request(prompt=[2] * 40, max_new_tokens=3))
    late = scheduler.submit(Request(prompt=[3], max_new_tokens=2))
    scheduler.step()
    assert all(ticket.rows[0].ids for ticket in small) and not large.rows[0].ids and not late.rows, "late would fit"
    finish(scheduler)
    assert len(large.rows[0].ids) == 3 and len(late.rows[0].ids) == 2


def test_prompts_are_read_in_chunks_between_the_tokens_of_others(monkeypatch):
    passes, scheduler = counted(monkeypatch), Scheduler(engine(), prefill=10)
    first = scheduler.submit(Request(prompt="def f", max_new_tokens=30))
    scheduler.step()
    scheduler.submit(Request(prompt=[7] * 15, max_new_tokens=2))
    scheduler.submit(Request(prompt=[8] * 12, max_new_tokens=2))
    del passes[:]
    for _ in range(2):
        scheduler.step()
    assert passes == [10, 1, 10, 1], "each step reads a chunk, and writes a token of the other row"
    scheduler.step()
    assert passes[4:] == [7, 2] and len(first.rows[0].ids) == 4


def test_a_request_that_never_fits_is_refused_at_once():
    scheduler = Scheduler(engine(), 32 * TOKEN)
    with pytest.raises(MemoryLimitError, match="exceeds the memory of keys and values; expected at most .* bytes; got"):
        scheduler.submit(Request(prompt="def f", max_new_tokens=40))
    with pytest.raises(RecipeError, match="no such expert"):
        scheduler.submit(Request(prompt="def f", expert="cod"))
    with pytest.raises(RecipeError, match="the prompt is empty"):
        scheduler.submit(Request(prompt=""))
    assert scheduler.idle


def test_a_request_whose_decision_does_not_fit_fails_alone():
    """At site model, soft weights ask all models; the base alone would have fitted."""
    scheduler = Scheduler(engine("model"), 64 * TOKEN)
    tickets = [scheduler.submit(Request(prompt=prompt, max_new_tokens=40)) for prompt in ("sum def", "sum")]
    tickets.append(scheduler.submit(Request(prompt="sum", max_new_tokens=4, expert="base")))
    assert [one.number for one in finish(scheduler)] == [1, 2, 3]
    assert [type(ticket.error) for ticket in tickets] == [MemoryLimitError, MemoryLimitError, type(None)]
    with pytest.raises(MemoryLimitError):
        tickets[0].generations()


# --- requests that end early ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(7))
def test_a_request_that_is_cancelled_frees_its_slots_wherever_it_is(any_engine, steps):
    """In the queue, while it waits, while its prompt is read, while it writes."""
    scheduler = Scheduler(any_engine, rows=2, prefill=8)
    first = scheduler.submit(SMALL[0])
    gone = scheduler.submit(Request(prompt=LONG, max_new_tokens=9, n=2, sampling=Sampling(temperature=1.0, seed=1)))
    last = scheduler.submit(SMALL[3])
    for _ in range(steps):
        scheduler.step()
    scheduler.cancel(gone)
    written = [len(row.ids) for row in gone.rows]
    assert gone.finished and gone.cancelled
    for _ in range(2):
        scheduler.step()
        within_the_bound(scheduler)
    assert all(seat.ticket is not gone for seat in scheduler.inside())
    assert gone not in finish(scheduler) and scheduler.used == 0
    assert [len(row.ids) for row in gone.rows] == written
    for ticket in (first, last):
        as_alone(any_engine, ticket)


def test_to_cancel_what_has_finished_changes_nothing():
    scheduler = Scheduler(engine())
    ticket = scheduler.submit(SMALL[0])
    finish(scheduler)
    scheduler.cancel(ticket)
    assert not ticket.cancelled and scheduler.step() == []


def test_logits_that_are_not_finite_fail_their_request_alone(monkeypatch):
    read = AdapterMixture.read

    def broken(self, ids, lengths, session):
        logits, after = read(self, ids, lengths, session)
        logits[session.gates.weights.argmax(1) == 1] = torch.nan
        return logits, after

    scheduler = Scheduler(engine())
    good, bad = (scheduler.submit(Request(prompt="p", max_new_tokens=4, expert=name)) for name in ("maths", "code"))
    scheduler.step()
    expected = alone(engine(), good.request)
    monkeypatch.setattr(AdapterMixture, "read", broken)
    finish(scheduler)
    assert isinstance(bad.error, NonFiniteError) and len(bad.rows[0].ids) == 1
    agree(good.generations(), expected)


def test_a_listener_that_fails_fails_its_request_alone():
    heard = []

    def full(*told):
        raise DataError("the disk is full")

    scheduler = Scheduler(engine())
    bad = scheduler.submit(replace(SMALL[0], listener=full))
    good = scheduler.submit(replace(SMALL[0], listener=lambda *told: heard.append(told)))
    finish(scheduler)
    assert isinstance(bad.error, DataError) and not bad.rows
    assert good.error is None and len(heard) == 1 and heard[0][0] == ["add the sum"]


def test_what_cannot_be_scheduled_is_refused():
    with pytest.raises(RecipeError, match="rows: .*expected >= 1; got 0"):
        Scheduler(engine(), rows=0)


# --- prefixes ---------------------------------------------------------------------------------------------------------


def same(key: str) -> Request:
    return Request(prompt=LONG + key, max_new_tokens=4, expert="maths", logprobs=3)


@pytest.mark.parametrize("kind", STEADY)
def test_a_common_beginning_is_read_once_for_each_expert(kind, monkeypatch):
    passes = counted(monkeypatch, ModelMixture if kind == "model" else AdapterMixture)
    scheduler, length = Scheduler(engine(kind)), len(LONG)

    def computed(request: Request) -> tuple[int, int]:
        """Tokens that were computed beside those that were written, and those that were not computed again."""
        del passes[:]
        ticket = scheduler.submit(request)
        finish(scheduler)
        read = sum(passes) - (len(ticket.rows[0].ids) - 1)
        as_alone(engine(kind), ticket)
        return read, ticket.cached

    assert computed(same("one")) == (length + 3, 0)
    assert computed(same("two")) == (3, length)
    assert computed(same("one")) == (1, length + 2), "the last token gives the logits"
    assert computed(replace(same("one"), expert="code")) == (length + 3, 0)
    assert computed(replace(same("one"), expert="base")) == (length + 3, 0)
    assert computed(replace(same("two"), expert="code")) == (3, length)
    assert computed(replace(same("one"), expert=None)) == (length + 3, 0), "a mixture of weights is another"
    assert computed(replace(same("two"), expert=None)) == (3, length)


def test_an_answer_is_the_beginning_of_the_next_turn(monkeypatch):
    scheduler = Scheduler(engine())
    first = scheduler.submit(same("one"))
    finish(scheduler)
    turn = [*first.rows[0].given, *first.rows[0].ids, 5, 6]
    request, passes = Request(prompt=turn, max_new_tokens=3, expert="maths", logprobs=3), counted(monkeypatch)
    second = scheduler.submit(request)
    finish(scheduler)
    assert second.cached == len(turn) - 3, "all but the answer's last token, which nobody had read"
    assert passes[0] == 3
    as_alone(engine(), second)


@pytest.mark.parametrize("kind", STEADY)
def test_who_comes_while_the_beginning_is_read_waits_for_it_and_is_overtaken_meanwhile(kind, monkeypatch):
    requests = [same("one"), same("two"), replace(same("two"), expert="code")]
    expected = [alone(engine(kind), request) for request in requests]
    passes = counted(monkeypatch, ModelMixture if kind == "model" else AdapterMixture)
    scheduler = Scheduler(engine(kind), prefill=100)
    tickets = [scheduler.submit(request) for request in requests]
    scheduler.step()
    assert [bool(ticket.rows[0].ids) for ticket in tickets] == [True, False, True]
    finish(scheduler)
    assert [ticket.cached for ticket in tickets] == [0, len(LONG), 0]
    for ticket, alike in zip(tickets, expected, strict=True):
        agree(ticket.generations(), alike)
    assert sum(passes) == 2 * (len(LONG) + 3) + 3 + 3 * 3


def test_a_prompt_is_read_once_for_all_its_continuations(monkeypatch):
    passes, scheduler = counted(monkeypatch), Scheduler(engine())
    request = replace(same("one"), n=3, sampling=Sampling(temperature=1.0, seed=2))
    ticket = scheduler.submit(request)
    finish(scheduler)
    assert sum(passes) == len(LONG) + 3 + 2 + 3 * 3, "the second and third read its last token again"
    as_alone(engine(), ticket) and ticket.cached == 0


def test_at_level_token_nothing_is_kept():
    scheduler = Scheduler(engine("token"))
    tickets = [scheduler.submit(same("one")) for _ in range(2)]
    finish(scheduler)
    assert [ticket.cached for ticket in tickets] == [0, 0] and not scheduler.kept


def test_of_what_is_kept_the_least_recently_used_goes_first_and_only_where_memory_is_needed():
    def asks(prompt: list[int]) -> int:
        ticket = scheduler.submit(Request(prompt=prompt, max_new_tokens=2, expert="maths"))
        finish(scheduler)
        return ticket.cached

    one, two, three = ([at] * 30 for at in (1, 2, 3))
    scheduler = Scheduler(engine(), 3 * 32 * TOKEN)
    assert [asks(one), asks(two), asks(three)] == [0, 0, 0] and len(scheduler.kept) == 3
    assert asks(one) == 29, "for whose copy the second gave way"
    assert [prefix.tokens[0] for prefix in scheduler.kept.values()] == [3, 1, 1]
    assert asks(two) == 0 and asks(one) == 29


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9))
def test_the_common_beginning_is_the_longest(one, other):
    size = common(one, other)
    assert one[:size] == other[:size] and (size in (len(one), len(other)) or one[size] != other[size])


# --- what is told of the tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0, 3])
def test_log_probabilities_are_those_of_a_naive_pass(any_engine, top):
    """Also of tokens that a temperature made likelier, and of a first token, before which the end is no choice."""
    request = Request(
        prompt="a sum", max_new_tokens=6, sampling=Sampling(temperature=2.0, seed=4), logprobs=top, expert="code"
    )
    scheduler = Scheduler(any_engine, prefill=2)
    ticket, beside = scheduler.submit(request), scheduler.submit(REQUESTS[0])
    finish(scheduler)
    (made,), (other,) = ticket.generations(), beside.generations()
    assert any_engine.answer([request])[0][0].ids == made.ids and other.logprobs == []
    whole = torch.tensor([[*any_engine.tokenizer.encode("a sum"), *made.ids]])
    with torch.no_grad():
        logits = any_engine.mixture.score(whole, Gates.of(torch.tensor([[0.0, 1.0]])))[0, -len(made.ids) - 1 : -1]
    naive = logits.float().log_softmax(-1)
    for one, id, row in zip(made.logprobs, made.ids, naive, strict=True):
        assert one.id == id and one.logprob == pytest.approx(float(row[id]), abs=1e-5)
        values, places = row.topk(top)
        assert [place for place, _ in one.top] == places.tolist()
        assert [share for _, share in one.top] == pytest.approx(values.tolist(), abs=1e-5)
    (batched,) = any_engine.answer([request])[0]
    assert [one.id for one in batched.logprobs] == made.ids


def test_the_end_of_a_text_is_not_its_beginning_but_keeps_its_probability(monkeypatch):
    class Ending(ByteTokenizer):
        ends = tuple(range(0, 257, 2))

    one = Engine(engine().mixture, Ending())
    scheduler, request = Scheduler(one), Request(prompt="def", max_new_tokens=9, logprobs=257)
    ticket = scheduler.submit(request)
    finish(scheduler)
    (made,) = ticket.generations()
    assert made.ids[0] % 2 == 1 and made.finish == "stop" and [near(made)] == [*map(near, one.answer([request])[0])]
    assert sum(2.718281828**share for _, share in made.logprobs[0].top) == pytest.approx(1, abs=1e-4)


def test_a_number_of_log_probabilities_below_0_is_refused():
    with pytest.raises(RecipeError, match="logprobs: not a number of tokens; expected >= 0; got -1"):
        Request(prompt="x", logprobs=-1)


# --- text as it becomes final -----------------------------------------------------------------------------------------


def spoken(monkeypatch, texts: dict[int, bytes]) -> None:
    """Let a row whose prompt is the single token k write texts[k], then end."""
    read, said = AdapterMixture.read, dict[int, int]()

    def scripted(self, ids, lengths, session):
        logits, after = read(self, ids, lengths, session)
        for row, (slot, length) in enumerate(zip(session.slots, after.cache.lengths.tolist(), strict=True)):
            if length == int(lengths[row]):
                said[slot] = int(ids[row, 0])
            logits[row] = 0.0
            logits[row, [*texts[said[slot]], 256][length - 1]] = 50.0
        return logits, after

    monkeypatch.setattr(AdapterMixture, "read", scripted)


@settings(max_examples=15)
@given(
    texts=st.lists(st.text("aß漢🙂́\n ", min_size=1, max_size=9), min_size=1, max_size=4),
    prefill=st.sampled_from([1, 9]),
)
def test_text_that_is_shown_is_never_taken_back_and_splits_no_character(texts, prefill):
    with pytest.MonkeyPatch.context() as patch:
        spoken(patch, {at: text.encode() for at, text in enumerate(texts)})
        scheduler, shown = Scheduler(engine(), rows=2, prefill=prefill), {}
        tickets = [
            scheduler.submit(Request(prompt=[at], max_new_tokens=50, stop=("🙂漢",))) for at in range(len(texts))
        ]
        while not scheduler.idle:
            for ticket in scheduler.step():
                for row in ticket.rows:
                    assert row.shown.startswith(shown.get(row, "")) and "\ufffd" not in row.shown
                    shown[row] = row.shown
    for ticket, text in zip(tickets, texts, strict=True):
        assert ticket.rows[0].shown == text.partition("🙂漢")[0].removeprefix("\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_may_be_asked(kind):
    """Greedy tokens in float32 too, where the sums of a row depend on the rows beside it in their last digits."""
    torch.set_default_dtype(torch.float32)
    single = Engine(mixture(kind).float(), ByteTokenizer())
    requests = [Request(prompt=LONG[at:], max_new_tokens=12) for at in range(8)]
    scheduler = Scheduler(single, rows=5, prefill=7)
    tickets = [scheduler.submit(request) for request in requests]
    finish(scheduler)
    assert [ticket.rows[0].ids for ticket in tickets] == [single.answer([one])[0][0].ids for one in requests]
