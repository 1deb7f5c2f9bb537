"""Are scores those of all logits, and does the head compute no more than what is scored?"""

from collections.abc import Iterator

import pytest
import torch

from moesaic.adapters import attach
from moesaic.config import Feature
from moesaic.data.batches import Tokens, pad
from moesaic.evaluate.score import Logits, score
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.ops.losses import UNSCORED, token_nll
from moesaic.routing import Gates, Selection
from moesaic.testing import FunctionRouter, tiny_decoder, toy_expert

ROWS = {
    "one": [Tokens([5, 17, 3, 8, 60, 2], 4, "a"), Tokens([9, 4], 1, "b")],
    "two": [Tokens([4, 4, *range(1, 30), 9], 31, "c"), Tokens([1, 2, 3, 7, 7], 2, "d"), Tokens([1, 2, 3], 2, "e")],
}
SCORED = sum(len(row.ids) - row.prompt for rows in ROWS.values() for row in rows)
WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25], [0.0, 0.0], [0.25, 0.75]])


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of states in every pass through a head."""
    found, head = [], Decoder.head

    def counted(self, x, gates):
        found.append(x.shape[0] * x.shape[1])
        return head(self, x, gates)

    monkeypatch.setattr(Decoder, "head", counted)
    return found


def adapted() -> AdapterMixture:
    decoder = tiny_decoder(0)
    attach(decoder, [toy_expert(decoder, 1), toy_expert(decoder, 2)])
    return AdapterMixture(decoder, decider(decoder), 0)


def decider(base: Decoder) -> Decider:
    router = FunctionRouter(lambda states: states[:, :2] * 9)
    return Decider.over(base, ("a", "b"), router, Feature.parse("hidden_mean"), Selection(kind="soft"))


def whole(level: str = "sequence", combine: str = "mixture") -> ModelMixture:
    base = tiny_decoder(0)
    return ModelMixture(base, [tiny_decoder(1), tiny_decoder(2)], decider(base), level, combine)


MODELS = {
    "experts beside linears": (lambda: adapted().score, WEIGHTS),
    "whole models, mixed": (lambda: whole().score, WEIGHTS),
    "whole models, multiplied": (lambda: whole(combine="product").score, WEIGHTS),
    "whole models, token by token": (lambda: whole("token").score, None),
    "a base": (lambda: tiny_decoder(0).score, None),
}


def nats_of_all(logits: Logits, weights: torch.Tensor | None) -> list[float]:
    """The nats of each row by itself, from the logits of all positions."""
    found = []
    for at, row in enumerate(row for rows in ROWS.values() for row in rows):
        batch, gates = pad([row]), None if weights is None else Gates.of(weights[at : at + 1])
        found.append(token_nll(logits(batch.ids, gates, None), batch.targets).sum().item())
    return found


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_logits_of_all_positions(name: str, batch: int) -> None:
    make, weights = MODELS[name]
    found = score(make(), ROWS, weights, batch)
    assert found.nats.tolist() == pytest.approx(nats_of_all(make(), weights), abs=1e-6)
    assert found.tokens.sum() == SCORED


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", ["experts beside linears", "a base"])
def test_a_head_computes_the_scored_positions_alone(name: str, batch: int, seen: list[int]) -> None:
    make, weights = MODELS[name]
    score(make(), ROWS, weights, batch)
    assert sum(seen) == SCORED


def test_a_head_of_a_whole_model_computes_the_scored_positions_of_the_rows_that_ask_it(seen: list[int]) -> None:
    score(whole().score, ROWS, WEIGHTS, 2)
    asked = [row for rows in ROWS.values() for row in rows]
    shares = torch.cat([WEIGHTS, 1 - WEIGHTS.sum(1, keepdim=True)], 1)
    lengths = torch.tensor([len(row.ids) - row.prompt for row in asked])
    assert sum(seen) == ((shares != 0).sum(1) * lengths).sum()


def test_what_is_not_scored_is_marked_so_in_a_batch() -> None:
    rows = [row for some in ROWS.values() for row in some]
    assert (pad(rows).targets != UNSCORED).sum() == SCORED
