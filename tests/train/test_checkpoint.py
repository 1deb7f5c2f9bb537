"""A state taken up again is the state that was saved; the disasters around it are in tests/faults."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moesaic.errors import NonFiniteError, RecipeError
from moesaic.files import read_manifest
from moesaic.sections.training import Train
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.train.checkpoint import Checkpoint, State, differences
from moesaic.train.loop import fit
from moesaic.train.states import TENSORS


class Stop(Exception): ...


def checkpoint(
    folder: Path, inputs: dict | None = None, stop_after: int | None = None, notes: list[str] | None = None
) -> Checkpoint:
    def stopping() -> bool:
        return stop_after is not None and made.log_at.read_bytes().count(b"\n") >= stop_after

    def heed() -> None:
        raise Stop

    given, note = inputs or {"lr": 0.1}, (notes if notes is not None else []).append
    files = folder / "state", folder / "log.jsonl"
    made = Checkpoint(*files, given, 0, "restart", pytest.fail, note, False, stopping, heed)
    return made


def train(keeper: Checkpoint | None, steps: int = 9, noise: float = 1.0) -> tuple[dict, list]:
    """A training whose loss draws at random, and whose validation is worst at its end."""
    torch.manual_seed(0)
    parameters = {"w": nn.Parameter(torch.ones(3)), "idle": nn.Parameter(torch.ones(2))}
    rows: list = []

    def record(row: dict) -> None:
        rows.append((row["step"], row["loss"].hex(), row.get("validation")))
        if keeper:
            keeper.log.append(row)

    def loss(batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        return ((parameters["w"] + noise * torch.randn(3) - batch) ** 2).sum(), 3

    settings = Train(steps=steps, evaluate_every=2, warmup=0.0)
    try:
        trained = fit(
            parameters,
            lambda step: torch.full((3,), float(step)),
            loss,
            lambda: parameters["w"][0].item(),
            settings,
            0.1,
            record,
            seed=3,
            checkpoint=keeper,
        )
    finally:
        if keeper:
            keeper.close()
    return {**trained.state, "best": trained.best, "step": trained.best_step}, rows


@pytest.mark.parametrize("stop_after", range(1, 10))
def test_stopped_after_any_step_it_ends_in_the_same_bits(stop_after, tmp_path):
    whole, curve = train(None)
    assert 0 < whole["step"] < 9, "the best is not the last"
    first = checkpoint(tmp_path, stop_after=stop_after)
    if stop_after < 9:
        with pytest.raises(Stop):
            train(first)
    else:
        train(first)
    torch.rand(stop_after)  # what else is drawn in between does not matter
    notes: list[str] = []
    found, rest = train(checkpoint(tmp_path, notes=notes))
    assert notes == ([f"continues at step {stop_after} of 9"] if stop_after < 9 else [])
    assert [row[:2] for row in rest] == [row[:2] for row in curve[stop_after:]]
    assert found.keys() == whole.keys()
    assert all(torch.equal(torch.as_tensor(found[name]), torch.as_tensor(whole[name])) for name in whole)


def test_a_training_that_continues_another_begins_with_its_parameters_and_moments(tmp_path):
    def fitted(keeper: Checkpoint, steps: int) -> nn.Parameter:
        w = nn.Parameter(torch.ones(3))
        settings = Train(steps=steps, evaluate_every=0, warmup=0.0)

        def loss(batch: torch.Tensor) -> tuple[torch.Tensor, int]:
            return ((w - batch) ** 2).sum(), 3

        def record(row: dict) -> None:
            keeper.log.append(row)

        fit({"w": w}, torch.full((3,), 5.0).mul, loss, lambda: w[0].item(), settings, 0.1, record, checkpoint=keeper)
        keeper.close()
        return w

    origin = tmp_path / "origin.safetensors"
    write_tensors(origin, {"parameters.w": torch.full((3,), 2.0)})
    first = checkpoint(tmp_path / "first")
    first.origin, first.leaves = origin, True
    reached = fitted(first, 3).detach()
    left = read_tensors(first.at / TENSORS)
    assert torch.equal(left["parameters.w"], reached) and left["optimiser.w.step"] == 3
    second = checkpoint(tmp_path / "second")
    second.origin, second.leaves = first.at / TENSORS, True
    third = checkpoint(tmp_path / "third")
    third.origin = origin
    write_tensors(origin, {"parameters.w": reached})
    assert not torch.equal(fitted(second, 1), fitted(third, 1)), "moments count"
    assert read_tensors(second.at / TENSORS)["optimiser.w.step"] == 4
    fitted(alone := checkpoint(tmp_path / "alone"), 1)
    assert set(read_tensors(alone.at / TENSORS)) == {"kept.w"}, "nothing continues this one"


def test_a_decay_that_begins_in_a_stable_training_is_the_training_that_decays_there(tmp_path):
    """One stable training of 6 steps, in two parts; from its step 6 a decay, as if all 10 steps were one training."""

    def fitted(keeper: Checkpoint | None, steps: int, decay: float) -> tuple[Tensor, list]:
        w, rows = nn.Parameter(torch.ones(3)), []

        def loss(batch: Tensor) -> tuple[Tensor, int]:
            return ((w + torch.randn(3) - batch) ** 2).sum(), 3

        def record(row: dict) -> None:
            rows.append((row["step"], row["lr"], row["loss"].hex()))
            if keeper:
                keeper.log.append(row)

        settings = Train(steps=steps, evaluate_every=0, warmup=2 / steps, schedule="wsd", decay=decay)
        fit({"w": w}, torch.full((3,), 5.0).mul, loss, lambda: 0.0, settings, 0.1, record, 3, keeper)
        return w.detach(), rows

    whole, curve = fitted(None, 10, 0.4)
    found: list = []
    parts = [("begun", 4, 0.0, 0), ("stable", 6, 0.0, 4), ("decay", 10, 0.4, 6)]
    origin = None
    for name, steps, decay, first in parts:
        keeper = checkpoint(tmp_path / name)
        keeper.origin, keeper.first, keeper.leaves = origin, first, True
        reached, rows = fitted(keeper, steps, decay)
        keeper.close()
        found += rows
        origin = keeper.at / TENSORS
    assert found == curve and torch.equal(reached, whole)
    assert [row[1] for row in curve[2:]] == pytest.approx([0.1] * 4 + [0.1, 0.075, 0.05, 0.025])


def drawn(steps: int, seed: int) -> list[float]:
    """What the steps of a training draw at random."""
    found: list[float] = []

    def loss(batch: int) -> tuple[torch.Tensor, int]:
        found.append(torch.rand(1).item())
        return parameters["w"].sum(), 1

    parameters = {"w": nn.Parameter(torch.ones(1))}
    fit(parameters, lambda i: i, loss, lambda: 0.0, Train(steps=steps), 0.1, lambda row: None, seed)
    return found


def test_the_randomness_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    drawn(2, seed=0)
    assert torch.rand(1) == expected


def test_every_step_of_every_seed_draws_anew_and_always_the_same():
    assert len({*drawn(3, seed=0), *drawn(3, seed=1)}) == 6
    torch.rand(7)
    assert drawn(3, seed=0) == drawn(3, seed=0)


def test_what_is_not_finite_is_never_saved(tmp_path):
    keeper = checkpoint(tmp_path)
    parameter = nn.Parameter(torch.ones(2))
    optimiser = torch.optim.AdamW([parameter])
    state = keeper.begin({"w": parameter}, optimiser, 9)
    state.step, state.kept = 4, {"w": torch.tensor([1.0, math.inf])}
    with pytest.raises(NonFiniteError, match=r"cannot save kept\.w after step 4"):
        keeper.save(state, {"w": parameter}, optimiser, done=False)
    keeper.close()
    assert not (tmp_path / "state").exists()


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    clock, saves = [0.0], []
    keeper = checkpoint(tmp_path)
    keeper.every = keeper.pause = 30.0
    parameter = nn.Parameter(torch.ones(2))
    optimiser = torch.optim.AdamW([parameter])
    state = keeper.begin({"w": parameter}, optimiser, 9)
    keeper.saved = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def save(*_: object) -> None:
        saves.append(clock[0])
        clock[0] += 4.0

    monkeypatch.setattr(keeper, "save", save)
    while len(saves) < 3:
        keeper.after(state, {"w": parameter}, optimiser, False)
        clock[0] += 1.0
    keeper.close()
    assert saves[0] == 30.0 and 80 <= saves[1] - saves[0] - 4 <= 81 and 80 <= saves[2] - saves[1] - 4 <= 81


def test_a_finished_state_holds_the_best_alone(tmp_path):
    train(checkpoint(tmp_path))
    manifest = read_manifest(tmp_path / "state")
    assert manifest["done"] and manifest["state"]["step"] == 9
    assert (tmp_path / "state/state.safetensors").stat().st_size < 400


def test_other_settings_are_named_all_of_them(tmp_path):
    with pytest.raises(Stop):
        train(checkpoint(tmp_path, {"lr": 0.1, "train": {"steps": 9, "rates": [1, 2]}}, stop_after=3))
    with pytest.raises(RecipeError) as caught:
        train(checkpoint(tmp_path, {"lr": 0.1, "train": {"steps": 8, "rates": [1]}, "more": True}))
    error = caught.value
    assert (error.field, error.what) == ("train.steps", "this training was started with 9 and is now given 8")
    assert error.hint is not None and error.hint.startswith("go back to 9 to continue it, or ")
    assert "restart; also changed: train.rates[1], more" in str(error)


def test_differences_are_places_with_both_values():
    assert list(differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": None})) == [("a[1].b", "2", "3")]
    assert list(differences([1], [1, 2], "x")) == [("x[1]", "None", "2")]


def test_a_state_begins_with_nothing():
    assert State() == State(0, math.inf, 0, 0, 0.0, {})
