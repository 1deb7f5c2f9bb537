"""Rows in flight: they write tokens, read them, leave and join. The engine and the scheduler step by these calls.

Knows nothing about who owns the memory of the rows, nor about requests that wait.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moesaic.generate.row import Row
from moesaic.generate.sample import Logprob, choose, logprobs
from moesaic.model.mixture import Routed, Session
from moesaic.ops.host import to_device, to_host


class Flight(NamedTuple):
    """Rows in flight, and for each the logits of the next token, or a chosen token that is not read yet."""

    rows: list[Row]
    following: Tensor
    session: Session[Any]

    @torch.inference_mode()
    def write(self, ends: Sequence[int]) -> tuple["Flight", list[Row]]:
        """Choose the next token of each row by its logits, and add it to the row; a text never begins with its end.

        Reading these tokens is where a step waits for the device. Rows whose logits are not finite write nothing; they
        come second, and the caller takes them out.
        """
        rows, logits, session = self
        allowed = logits
        if new := [place for place, row in enumerate(rows) if not row.ids]:
            allowed = logits.clone()
            at, last = (to_device(some, logits.device) for some in (new, ends))
            allowed[at[:, None], last] = float("-inf")
        ids = choose(allowed, [row.request.sampling for row in rows], [row.generator for row in rows])
        chosen: list[int] = to_host(ids)
        written = {place: id for place, id in enumerate(chosen) if id >= 0}
        tops = {place: top for place in written if (top := rows[place].request.logprobs) is not None}
        scored = dict[int, Logprob]()
        if tops:
            own = logits.index_select(0, to_device([*tops], logits.device))
            scored |= zip(tops, logprobs(own, [written[place] for place in tops], [*tops.values()]), strict=True)
        for place, id in written.items():
            rows[place].add(id, scored.get(place))
        return Flight(rows, ids, session), [row for place, row in enumerate(rows) if place not in written]

    @torch.inference_mode()
    def read(self, mixture: Routed) -> "Flight":
        """Read the chosen tokens: the rows with the logits of the next."""
        return Flight(self.rows, *mixture.decode(self.following, self.session))

    def select(self, places: Sequence[int]) -> "Flight":
        kept = to_device(places, self.following.device)
        return Flight([self.rows[place] for place in places], self.following[kept], self.session.select(places))

    def without(self, rows: Collection[Row]) -> "Flight | None":
        """The other rows, if any."""
        left = [place for place, row in enumerate(self.rows) if row not in rows]
        return self if len(left) == len(self.rows) else self.select(left) if left else None

    @staticmethod
    def join(flights: Sequence["Flight"], place_of: Callable[[int], int] = int) -> "Flight":
        """All rows in the order of their memory, so that neighbours are computed in one piece.

        `place_of`: where a slot lies; by default, slots lie in the order of their numbers.
        """
        if len(flights) == 1:
            return flights[0]
        session = Session.join([flight.session for flight in flights])
        rows = [row for flight in flights for row in flight.rows]
        joined = Flight(rows, torch.cat([flight.following for flight in flights]), session)
        order = sorted(range(len(rows)), key=lambda place: place_of(session.slots[place]))
        return joined if order == [*range(len(rows))] else joined.select(order)
