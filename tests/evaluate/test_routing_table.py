"""Is the table of routers made of the scores it was given, and does its sentence say no more than its intervals?"""

import numpy as np
import pytest

from moesaic.evaluate.routing_table import Arm, compared, sentence, table
from moesaic.evaluate.statistics import ALL, UNSEEN, Scores

DOMAINS = ["math"] * 30 + ["code"] * 30 + [UNSEEN] * 30


def scores(math: float, code: float, unseen: float, noise: float = 0.0) -> Scores:
    means = np.repeat([math, code, unseen], 30) + noise * np.tile([1.0, -1.0], 45)
    return Scores(means * 10, np.full(90, 10.0), DOMAINS, [str(row) for row in range(90)])


ARMS = {
    "base": Arm("", "dense", ""),
    "linear": Arm("ffn", "sequence", "linear", 1),
    "gates": Arm("ffn", "token", "ridge", 2, "loss", 1234, 99.0, 5600, 0.5),
    "oracle": Arm("ffn", "oracle", "per token"),
}
SCORES = {
    "base": scores(3.0, 3.0, 3.0),
    "linear": scores(2.5, 2.7, 3.1),
    "gates": scores(2.4, 2.6, 3.2),
    "oracle": scores(2.0, 2.0, 2.0),
}


def test_every_figure_is_that_of_its_scores():
    arms = compared(ARMS, SCORES, 0)["arms"]
    assert arms["gates"]["nats"] == pytest.approx({ALL: 2.5, "math": 2.4, "code": 2.6, UNSEEN: 3.2})
    assert arms["gates"]["to_base"]["math"] == pytest.approx([-0.6] * 3)
    assert [arms[name]["weakest"] for name in ("linear", "gates")] == [UNSEEN, UNSEEN]
    assert (arms["gates"]["active"], arms["gates"]["tokens"], arms["gates"]["least_load"]) == (1234, 5600, 0.5)


def test_the_winner_needs_no_hindsight_and_beats_whom_its_interval_says():
    figures = compared(ARMS, SCORES, 0)
    assert figures["verdict"]["winner"] == "gates"
    assert figures["verdict"]["best"] == {"dense": "base", "sequence": "linear", "token": "gates"}
    text = sentence(figures)
    assert "beats linear, by -0.100" in text and "trained on 5,600 tokens" in text
    assert "On unseen text it differs from the base by +0.200 (+0.200 to +0.200)" in text


def test_an_interval_around_0_is_a_tie():
    close = SCORES | {"gates": scores(2.49, 2.69, 3.2, noise=0.5)}
    assert "ties with linear" in sentence(compared(ARMS, close, 0))


def test_the_table_has_a_line_for_each_arm_best_first():
    lines = table(compared(ARMS, SCORES, 0)).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["oracle", "gates", "linear", "base"]
    assert len({line.count("|") for line in lines}) == 1
    assert "| unseen +0.200 |" in lines[3]
