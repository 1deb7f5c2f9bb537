"""Translates the config of a gate between two fine-tuned models' feed-forward blocks (cs259-llm) into a recipe.

Reads the JSON files for training and for inference, with the defaults of that system's commands; refuses keys without
a meaning in a recipe. Knows nothing about weights: the pickle with a trained gate is never opened.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import RecipeError, WeightsError, nearest
from moesaic.files import read_json
from moesaic.sections.document import dump

EXPERTS = ("model1", "model2")
"""Names of the two models, as in the output of that system: `model1_prob` is the weight of `model1`."""

SELECTION = {"weighted_sum": "soft", "select_one": "top_1"}
NUMBER = (int, float)
TRAINING: dict[str, tuple[str, tuple[type, ...], Any]] = {
    "dropout": ("dropout", NUMBER, 0.1),
    "learning_rate": ("lr", NUMBER, 1e-4),
    "batch_size": ("batch", (int,), 32),
    "num_epochs": ("epochs", (int,), 10),
    "weight_decay": ("weight_decay", NUMBER, 0.01),
}
"""Key of the config -> key of the router's section, types, and default."""

SPLITS = {"train_split": 0.7, "val_split": 0.15, "test_split": 0.15}
READ = ("model1_path", "model2_path", "gating_model_path", "routing_mode", "hidden_dims", "seed", *TRAINING, *SPLITS)
BASE = "leave this key out: the router reads the embeddings of the base, which is model1"
ELSEWHERE = {
    "saved_model_path": "give model1_path and model2_path, the folders that the saved model opens",
    "base_model": BASE,
    "base_model_path": BASE,
    "output_dir": "use `moesaic run RECIPE --out DIR`",
    "prompt": "use `moesaic generate RUN PROMPT`",
    "max_new_tokens": "use `moesaic generate --max-new-tokens N`",
    "temperature": "use `moesaic generate --temperature T`",
    "top_p": "use `moesaic generate --top-p P`",
    "no_sample": "`moesaic generate` without --temperature takes the most probable token",
    "config": "a config cannot name another config",
}
"""Keys and options of that system outside a recipe -> their replacement."""

INFO = "training_info.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Translated:
    """A recipe as plain data, with notes for the user."""

    recipe: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        return dump(self.recipe)


def translated(
    path: str | os.PathLike[str],
    train: Mapping[str, Sequence[str]],
    test: Mapping[str, Sequence[str]],
    name: str | None = None,
) -> Translated:
    """Translate a config, whose paths are relative to its folder, into a recipe with absolute paths.

    `train`, `test`: files of rows for `model1` and `model2`, which are built into that system's commands. `name`: of
    the run; by default the name of the config. Raises RecipeError for keys and values without a meaning in a recipe.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError("no such file", path=path)
    found = checked(path, read_json(path))
    for key in ("model1_path", "model2_path"):
        if key not in found:
            raise RecipeError("missing", path=path, field=key, expected="the folder of a fine-tuned model")
    notes = ["the router is trained when the recipe is run"]
    if "gating_model_path" in found:
        info, more = gate_settings(path, found["gating_model_path"])
        found, notes = {**info, **found}, more
    if "test_split" in found:
        notes.append("test_split is not used: the test rows are in files of their own")
    mode = found.get("routing_mode", "weighted_sum")
    if mode not in SELECTION:
        expected = " or ".join(SELECTION)
        raise RecipeError("unknown", path=path, field="routing_mode", expected=expected, got=repr(mode))
    folders = {expert: absolute(path, found[f"{expert}_path"]) for expert in EXPERTS}
    validation = share(path, found)
    experts = {
        expert: {"kind": "ffn", "path": folder, "data": data_of(expert, train, test, validation)}
        for expert, folder in folders.items()
    }
    router = {
        "kind": "mlp",
        "feature": "embedding_mean",
        "hidden": widths(path, found.get("hidden_dims", "512,256")),
        "selection": SELECTION[mode],
        "mix": "balanced",
        "patience": 0,
        **{ours: found.get(key, default) for key, (ours, _, default) in TRAINING.items()},
    }
    recipe = {
        "name": name or path.stem,
        "seed": found.get("seed", 42),
        "base": {"path": folders["model1"]},
        "experts": experts,
        "router": router,
        "mixture": {"site": "ffn", "level": "sequence"},
    }
    return Translated(recipe, tuple(notes))


def files_by_name(option: str, given: Iterable[str]) -> dict[str, list[str]]:
    """Collect the files of each name from values `NAME=FILE` of the command line's `--option`."""
    files: dict[str, list[str]] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise RecipeError("wrong value", field=option, expected="NAME=FILE", got=repr(text))
        files.setdefault(name, []).append(file)
    return files


def checked(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without null values; refuses unknown keys, keys outside a recipe and wrong types."""
    known = {key: value for key, value in found.items() if value is not None}
    for key, value in known.items():
        if key in ELSEWHERE:
            raise RecipeError("not part of a recipe", path=path, field=key, got=repr(value), hint=ELSEWHERE[key])
        if key not in READ:
            raise RecipeError("unknown key", path=path, field=key, hint=nearest(key, [*READ, *ELSEWHERE]))
        kind = kind_of(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = " or ".join(one.__name__ for one in kind)
            raise RecipeError("wrong type", path=path, field=key, expected=expected, got=repr(value))
    return known


def kind_of(key: str) -> tuple[type, ...]:
    if key in TRAINING:
        return TRAINING[key][1]
    if key in SPLITS:
        return NUMBER
    return {"seed": (int,), "hidden_dims": (str, list)}.get(key, (str,))


def gate_settings(path: Path, folder: str) -> tuple[dict[str, Any], list[str]]:
    """Training settings from the folder of a saved gate, and notes for the user."""
    saved_at = Path(absolute(path, folder))
    if saved_at.suffix in PICKLES:
        hint = f"give the folder of the gate: its {INFO} has the settings to train the router again"
        what = "a pickle is never opened, because it could run code"
        raise RecipeError(what, path=path, field="gating_model_path", got=folder, hint=hint)
    info = saved_at / INFO
    if not info.is_file():
        hint = "leave gating_model_path out, and give settings of the training: hidden_dims, num_epochs, ..."
        raise RecipeError(f"no {INFO} in this folder", path=path, field="gating_model_path", got=folder, hint=hint)
    saved = read_json(info)
    settings = saved.get("config", {})
    if not isinstance(settings, dict):
        raise WeightsError("not a table", path=info, field="config", got=repr(settings))
    known = {key: value for key, value in settings.items() if key in (*TRAINING, *SPLITS, "hidden_dims", "seed")}
    notes = [
        "the router is trained again with the gate's settings: the gate's weights are a pickle, which is never opened"
    ]
    if reader := saved.get("base_model"):
        notes.append(f"the gate read the embeddings of {reader}; the router reads those of model1, the base")
    return checked(info, known), notes


def widths(path: Path, value: str | list[Any]) -> list[int]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        found = [int(part) for part in parts]
    except (TypeError, ValueError):
        found = []
    if not found or min(found) < 1:
        expected = "widths of hidden layers, such as 512,256"
        raise RecipeError("wrong value", path=path, field="hidden_dims", expected=expected, got=value)
    return found


def share(path: Path, found: Mapping[str, Any]) -> float:
    """Share of validation in the rows without the test split."""
    train, validation, test = (float(found.get(key, default)) for key, default in SPLITS.items())
    if min(train, validation) <= 0 or test < 0 or abs(train + validation + test - 1) > 1e-6:
        expected, got = "shares with the sum 1", f"{train:g}, {validation:g} and {test:g}"
        raise RecipeError("wrong values", path=path, field=", ".join(SPLITS), expected=expected, got=got)
    return round(validation / (train + validation), 6)


def data_of(
    expert: str, train: Mapping[str, Sequence[str]], test: Mapping[str, Sequence[str]], validation: float
) -> dict[str, Any]:
    for option, given in (("train", train), ("test", test)):
        if unknown := sorted(given.keys() - set(EXPERTS)):
            hint = nearest(unknown[0], list(EXPERTS))
            raise RecipeError("no such expert", field=option, expected=" or ".join(EXPERTS), got=unknown[0], hint=hint)
        if not given.get(expert):
            hint = f"give --{option} {expert}=FILE: a recipe must name its data"
            raise RecipeError("missing", field=f"experts.{expert}.data.{option}", hint=hint)
    train_files, test_files = ([os.path.abspath(file) for file in given[expert]] for given in (train, test))
    return {"train": train_files, "test": test_files, "validation": validation}


def absolute(path: Path, folder: str) -> str:
    return os.path.abspath(path.parent / os.path.expanduser(folder))
