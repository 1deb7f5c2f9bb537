"""Does a loaded model refuse, by what is wrong with them, ids that it cannot read?"""

import pytest
import torch

from moesaic.errors import DataError
from moesaic.interop.encoders import load_pretrained, save_encoder
from moesaic.interop.pretrained import LoadedDecoder
from moesaic.testing import tiny_decoder, tiny_encoder


@pytest.fixture(params=["decoder", "encoder"])
def model(request, tmp_path):
    if request.param == "decoder":
        return LoadedDecoder(tiny_decoder(dtype=torch.float32), {})
    save_encoder(tmp_path, tiny_encoder(dtype=torch.float32))
    return load_pretrained(tmp_path, None)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.zeros(1, 1000, dtype=torch.long), "the rows are too long; expected at most .* tokens; got 1000"),
        (torch.full((1, 3), 10**6), "an id outside the vocabulary; expected 0 to .*; got 1000000"),
        (torch.full((1, 3), -1), "an id outside the vocabulary; expected 0 to .*; got -1"),
        (torch.zeros(3, dtype=torch.long), r"ids of another shape; expected rows of ids: \(rows, tokens\); got \[3\]"),
        (torch.zeros(1, 0, dtype=torch.long), r"no ids; expected a row and a token or more; got \[1, 0\]"),
        (torch.zeros(0, 3, dtype=torch.long), "no ids"),
        (torch.zeros(1, 3), "ids of another type; expected whole numbers; got torch.float32"),
        (torch.ones(1, 3, dtype=torch.bool), "ids of another type"),
    ],
)
def test_ids_that_it_cannot_read_are_refused(model, ids, said):
    with pytest.raises(DataError, match=f"input_ids: {said}"):
        model(ids)


def test_all_other_ids_are_read(model):
    ids = torch.arange(model.config.context)[None] % model.config.vocab_size
    assert model(ids).hidden.shape[:2] == ids.shape
