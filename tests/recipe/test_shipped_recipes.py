"""Property: do the recipes that come with the package read, and are those of published TT-LoRA what was published?"""

from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.adapters import LoRADesign
from moesaic.config import PUBLISHED as DECODERS
from moesaic.config import published, published_encoder
from moesaic.kinds import KINDS
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.recipe import Recipe, read
from moesaic.sections.glue import TASKS
from moesaic.sections.layers import layer_range
from moesaic.sections.sources import HUB, LabelledData

FOLDER = Path(__file__).parents[2] / "recipes"
COUNTS = {"roberta-base": 17_664, "llama-3.2-1b": 33_920, "llama-3-8b": 212_480, "llama-3-70b": 579_200}
GLUE = {"mrpc", "cola", "qnli", "sst2"}


def published_recipe(model: str) -> Recipe:
    return read(FOLDER / f"ttlora-{model}.yaml")


def on_meta(model: str) -> Decoder | Encoder:
    """Shapes without values."""
    with torch.device("meta"):
        return Decoder(published(model)) if model in DECODERS else Encoder(published_encoder(model))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_is_called_as_its_file(path):
    found = read(path)
    assert found.name.removesuffix("260k") == path.stem and found.experts


@pytest.mark.parametrize("model", COUNTS)
def test_an_expert_of_a_published_recipe_has_the_published_number_of_parameters(model):
    body = on_meta(model)
    for expert in published_recipe(model).experts.values():
        design, every = KINDS[expert.kind].design(expert), layer_range(expert.layers, body.config.num_layers)
        assert design.num_parameters(body, every) == moesaic.published_ttlora(model).parameters == COUNTS[model]


@pytest.mark.parametrize("model", COUNTS)
def test_its_settings_are_those_that_were_published(model):
    recipe, settings = published_recipe(model), moesaic.published_ttlora(model)
    assert recipe.experts.keys() == GLUE <= TASKS.keys()
    for name, expert in recipe.experts.items():
        design = KINDS[expert.kind].design(expert)
        assert (design.rank, design.scale, design.targets) == (settings.rank, settings.alpha, settings.targets)
        assert (design.factors, design.init, expert.head) == ("published", "published", "frozen")
        assert recipe.train_of(name).lr == settings.lr
        assert isinstance(expert.data, LabelledData) and expert.data.task == name
        assert [source.path for source in (*expert.data.train, *expert.data.test)] == [
            f"{HUB}train",
            f"{HUB}validation",
        ]


def test_the_runnable_one_has_at_most_a_twentieth_of_the_parameters_of_lora_16():
    recipe = read(FOLDER / "ttlora-glue.yaml")
    body = on_meta("minilm-l6")
    assert recipe.experts.keys() == GLUE
    for expert in recipe.experts.values():
        design = KINDS[expert.kind].design(expert)
        lora = LoRADesign(16, design.scale, design.targets)
        assert design.num_parameters(body, range(6)) <= 0.05 * lora.num_parameters(body, range(6))
