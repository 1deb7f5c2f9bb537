"""Property: a request gets in a batch what it gets alone, whoever leaves meanwhile, without copies."""

from dataclasses import replace

import pytest
import torch
from small_mixtures import KINDS, REQUESTS, alone, mixture, near

from moesaic.generate import Engine
from moesaic.model.readings import Shelves
from moesaic.nn.cache import Slots
from moesaic.testing import ByteTokenizer

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(params=KINDS)
def engine(request) -> Engine:
    return Engine(mixture(request.param), ByteTokenizer())


@pytest.fixture
def linear() -> Engine:
    return Engine(mixture("linear"), ByteTokenizer())


def test_rows_that_differ_in_all_that_a_request_says_get_what_each_gets_alone(engine):
    together = engine.answer(REQUESTS)
    for request, some in zip(REQUESTS, together, strict=True):
        assert [*map(near, some)] == alone(engine, request)
    assert [len(some) for some in together] == [1, 2, 1, 1, 1, 1]


def memory(room: Slots | Shelves) -> list[torch.Tensor]:
    """All keys and values of a batch."""
    every = [room] if isinstance(room, Slots) else [shelf.memory for shelf in room.shelves.values()]
    return [tensor for slots in every for block in slots.blocks for tensor in (*block.keys, *block.values)]


@pytest.mark.parametrize("kind", ["linear", "ffn", "model"])
def test_when_rows_leave_no_key_and_no_value_is_moved(kind, monkeypatch):
    engine, copies = Engine(mixture(kind), ByteTokenizer()), []
    copy = Slots.copy
    monkeypatch.setattr(Slots, "copy", lambda self, *args: copies.append(args) or copy(self, *args))
    encoded = engine.read([replace(one, n=1) for one in REQUESTS[:5]])
    room = engine.mixture.room(encoded.rows, encoded.tokens)
    rows, flight = engine.admit(encoded, room, None)
    flight, _ = flight.write(())
    before = memory(room)
    where, held = [tensor.data_ptr() for tensor in before], [tensor.clone() for tensor in before]
    flight = flight.without([rows[1][0], rows[3][0]])
    assert flight.rows == [rows[0][0], rows[2][0], rows[4][0]] and flight.session.slots == (0, 2, 4)
    assert [tensor.data_ptr() for tensor in memory(room)] == where
    assert all(one.equal(two) for one, two in zip(memory(room), held, strict=True)) and not copies
    flight.rows[0].finish = "stop"
    left = engine.read_on(flight, room)
    assert left.rows == flight.rows[1:] and 0 in room.spare.numbers, "the slot of a row that has finished is free"
    engine.answer([replace(REQUESTS[0], n=3)])
    assert {target for _, target, _ in copies} == {1, 2}, "continuations start with a copy of what was read once"


@pytest.mark.parametrize(("kind", "models"), [("linear", 1), ("model", 2)])
def test_no_more_is_allocated_than_the_rows_and_tokens_that_are_asked(kind, models, monkeypatch):
    engine, made = Engine(mixture(kind), ByteTokenizer()), []
    room = engine.mixture.room
    monkeypatch.setattr(engine.mixture, "room", lambda *size: made.append(room(*size)) or made[-1])
    engine.generate(["add the sum", "def f"], max_new_tokens=6, n=2)
    layers, heads, size, rows, tokens, width = 3, 2, 8, 4, len("add the sum") + 6, 8
    expected = 2 * layers * heads * size * rows * tokens * width
    assert sum(tensor.nbytes for tensor in memory(made.pop())) == models * expected, "both models answer each row"


def test_every_request_has_a_listener_of_its_own(linear):
    heard = []

    def listener(name):
        return lambda asked, prompts, routing, *told: heard.append((name, *asked, prompts.texts, *told))

    linear.answer([replace(REQUESTS[3], listener=listener("a")), replace(REQUESTS[0], listener=listener("b"))])
    assert sorted(heard) == [
        ("a", "a sum of code", ["a sum of code"], True, False),
        ("b", "add the sum", ["add the sum"], False, False),
    ]
