"""A small base, texts of two domains, and recipes of kinds `ffn` and `model` over them."""

import json
from pathlib import Path

import torch

from moesaic.artefacts.base import save_base
from moesaic.recipe import Recipe, parse
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer

TRAIN = {"steps": 3, "batch": 4, "length": 48, "lr": 1e-2, "evaluate_every": 0}
WIDTH, LAYERS = 49, 2


def rows(domain: str, start: int, count: int) -> list[dict[str, str]]:
    if domain == "sums":
        return [{"prompt": f"add {n} to {n % 7}", "response": f"{n + n % 7}"} for n in range(start, start + count)]
    birds = ("wren", "owl", "finch", "hawk", "crow", "lark", "swan", "tit")
    return [
        {"prompt": f"the {birds[n % 8]} of day {n}", "response": f"sings {birds[n * 3 % 8]}"}
        for n in range(start, start + count)
    ]


def fill(folder: Path) -> Path:
    """Put a base of two layers, and texts of two domains, into a folder."""
    for domain in ("sums", "birds"):
        for split, (start, count) in {"train": (0, 24), "test": (100, 6)}.items():
            lines = [json.dumps(row) + "\n" for row in rows(domain, start, count)]
            (folder / f"{domain}_{split}.jsonl").write_text("".join(lines))
    texts = [" ".join(row.values()) for domain in ("sums", "birds") for row in rows(domain, 0, 24)]
    tokenizer = Tokenizer.train(texts, 290)
    decoder = tiny_decoder(
        3, torch.float32, num_layers=LAYERS, intermediate_size=WIDTH, vocab_size=tokenizer.vocab_size
    )
    (folder / "base").mkdir()
    save_base(folder / "base", decoder, tokenizer, {})
    return folder


def recipe_in(place: Path, kind: str, *overrides: str, **first: object) -> Recipe:
    """Experts `sums` and `birds` of a kind; `first`: more about the first."""

    def expert(domain: str) -> dict[str, object]:
        return {"kind": kind, "data": {"train": f"{domain}_train.jsonl", "test": f"{domain}_test.jsonl"}}

    recipe = {
        "name": "kinds",
        "workers": 1,
        "checkpoint_seconds": 0,
        "base": {"path": str(place / "base")},
        "train": TRAIN,
        "experts": {"sums": expert("sums") | first, "birds": expert("birds")},
        "router": {"kind": "linear", "feature": "embedding_mean", "epochs": 3},
        "evaluate": {"samples": 1, "batch": 4},
    }
    return parse(recipe, overrides, place / "recipe.yaml")
