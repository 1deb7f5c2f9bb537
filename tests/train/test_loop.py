"""Does the one loop do what AdamW, its schedule, clipping and accumulation say, keep the best and stop in time?"""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from moesaic.errors import NonFiniteError
from moesaic.sections.training import Train
from moesaic.train.checkpoint import GROWTH, State
from moesaic.train.loop import SCALE, Trained, factor, fit

F64 = torch.float64


def train(**settings) -> Train:
    return Train(**{"steps": 6, "evaluate_every": 1, **settings})


class Regression:
    """Three weights and an offset, fitted to rows of random numbers; batch i is rows of its own."""

    def __init__(self, rows: int = 64):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(rows, 3, generator=generator, dtype=F64)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5], dtype=F64) + 4.0
        self.parameters = {
            "weight": nn.Parameter(torch.zeros(3, dtype=F64)),
            "offset": nn.Parameter(torch.ones(1, dtype=F64)),
        }

    def loss(self, rows: slice) -> tuple[torch.Tensor, int]:
        errors = self.x[rows] @ self.parameters["weight"] + self.parameters["offset"] - self.y[rows]
        return errors.square().sum(), len(errors)

    def fit(self, settings: Train, batch, lr: float = 0.1, validations=None, record=None) -> Trained:
        scripted = iter(validations or range(settings.steps, 0, -1))
        rows = [] if record is None else record
        return fit(self.parameters, batch, self.loss, lambda: float(next(scripted)), settings, lr, rows.append)


def four(step: int) -> slice:
    return slice(4 * step, 4 * step + 4)


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_in_a_line_then_falls_along_half_a_cosine():
    settings = train(steps=100, warmup=0.1)
    rates = [factor(step, settings) for step in range(101)]
    assert rates[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    for step in range(10, 101):
        assert rates[step] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * (step - 10) / 90), abs=1e-12)
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates[:100])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (7, 0.0), (7, 1.0), (3, 0.5)])
def test_the_learning_rate_is_a_share_at_every_step_of_short_runs(steps, warmup):
    rates = [factor(step, train(steps=steps, warmup=warmup)) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    if warmup == 0:
        assert rates[0] == 1.0
    if warmup == 1:
        assert rates == pytest.approx([(step + 1) / (steps + 1) for step in range(steps)])


def test_warm_up_stable_decay_is_constant_until_its_line_to_0():
    settings = train(steps=100, warmup=0.1, schedule="wsd", decay=0.3)
    rates = [factor(step, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10:71] == [1.0] * 61
    assert rates[70:] == pytest.approx([(100 - step) / 30 for step in range(70, 101)])
    stable = train(steps=100, warmup=0.1, schedule="wsd", decay=0.0)
    assert [factor(step, stable) for step in range(10, 100)] == [1.0] * 90


def test_a_schedule_that_is_not_given_is_no_part_of_what_a_run_is_known_by():
    assert not {"schedule", "decay"} & train().model_dump().keys()
    assert train(schedule="wsd").model_dump()["decay"] == 0.2
    with pytest.raises(ValidationError, match="it goes with schedule: wsd"):
        train(decay=0.1)


# --- a step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_equals_adamw_written_out(accumulate):
    """Number by number: mean gradient over the step's rows, clipped as a whole, decoupled decay, bias correction."""
    settings = train(steps=5, warmup=0.4, weight_decay=0.3, clip=2.5, accumulate=accumulate)
    task, rows = Regression(), []
    task.fit(settings, four, record=rows)

    p, m, v = [0.0, 0.0, 0.0, 1.0], [0.0] * 4, [0.0] * 4
    clipped = 0
    for step in range(5):
        start, stop = 4 * step * accumulate, 4 * (step + 1) * accumulate
        grad, losses = [0.0] * 4, []
        for x, y in zip(task.x[start:stop].tolist(), task.y[start:stop].tolist(), strict=True):
            error = sum(w * value for w, value in zip(p, [*x, 1.0], strict=True)) - y
            losses.append(error * error)
            grad = [g + 2 * error * value for g, value in zip(grad, [*x, 1.0], strict=True)]
        grad = [g / len(losses) for g in grad]
        norm = math.sqrt(sum(g * g for g in grad))
        clipped += norm > 2.5
        grad = [g * min(1.0, 2.5 / norm) for g in grad]
        lr = 0.1 * ((step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 3)))
        assert rows[step]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert rows[step]["norm"] == pytest.approx(norm, rel=1e-5) and rows[step]["lr"] == pytest.approx(lr)
        assert rows[step]["step"] == step + 1
        for i in range(4):
            m[i] = 0.9 * m[i] + 0.1 * grad[i]
            v[i] = 0.95 * v[i] + 0.05 * grad[i] ** 2
            mean, square = m[i] / (1 - 0.9 ** (step + 1)), v[i] / (1 - 0.95 ** (step + 1))
            p[i] = p[i] * (1 - lr * 0.3) - lr * mean / (math.sqrt(square) + 1e-8)
    assert clipped == 5, "clipping matters here"
    found = [*task.parameters["weight"].tolist(), *task.parameters["offset"].tolist()]
    assert found == pytest.approx(p, rel=1e-5)


def test_four_micro_batches_of_unequal_size_equal_one_batch_of_all_rows():
    """The mean is over rows, not over batches."""
    sizes, ends = [1, 7, 2, 6], [1, 8, 10, 16]

    def pieces(micro: int) -> slice:
        step, piece = divmod(micro, 4)
        return slice(16 * step + ends[piece] - sizes[piece], 16 * step + ends[piece])

    one, four_pieces = Regression(), Regression()
    one.fit(train(steps=4, clip=1e9), lambda step: slice(16 * step, 16 * step + 16))
    four_pieces.fit(train(steps=4, clip=1e9, accumulate=4), pieces)
    for name, parameter in one.parameters.items():
        torch.testing.assert_close(four_pieces.parameters[name], parameter, rtol=1e-6, atol=1e-6)
        assert parameter.grad is None, "nothing is left behind"


def test_training_again_gives_the_same_bits_and_learns():
    settings = train(steps=16, evaluate_every=0, warmup=0.0)
    found = []
    for _ in range(2):
        task, rows = Regression(), []
        found.append(task.fit(settings, four, lr=1.0, record=rows).state)
        assert rows[-1]["loss"] < rows[0]["loss"] / 3
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


def test_parameters_that_a_batch_does_not_reach_stay():
    task = Regression()
    task.parameters["idle"] = nn.Parameter(torch.full((2,), 3.0, dtype=F64))
    task.fit(train(steps=2), four)
    assert task.parameters["idle"].tolist() == [3.0, 3.0]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_best_state_is_kept_not_the_last():
    task, states = Regression(), []
    scores = iter([3.0, 1.0, 2.0, 1.0, 5.0])

    def validate() -> float:
        states.append({name: p.detach().clone() for name, p in task.parameters.items()})
        return next(scores)

    trained = fit(task.parameters, four, task.loss, validate, train(steps=5), 0.1, lambda row: None)
    assert (trained.best, trained.best_step, trained.steps) == (1.0, 2, 5)
    assert all(trained.state[name].equal(states[1][name]) for name in states[1]), "the first of equals"
    assert not task.parameters["weight"].equal(trained.state["weight"]), "a copy, which later steps do not touch"


def test_training_stops_after_as_many_misses_as_it_has_patience():
    task, rows = Regression(), []
    trained = task.fit(train(steps=9, patience=2), four, validations=[5, 4, 6, 3, 3, 3, 1], record=rows)
    assert (trained.best, trained.best_step, trained.steps) == (3.0, 4, 6)
    assert [row["validation"] for row in rows] == [5, 4, 6, 3, 3, 3]
    trained = Regression().fit(train(steps=7, patience=0), four, validations=[1, 2, 2, 2, 2, 2, 2])
    assert (trained.best_step, trained.steps) == (1, 7)


@pytest.mark.parametrize(("every", "at"), [(3, [3, 6, 8]), (0, [8]), (8, [8]), (100, [8])])
def test_validation_comes_every_so_often_and_after_the_last_step(every, at):
    rows = []
    Regression().fit(train(steps=8, evaluate_every=every), four, record=rows)
    assert [row["step"] for row in rows if "validation" in row] == at
    assert [row["step"] for row in rows] == list(range(1, 9))


# --- NaN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_nothing_of_its_step(value, accumulate):
    task, rows, before = Regression(), [], {}

    def loss(batch: slice) -> tuple[torch.Tensor, int]:
        summed, count = task.loss(batch)
        if len(rows) == 2:
            before.update({name: p.detach().clone() for name, p in task.parameters.items()})
            summed = summed * value
        return summed, count

    settings = train(accumulate=accumulate)
    with pytest.raises(NonFiniteError, match=rf"loss of step 3 is {value}.*lower lr \(now 0\.1\)"):
        fit(task.parameters, four, loss, lambda: 1.0, settings, 0.1, rows.append)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(p.equal(before[name]) for name, p in task.parameters.items())


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_training_too():
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(NonFiniteError, match=r"step 1 is 0\.0, the gradient's norm (nan|inf)"):
        fit({"p": parameter}, four, lambda batch: (parameter.sum().sqrt(), 1), lambda: 1.0, train(), 0.1, print)
    assert parameter.tolist() == [0, 0]


def test_a_validation_that_is_not_finite_stops_training_before_it_is_logged():
    with pytest.raises(NonFiniteError, match="the validation of step 1 is nan"):
        Regression().fit(train(steps=2), four, validations=[math.nan, math.inf])


def halved(overflowing: set[float]) -> tuple[list[dict], dict[str, nn.Parameter]]:
    """Six steps whose gradients overflow while the scale is one of these."""
    task, rows = Regression(), list[dict]()

    def loss(batch: slice) -> tuple[torch.Tensor, int]:
        summed, count = task.loss(batch)
        summed.register_hook(lambda grad: grad * math.inf if grad.item() in overflowing else grad)
        return summed, count

    arguments = task.parameters, lambda i: slice(0, 64), loss, lambda: 1.0, train(), 0.1, rows.append
    fit(*arguments, scaled=True)
    return rows, task.parameters


def test_a_scaled_loss_gives_the_steps_of_one_that_is_not():
    """A scale is a power of 2, so nothing is rounded."""
    rows, parameters = halved(set())
    plain = Regression()
    plain.fit(train(), lambda i: slice(0, 64), record=(told := []))
    assert all(parameters[name].equal(one) for name, one in plain.parameters.items())
    assert [row["scale"] for row in rows] == [SCALE] * 6 and "scale" not in told[0]
    assert [row["norm"] for row in rows] == [row["norm"] for row in told]


def test_a_step_that_overflows_changes_nothing_and_halves_the_scale():
    rows, parameters = halved({SCALE, SCALE / 2})
    assert [row["scale"] for row in rows] == [SCALE, SCALE / 2, *[SCALE / 4] * 4]
    assert ["norm" in row for row in rows] == [False, False, *[True] * 4]
    assert rows[0]["loss"] == rows[1]["loss"] == rows[2]["loss"] > rows[3]["loss"]
    assert all(one.isfinite().all() for one in parameters.values())


def test_a_gradient_that_overflows_at_any_scale_stops_the_training():
    with pytest.raises(NonFiniteError, match="the gradient's norm"):
        task = Regression()

        def loss(batch: slice) -> tuple[torch.Tensor, int]:
            summed, count = task.loss(batch)
            summed.register_hook(lambda grad: grad * math.inf)
            return summed, count

        settings = train(steps=60)
        arguments = task.parameters, lambda i: slice(0, 64), loss, lambda: 1.0, settings, 0.1, lambda row: None
        fit(*arguments, scaled=True)


def test_after_many_steps_without_an_overflow_the_scale_is_doubled():
    state = State(scale=8.0)
    for _ in range(GROWTH):
        assert state.scale == 8.0
        state.rescale(False)
    assert (state.scale, state.fine) == (16.0, 0)
    state.rescale(True)
    assert (state.scale, state.fine) == (8.0, 0)
