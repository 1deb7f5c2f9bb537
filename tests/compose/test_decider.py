"""Does a stored mixture's decider decide as the mixture, and without its base where the router reads none?"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.compose.decider import load_decider
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.config import Feature
from moesaic.errors import CompatibilityError
from moesaic.files import disk
from moesaic.model.deciding import Reader
from moesaic.model.features import Prompts
from moesaic.model.features import read as read_feature
from moesaic.routing import Selection
from moesaic.routing.routers import CentroidRouter, KeywordRouter, TrainedRouter
from moesaic.tensors import safetensors_file as opening
from moesaic.testing import tiny_decoder

TEXTS = ["the sum of two", "def add", "what is it", "the sum"]
NAMES = ("two", "one")


def characters() -> CentroidRouter:
    router = CentroidRouter(4096, 2)
    router.centroids.normal_(generator=torch.Generator().manual_seed(0))
    return router.eval()


def stored(parts, folder: Path, kind: str, router: TrainedRouter, feature: str, **facts) -> Path:
    """A mixture of the two experts with this router."""
    for name in ("router", "mixture"):
        (folder / name).mkdir()
    one = StoredRouter(router, kind, NAMES, feature, Selection(kind="soft"), {})
    save_router(folder / "router", one, parts.fingerprint, {})
    experts = {name: parts.folder / name for name in NAMES}
    save_mixture(folder / "mixture", parts.folder / "base", experts, folder / "router", facts)
    return folder / "mixture"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The paths of files whose bytes are read: tensors that are opened, and what is hashed."""
    found, opened, hashed = [], opening.Opened.__init__, disk.sha256_file
    monkeypatch.setattr(
        opening.Opened, "__init__", lambda self, path, *rest: found.append(str(path)) or opened(self, path, *rest)
    )
    monkeypatch.setattr(disk, "sha256_file", lambda path, *rest: found.append(str(path)) or hashed(path, *rest))
    return found


@pytest.mark.parametrize(
    ("kind", "router", "feature"),
    [("keyword", KeywordRouter([["sum"], ["add", "def"]]), "text"), ("centroid", characters(), "characters")],
)
def test_a_router_that_reads_no_base_decides_without_one(parts, tmp_path, read, kind, router, feature):
    folder = stored(parts, tmp_path, kind, router, feature)
    expected = [report.weights for report in moesaic.load(folder).route(TEXTS)]
    assert any("/base/" in path for path in read), "a mixture reads it"
    read.clear()
    decider = load_decider(folder)
    found = decider.decide(Prompts.of_texts(TEXTS)).weights
    assert decider.names == NAMES and [dict(zip(NAMES, row, strict=True)) for row in found.tolist()] == expected
    assert read and all(Path(path).parent == folder / "router" for path in read)


@pytest.mark.parametrize("feature", ["characters", "wording"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_of_a_text_meet_no_base_and_are_float32_beside_any(feature, dtype, monkeypatch):
    body, prompts = tiny_decoder(dtype=dtype), Prompts.of_texts(TEXTS)
    expected = read_feature(Feature.parse(feature), body, 2, prompts)
    monkeypatch.setattr(body, "embed", lambda *_: pytest.fail("the base is read"))
    found = Reader(Feature.parse(feature), body, 2)(prompts)
    assert found.dtype == torch.float32 and found.equal(expected)


def test_a_router_that_reads_states_decides_with_the_base_alone(parts, tmp_path, read):
    folder = stored(parts, tmp_path, "mlp", parts.router, "hidden_mean")
    mixture = load_mixture(folder)
    rows = [mixture.tokenizer.begin(text) for text in TEXTS]
    expected = mixture.model.route(Prompts.pad(rows, TEXTS)).weights
    read.clear()
    with torch.no_grad():
        assert load_decider(folder).decide(Prompts.pad(rows, TEXTS)).weights.equal(expected)
    assert any("/base/" in path for path in read) and not any("/experts/" in path for path in read)


def test_an_expert_that_is_disabled_is_not_chosen(parts, tmp_path):
    folder = stored(parts, tmp_path, "keyword", KeywordRouter([["sum"], ["add"]]), "text", disabled=["two"])
    found = load_decider(folder).decide(Prompts.of_texts(TEXTS)).weights
    assert found.tolist() == [report_of(folder, text) for text in TEXTS] and found[0].tolist() == [0, 1]


def report_of(folder: Path, text: str) -> list[float]:
    return list(moesaic.load(folder).route(text).weights.values())


def test_a_router_of_another_base_is_refused_where_it_reads_the_base(parts, tmp_path):
    other = replace(parts, fingerprint="0" * 64)
    folder = stored(other, tmp_path, "mlp", parts.router, "hidden_mean")
    with pytest.raises(CompatibilityError, match="the router was trained on another base"):
        load_decider(folder)
