"""Does a mixture whose layers route every token answer the same however its tokens are read?"""

import pytest
import torch
from small_mixtures import gated

from moesaic.model.features import Prompts
from moesaic.model.mixture import Session
from moesaic.model.token import TokenMixture
from moesaic.routing import Gates, Routing
from moesaic.testing import prefilled, tiny_decoder, toy_ffn

pytestmark = pytest.mark.usefixtures("double")

TEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]


@pytest.fixture
def mixture() -> TokenMixture:
    base = tiny_decoder()
    return gated(base, [toy_ffn(base, 1), toy_ffn(base, 2)], 1)


def prompts() -> Prompts:
    return Prompts.pad(TEXTS, ["", ""])


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_with_a_cache_every_step_is_that_of_the_whole_text(mixture):
    logits, session = prefilled(mixture, prompts(), 4)
    texts = [[*text] for text in TEXTS]
    for _ in range(4):
        new = logits.argmax(-1)
        for text, one, found in zip(texts, new.tolist(), logits, strict=True):
            close(found, mixture.score(torch.tensor([text]))[0, -1])
            text.append(one)
        logits, session = mixture.decode(new, session)


def test_the_decision_about_a_prompt_is_the_share_of_each_expert_in_its_own_tokens(mixture):
    found = mixture.route(prompts())
    for index, text in enumerate(TEXTS):
        routings = mixture.decoder(torch.tensor([text])).routings
        shares = torch.stack([one.weights for one in routings]).mean((0, 1))
        close(found.weights[index], shares)
    _, session = prefilled(mixture, prompts(), 1)
    close(session.routing.weights, found.weights)
    close(found.probabilities[:, :-1], found.weights)
    assert not found.probabilities[:, -1].any()


def test_a_named_expert_answers_beside_rows_that_are_routed(mixture):
    named = Routing(*(torch.tensor([[0.0, 1.0]]) for _ in range(2)))
    room = mixture.room(3, 10)
    slots = room.spare.take(3)
    one = mixture.prefill(Prompts.pad([TEXTS[0]], [""]), room, slots[:1], named)
    two = mixture.prefill(prompts(), room, slots[1:])
    joined = Session.join([one[1], two[1]])
    new = torch.tensor([1, 2, 3])
    found, _ = mixture.decode(new, joined)
    alone = Gates.one(1, 1, 2, torch.zeros(1))
    close(found[0], mixture.score(torch.tensor([[*TEXTS[0], 1]]), alone)[0, -1])
    for index, text in enumerate(TEXTS):
        close(found[1 + index], mixture.score(torch.tensor([[*text, int(new[1 + index])]]))[0, -1])
