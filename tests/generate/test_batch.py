"""Property: a request gets in a batch what it gets alone, whoever is admitted and leaves meanwhile, without copies."""

from dataclasses import replace

import pytest
import torch
from small_mixtures import KINDS, REQUESTS, alone, mixture, near

from moesaic.errors import MemoryLimitError, RecipeError
from moesaic.generate import Engine, Request
from moesaic.generate.engine import Batch
from moesaic.generate.row import Row
from moesaic.model.mixture import AdapterMixture
from moesaic.nn.cache import Slots
from moesaic.testing import ByteTokenizer


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=KINDS)
def engine(request) -> Engine:
    return Engine(mixture(request.param), ByteTokenizer())


@pytest.fixture
def linear() -> Engine:
    return Engine(mixture("linear"), ByteTokenizer())


def finish(batch: Batch) -> None:
    while batch.rows:
        batch.step()


def test_rows_that_differ_in_all_that_a_request_says_get_what_each_gets_alone(engine):
    together = engine.answer(REQUESTS)
    for request, some in zip(REQUESTS, together, strict=True):
        assert [*map(near, some)] == alone(engine, request)
    assert [len(some) for some in together] == [1, 2, 1, 1, 1, 1]


def test_a_request_that_is_admitted_while_others_run_gets_what_it_gets_alone(engine):
    expected = [alone(engine, request) for request in REQUESTS]
    with engine.batch(rows=8, tokens=32) as batch:
        found = batch.admit(REQUESTS[:2])
        batch.step()
        batch.step()
        found += batch.admit(REQUESTS[2:4])
        found += batch.admit(REQUESTS[4:5])
        for _ in range(3):
            batch.step()
        found += batch.admit(REQUESTS[5:])
        finish(batch)
    assert [[near(row.generation()) for row in some] for some in found] == expected


def test_the_logits_of_a_row_that_comes_later_are_those_of_the_row_alone(engine):
    def logits(batch: Batch, wanted: Row) -> torch.Tensor:
        flight = batch.read_on(batch.running)
        return flight.following[flight.rows.index(wanted)]

    late = REQUESTS[3]
    with engine.batch(8, 32) as batch, engine.batch(1, 20) as single:
        batch.admit(REQUESTS[:3])
        batch.step()
        ((row,),) = batch.admit([late])
        ((only,),) = single.admit([late])
        for _ in range(4):
            batch.step()
            single.step()
            with torch.inference_mode():
                torch.testing.assert_close(logits(batch, row), logits(single, only), rtol=1e-10, atol=1e-10)


def test_more_requests_than_slots_are_answered_in_the_slots_of_those_that_have_finished(engine):
    waiting, found, most = [replace(one, n=1) for one in REQUESTS], {}, 0
    expected = [alone(engine, request) for request in waiting]
    with engine.batch(rows=2, tokens=32) as batch:
        for _ in range(sum(request.max_new_tokens for request in waiting)):
            while batch.free and len(found) < len(waiting):
                ((row,),) = batch.admit([waiting[len(found)]])
                found[len(found)] = row
            most = max(most, len(batch.rows))
            batch.step()
        assert batch.free == 2
    assert most == 2 and [[near(found[place].generation())] for place in range(len(waiting))] == expected


def memory(batch: Batch) -> list[tuple[int, int]]:
    """Where all keys and values of a batch lie, and how many bytes they have."""
    room = batch.room
    every = [room] if isinstance(room, Slots) else [shelf.memory for shelf in room.shelves.values()]
    tensors = [t for slots in every for block in slots.blocks for t in (*block.keys, *block.values)]
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


@pytest.mark.parametrize("kind", ["linear", "ffn", "model"])
def test_when_rows_leave_or_come_no_key_and_no_value_is_moved(kind, monkeypatch):
    engine, copies = Engine(mixture(kind), ByteTokenizer()), []
    copy = Slots.copy
    monkeypatch.setattr(Slots, "copy", lambda self, *args: copies.append(args) or copy(self, *args))
    with engine.batch(rows=5, tokens=32) as batch:
        rows = [row for some in batch.admit([replace(one, n=1) for one in REQUESTS[:5]]) for row in some]
        batch.step()
        before, held = memory(batch), contents(batch)
        batch.release([rows[1], rows[3]])
        assert memory(batch) == before and all(one.equal(two) for one, two in zip(contents(batch), held, strict=True))
        assert batch.free == 2 and batch.rows == [rows[0], rows[2], rows[4]]
        ((late,),) = batch.admit([REQUESTS[5]])
        batch.step()
        assert late.ids and set(memory(batch)) >= set(before)
        finish(batch)
    assert not copies
    with engine.batch(rows=3, tokens=32) as batch:
        batch.admit([replace(REQUESTS[0], n=3)])
        assert {target for _, target, _ in copies} == {1, 2}, "continuations start with a copy of what was read once"


def contents(batch: Batch) -> list[torch.Tensor]:
    room = batch.room
    every = [room] if isinstance(room, Slots) else [shelf.memory for shelf in room.shelves.values()]
    return [t.clone() for slots in every for block in slots.blocks for t in (*block.keys, *block.values)]


def test_no_more_is_allocated_than_the_rows_and_tokens_that_are_asked(monkeypatch):
    made, init = [], Batch.__init__
    monkeypatch.setattr(Batch, "__init__", lambda self, *args: init(self, *args) or made.append(self))
    for kind, models in (("linear", 1), ("model", 2)):
        engine = Engine(mixture(kind), ByteTokenizer())
        engine.generate(["add the sum", "def f"], max_new_tokens=6, n=2)
        layers, heads, size, rows, tokens, width = 3, 2, 8, 4, len("add the sum") + 6, 8
        expected = 2 * layers * heads * size * rows * tokens * width
        assert sum(size for _, size in memory(made.pop())) == models * expected, "both models answer each row"


def test_a_row_that_is_released_writes_nothing_more_and_its_slot_is_the_next_ones(linear):
    with linear.batch(rows=1, tokens=32) as batch:
        ((first,),) = batch.admit([REQUESTS[0]])
        batch.release([first])
        assert first.ids == [] and batch.free == 1 and batch.step() == []
        ((second,),) = batch.admit([REQUESTS[3]])
        batch.step()
        assert batch.running.session.slots == (0,)
        batch.release([second])
        batch.release([second])
        assert len(second.ids) == 1 and batch.free == 1 and batch.rows == []


def test_a_step_returns_the_rows_that_it_finished(linear):
    with linear.batch(rows=2, tokens=32) as batch:
        (one,), (two,) = batch.admit([Request(prompt="one", max_new_tokens=1), Request(prompt="two", max_new_tokens=2)])
        assert batch.step() == [one] and batch.free == 1
        assert batch.step() == [two] and batch.free == 2 and batch.step() == []


def test_a_request_that_has_no_room_is_refused_and_changes_nothing(linear, monkeypatch):
    with linear.batch(rows=2, tokens=20) as batch:
        batch.admit([REQUESTS[3]])
        with pytest.raises(MemoryLimitError, match="the batch is full; expected at most 1 more rows; got 2"):
            batch.admit([REQUESTS[1]])
        with pytest.raises(MemoryLimitError, match="exceed the batch's slots; expected at most 20 tokens; got 28"):
            batch.admit([REQUESTS[2]])
        with pytest.raises(RecipeError, match="no such expert"):
            batch.admit([replace(REQUESTS[0], expert="nobody")])
        assert batch.free == 1 and len(batch.rows) == 1
        monkeypatch.setattr(AdapterMixture, "prefill", None)
        with pytest.raises(TypeError):
            batch.admit([Request(prompt="x", max_new_tokens=1)])
        assert batch.free == 1


def test_every_request_has_a_listener_of_its_own(linear):
    heard = []

    def listener(name):
        return lambda asked, prompts, routing, *told: heard.append((name, *asked, prompts.texts, *told))

    linear.answer([replace(REQUESTS[3], listener=listener("a")), replace(REQUESTS[0], listener=listener("b"))])
    assert sorted(heard) == [
        ("a", "a sum of code", ["a sum of code"], True, False),
        ("b", "add the sum", ["add the sum"], False, False),
    ]
