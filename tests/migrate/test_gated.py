"""Does a recipe say what the config of a gated pair says, and is what has no place in it refused by its name?"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import RecipeError
from moesaic.migrate.gated import ELSEWHERE, READ, translated

FILES = {"model1": ["a.jsonl"], "model2": ["b.jsonl", "c.jsonl"]}
PAIR = {"model1_path": "models/one", "model2_path": "models/two"}


def config(folder: Path, **said: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(PAIR | said))
    return path


def recipe(folder: Path, **said: Any) -> dict[str, Any]:
    return translated(config(folder, **said), FILES, FILES).recipe


def test_the_published_config_is_a_recipe(tmp_path: Path) -> None:
    gate = tmp_path / "models" / "gating-network"
    gate.mkdir(parents=True)
    settings = {"hidden_dims": [64, 32], "learning_rate": 2e-4, "dropout": 0.2, "num_epochs": 3, "device": "cuda"}
    info = {"base_model": "qwen2-0.5b", "embedding_dim": 896, "config": settings, "best_val_f1": 1.0}
    (gate / "training_info.json").write_text(json.dumps(info))
    path = config(tmp_path, gating_model_path="models/gating-network", routing_mode="weighted_sum", num_epochs=5)
    found = translated(path, FILES, FILES, "pair")
    one, two = str(tmp_path / "models/one"), str(tmp_path / "models/two")
    train = [str(Path(name).absolute()) for name in ("a.jsonl", "b.jsonl", "c.jsonl")]

    def data(files: list[str]) -> dict[str, Any]:
        return {"train": files, "test": files, "validation": pytest.approx(0.15 / 0.85, abs=1e-6)}

    assert found.recipe == {
        "name": "pair",
        "seed": 42,
        "base": {"path": one},
        "experts": {
            "model1": {"kind": "ffn", "path": one, "data": data(train[:1])},
            "model2": {"kind": "ffn", "path": two, "data": data(train[1:])},
        },
        "router": {
            "kind": "mlp",
            "feature": "embedding_mean",
            "hidden": [64, 32],
            "selection": "soft",
            "mix": "balanced",
            "patience": 0,
            "dropout": 0.2,
            "lr": 2e-4,
            "batch": 32,
            "epochs": 5,  # the config's own word stands above that of the gate's folder
            "weight_decay": 0.01,
        },
        "mixture": {"site": "ffn", "level": "sequence"},
    }
    assert "a pickle, which is never opened" in found.notes[0] and "qwen2-0.5b" in found.notes[1]


def test_its_defaults_are_those_of_its_commands(tmp_path: Path) -> None:
    router = recipe(tmp_path)["router"]
    assert (router["hidden"], router["lr"], router["batch"], router["epochs"]) == ([512, 256], 1e-4, 32, 10)
    assert (router["selection"], router["dropout"], router["weight_decay"]) == ("soft", 0.1, 0.01)
    assert recipe(tmp_path)["name"] == "config"


def test_every_mode_and_split_is_mapped(tmp_path: Path) -> None:
    assert recipe(tmp_path, routing_mode="select_one")["router"]["selection"] == "top_1"
    splits = {"train_split": 0.6, "val_split": 0.2, "test_split": 0.2, "seed": 7, "hidden_dims": " 8, 4"}
    found = recipe(tmp_path, **splits)
    assert found["experts"]["model2"]["data"]["validation"] == 0.25
    assert (found["seed"], found["router"]["hidden"]) == (7, [8, 4])
    assert any("test_split" in note for note in translated(config(tmp_path, **splits), FILES, FILES).notes)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        *(({key: "x"}, f"{key}: not part of a recipe") for key in ELSEWHERE),
        ({"routing_mod": "x"}, "routing_mod: unknown key; did you mean 'routing_mode'"),
        ({"routing_mode": "average"}, "routing_mode: unknown; expected weighted_sum or select_one"),
        ({"batch_size": "32"}, "batch_size: wrong type; expected int"),
        ({"seed": True}, "seed: wrong type"),
        ({"hidden_dims": "512;256"}, "hidden_dims: wrong value"),
        ({"hidden_dims": [0]}, "hidden_dims: wrong value"),
        ({"val_split": 0.3}, "train_split, val_split, test_split: wrong values"),
        ({"gating_model_path": "gate/best_model.pt"}, "gating_model_path: a pickle is never opened"),
        ({"gating_model_path": "gate"}, "gating_model_path: no training_info.json in this folder"),
        ({"model2_path": None}, "model2_path: missing"),
    ],
)
def test_what_has_no_place_is_refused_by_name(tmp_path: Path, said: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, **said)
    assert what in str(caught.value) and "config.json" in str(caught.value)


def test_rows_must_be_named_for_both(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="experts.model2.data.test: missing; give --test model2=FILE"):
        translated(config(tmp_path), FILES, {"model1": ["a"]})
    with pytest.raises(RecipeError, match="did you mean 'model1'"):
        translated(config(tmp_path), FILES | {"modle1": ["a"]}, FILES)
    with pytest.raises(RecipeError, match="no such file"):
        translated(tmp_path / "none.json", FILES, FILES)


def test_no_key_is_read_and_refused_at_once() -> None:
    assert not set(READ) & set(ELSEWHERE)


def test_the_room_is_free_of_torch() -> None:
    script = "import sys, moesaic.migrate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
