"""The config of a gate between the feed-forward blocks of two fine-tuned models (cs259-llm), as a recipe.

Its JSON files, for the gate's training and for inference, with the defaults of its commands; a key that means nothing
here is refused by its name. Knows nothing about weights: the pickle that holds a trained gate is never opened.
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
"""What its output calls the two: `model1_prob` there is the weight of `model1` here."""

SELECTION = {"weighted_sum": "soft", "select_one": "top_1"}
NUMBER = (int, float)
TRAINING: dict[str, tuple[str, tuple[type, ...], Any]] = {
    "dropout": ("dropout", NUMBER, 0.1),
    "learning_rate": ("lr", NUMBER, 1e-4),
    "batch_size": ("batch", (int,), 32),
    "num_epochs": ("epochs", (int,), 10),
    "weight_decay": ("weight_decay", NUMBER, 0.01),
}
"""Its key -> ours in the router's section, its type, and its default."""

SPLITS = {"train_split": 0.7, "val_split": 0.15, "test_split": 0.15}
READ = ("model1_path", "model2_path", "gating_model_path", "routing_mode", "hidden_dims", "seed", *TRAINING, *SPLITS)
ELSEWHERE = {
    "saved_model_path": "its saved model opens the three folders it was made of: give model1_path and model2_path",
    "base_model": "a router reads the embeddings of the base, which is model1: leave it out",
    "base_model_path": "a router reads the embeddings of the base, which is model1: leave it out",
    "output_dir": "say it to `moesaic run RECIPE --out DIR`",
    "prompt": "say it to `moesaic generate RUN PROMPT`",
    "max_new_tokens": "say it to `moesaic generate --max-new-tokens N`",
    "temperature": "say it to `moesaic generate --temperature T`",
    "top_p": "say it to `moesaic generate --top-p P`",
    "no_sample": "`moesaic generate` without --temperature takes the most probable token",
    "config": "a config names no further one",
}
"""Keys of its files and options of its commands that are no part of a recipe -> where they go."""

INFO = "training_info.json"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Translated:
    """A recipe as plain data, and what whoever runs it should know: lines."""

    recipe: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The recipe as YAML."""
        return dump(self.recipe)


def translated(
    path: str | os.PathLike[str],
    train: Mapping[str, Sequence[str]],
    test: Mapping[str, Sequence[str]],
    name: str | None = None,
) -> Translated:
    """The recipe that a config means, its paths relative to the folder of the config and made absolute.

    `train`, `test`: files of rows for `model1` and `model2`, which its commands have built in and a recipe names.
    `name`: of the run; else as the config is called. Raises RecipeError for what has no meaning here.
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
        notes.append("what is judged on is a file of its own, so that test_split is not used")
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
    """The files of each name, from any number of `NAME=FILE`, as the command line's `--option` takes them."""
    files: dict[str, list[str]] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise RecipeError("not a file for a model", field=option, expected="NAME=FILE", got=repr(text))
        files.setdefault(name, []).append(file)
    return files


def checked(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says, null left out; unknown keys, keys with no place in a recipe and other types are refused."""
    said = {key: value for key, value in found.items() if value is not None}
    for key, value in said.items():
        if key in ELSEWHERE:
            raise RecipeError("no part of a recipe", path=path, field=key, got=repr(value), hint=ELSEWHERE[key])
        if key not in READ:
            raise RecipeError("unknown key", path=path, field=key, hint=nearest(key, [*READ, *ELSEWHERE]))
        kind = kind_of(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = " or ".join(one.__name__ for one in kind)
            raise RecipeError("a value of another type", path=path, field=key, expected=expected, got=repr(value))
    return said


def kind_of(key: str) -> tuple[type, ...]:
    """The types that a key's value may have."""
    if key in TRAINING:
        return TRAINING[key][1]
    if key in SPLITS:
        return NUMBER
    return {"seed": (int,), "hidden_dims": (str, list)}.get(key, (str,))


def gate_settings(path: Path, place: str) -> tuple[dict[str, Any], list[str]]:
    """How a gate was trained, as the folder it was saved to says, and what to know of it."""
    folder = Path(absolute(path, place))
    if folder.suffix in PICKLES:
        hint = f"name its folder, whose {INFO} says how it was trained: it is trained anew"
        what = "a pickle, which could run code, is never opened"
        raise RecipeError(what, path=path, field="gating_model_path", got=place, hint=hint)
    info = folder / INFO
    if not info.is_file():
        hint = "leave gating_model_path out, and say how the router is trained: hidden_dims, num_epochs, ..."
        raise RecipeError(f"no {INFO} there", path=path, field="gating_model_path", got=place, hint=hint)
    told = read_json(info)
    settings = told.get("config", {})
    if not isinstance(settings, dict):
        raise WeightsError("not a table", path=info, field="config", got=repr(settings))
    known = {key: value for key, value in settings.items() if key in (*TRAINING, *SPLITS, "hidden_dims", "seed")}
    notes = ["the router is trained anew, as the gate was: its weights are a pickle, which is never opened"]
    if reader := told.get("base_model"):
        notes.append(f"the gate read the embeddings of {reader}; the router reads those of model1, the base")
    return checked(info, known), notes


def widths(path: Path, value: str | list[Any]) -> list[int]:
    """Hidden layers, as 512,256 or as a list."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        found = [int(part) for part in parts]
    except (TypeError, ValueError):
        found = []
    if not found or min(found) < 1:
        expected = "widths such as 512,256"
        raise RecipeError(
            "not the widths of hidden layers", path=path, field="hidden_dims", expected=expected, got=value
        )
    return found


def share(path: Path, found: Mapping[str, Any]) -> float:
    """The share of what is not tested on that settings are chosen by."""
    train, validation, test = (float(found.get(key, default)) for key, default in SPLITS.items())
    if min(train, validation) <= 0 or test < 0 or abs(train + validation + test - 1) > 1e-6:
        got = f"{train:g}, {validation:g} and {test:g}"
        expected = "shares that sum to 1"
        raise RecipeError("not a division", path=path, field=", ".join(SPLITS), expected=expected, got=got)
    return round(validation / (train + validation), 6)


def data_of(
    expert: str, train: Mapping[str, Sequence[str]], test: Mapping[str, Sequence[str]], validation: float
) -> dict[str, Any]:
    """An expert's section of data; the files stand as they were typed, made absolute."""
    for option, given in (("train", train), ("test", test)):
        if unknown := sorted(given.keys() - set(EXPERTS)):
            hint = nearest(unknown[0], list(EXPERTS))
            raise RecipeError("no such expert", field=option, expected=" or ".join(EXPERTS), got=unknown[0], hint=hint)
        if not given.get(expert):
            hint = f"give --{option} {expert}=FILE: its commands have their data built in, a recipe names it"
            raise RecipeError("missing", field=f"experts.{expert}.data.{option}", hint=hint)
    files = {
        option: [os.path.abspath(file) for file in given[expert]]
        for option, given in (("train", train), ("test", test))
    }
    return {**files, "validation": validation}


def absolute(path: Path, place: str) -> str:
    return os.path.abspath(path.parent / os.path.expanduser(place))
