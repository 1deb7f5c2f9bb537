"""Property: has TT-LoRA here as many numbers as was published, on the real linears of each model?"""

import pytest
import torch

import moesaic
from moesaic.adapters import LoRA, TensorTrain
from moesaic.adapters.published import PUBLISHED
from moesaic.config import PUBLISHED as DECODERS
from moesaic.config import published, published_encoder
from moesaic.errors import RecipeError
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder

COUNTS = {
    ("roberta-base", 4): 17_664,
    ("llama-3.2-1b", 5): 33_920,
    ("llama-3.2-1b", 10): 93_440,
    ("llama-3.2-3b", 10): 177_520,
    ("llama-3-8b", 10): 212_480,
    ("llama-3-70b", 10): 579_200,
}


@pytest.mark.parametrize(("name", "rank"), COUNTS)
def test_the_published_settings_have_the_published_number_of_parameters(name, rank):
    found = moesaic.published_ttlora(name, rank)
    assert (found.parameters, found.rank) == (COUNTS[name, rank], rank)


def test_without_a_rank_it_is_that_of_the_paper():
    assert {row.name: moesaic.published_ttlora(row.name).rank for row in PUBLISHED}["llama-3.2-1b"] == 5
    assert {(row.name, row.rank) for row in PUBLISHED} == set(COUNTS)
    roberta = moesaic.published_ttlora("roberta-base")
    assert (roberta.alpha, roberta.lr, roberta.targets) == (8.0, 1e-3, ["query", "value"])


@pytest.mark.parametrize("row", PUBLISHED, ids=[f"{row.name} {row.rank}" for row in PUBLISHED])
def test_a_fresh_adapter_on_the_models_own_linears_has_that_many(row):
    """On the meta device: shapes without values."""
    decodes = row.name in DECODERS
    config = published(row.name) if decodes else published_encoder(row.name)
    with torch.device("meta"):
        model = Decoder(config) if decodes else Encoder(config)
    made = TensorTrain.fresh(
        *(model, row.rank, row.alpha, row.targets, range(999), torch.Generator("cpu")), factors="published"
    )
    assert made.num_parameters == row.parameters and len(made.layers) == row.layers
    lora = LoRA.fresh(model, 16, 8.0, row.targets, range(999), torch.Generator("cpu"))
    assert made.num_parameters < 0.06 * lora.num_parameters
    assert [*made.lora().pairs] == [*lora.pairs]


def test_lora_of_the_published_baseline_has_1_703_936_on_the_1b():
    with torch.device("meta"):
        model = Decoder(published("llama-3.2-1b"))
    made = LoRA.fresh(model, 16, 8.0, ["q_proj", "v_proj"], range(99), torch.Generator("cpu"))
    assert made.num_parameters == 1_703_936


def test_an_unknown_model_or_rank_is_refused_by_name():
    with pytest.raises(
        RecipeError, match=r"expected one of roberta-base, .*; got llama-3-8; did you mean 'llama-3-8b'"
    ):
        moesaic.published_ttlora("llama-3-8")
    with pytest.raises(RecipeError, match=r"rank: not published with this rank; expected 5 or 10; got 4"):
        moesaic.published_ttlora("llama-3.2-1b", 4)
