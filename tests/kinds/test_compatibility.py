"""Is every difference between two models refused by its name, or on the short list?"""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from moesaic.artefacts.base import save_base
from moesaic.config import published
from moesaic.errors import WeightsError
from moesaic.files import disk
from moesaic.interop import decoder_config as configs
from moesaic.interop import encoders as encoder_room
from moesaic.interop.families import ABSENT, FAMILIES, KEYS
from moesaic.interop.outline import Outline, outline
from moesaic.kinds import at_site, sites
from moesaic.kinds.compatibility import (
    ALLOWED,
    OWN,
    PADDING,
    TEMPLATE,
    TEXT,
    differences,
    tokenizer_differences,
    unreadable,
)
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Special, Template, Tokenizer

SITES = sites()


def described(folder: Path, name: str, found: dict[str, Any]) -> Outline:
    """A config.json as an outline; the tensors are not in question."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found))
    if found.get("model_type") in encoder_room.ARCHITECTURES:
        family = encoder_room.family_of(found, path)
        return Outline(name, encoder_room.read_config(found, path, family, "none", {}), found)
    config, found = configs.read_config(path)
    return Outline(name, config, found)


def mutations(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field changed, and every field left out; of tables, each entry."""

    def changed(value: Any) -> Any:
        match value:
            case bool():
                return not value
            case int():
                return value + 1
            case float():
                return value * 2 + 0.1 if value < 0.4 else value * 2
            case str():
                return f"{value}x"
            case list():
                return [*value, changed(value[-1])]
            case _:
                return 7

    for key, value in found.items():
        if isinstance(value, dict):
            for inner in value:
                yield key, found | {key: value | {inner: changed(value[inner])}}
        else:
            yield key, found | {key: changed(value)}
        if value is not None:
            yield key, {other: kept for other, kept in found.items() if other != key}


def named(base: Outline, folder: Path, error: WeightsError) -> str:
    """What is said of a config.json that cannot be read, or contradicts itself."""
    try:
        return str(unreadable(base, folder, error))
    except WeightsError as worse:
        return str(worse)


HAVE_DEFAULTS = {*KEYS.values(), *ABSENT, "layer_types", "query_pre_attn_scalar"}
HAVE_DEFAULTS |= {key for family in FAMILIES.values() for key in (*family.absent, *family.only, *family.keys.values())}


def names(configs_folder: Path) -> list[Path]:
    return [path for path in sorted(configs_folder.glob("*.json")) if "model_type" in json.loads(path.read_text())]


@pytest.mark.parametrize("site", SITES)
def test_every_mutation_of_a_real_config_is_refused_by_name_or_on_the_short_list(
    shared: Path, tmp_path: Path, site: str
) -> None:
    seen = 0
    for path in names(shared / "models" / "configs"):
        found = json.loads(path.read_text())
        base = described(tmp_path, "base", found)
        for field, mutant in mutations(found):
            seen += 1
            try:
                other = described(tmp_path, "mutant", mutant)
                told = {one.field: one for one in differences(base, other, at_site(site).shares_trunk)}
            except WeightsError as error:
                (folder := tmp_path / f"{seen}").mkdir()
                (tmp_path / "mutant.json").rename(folder / "config.json")
                assert field in named(base, folder, error), (path.name, field)
                continue
            if field not in told and field not in mutant:  # it only said what its absence means
                assert other.config == base.config and field in HAVE_DEFAULTS, (path.name, field)
                continue
            assert field in told, (path.name, field)
            if told[field].allowed:
                assert field in ALLOWED or (site == "model" and field not in TEXT), (path.name, field)
    assert seen > 200


def test_the_same_config_differs_in_nothing(shared: Path, tmp_path: Path) -> None:
    for path in names(shared / "models" / "configs"):
        found = json.loads(path.read_text())
        one = described(tmp_path, "one", found)
        assert not differences(one, described(tmp_path, "two", copy.deepcopy(found)), shares_trunk=True)


def test_the_same_wiring_in_new_keys_and_old_ones_is_the_same(shared: Path, tmp_path: Path) -> None:
    found = json.loads((shared / "models" / "configs" / "llama-3.2-1b-instruct.json").read_text())
    new = {key: value for key, value in found.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new["rope_parameters"] = {**found["rope_scaling"], "rope_theta": found["rope_theta"]}
    new["dtype"] = found["torch_dtype"]
    assert not differences(described(tmp_path, "old", found), described(tmp_path, "new", new), shares_trunk=True)


def test_an_unused_window_may_differ_and_a_used_one_may_not(shared: Path, tmp_path: Path) -> None:
    found = json.loads((shared / "models" / "configs" / "qwen2-0.5b.json").read_text())
    base = described(tmp_path, "base", found)
    (unused,) = differences(base, described(tmp_path, "other", found | {"sliding_window": 77}), shares_trunk=True)
    assert unused.field == "sliding_window" and unused.allowed == ALLOWED["sliding_window"]
    used = found | {"use_sliding_window": True, "max_window_layers": 3}
    fields = {
        one.field
        for one in differences(base, described(tmp_path, "other", used), shares_trunk=True)
        if one.allowed is None
    }
    assert fields == {"use_sliding_window", "max_window_layers", "layer_types"}


def test_whole_models_share_only_their_text(shared: Path, tmp_path: Path) -> None:
    found = json.loads((shared / "models" / "configs" / "llama-3-8b.json").read_text())
    base = described(tmp_path, "base", found)
    (narrow,) = differences(base, described(tmp_path, "other", found | {"intermediate_size": 8192}), shares_trunk=False)
    assert narrow.allowed == OWN
    for field in TEXT:
        (text,) = differences(base, described(tmp_path, "other", found | {field: 77}), shares_trunk=False)
        assert (text.field, text.allowed) == (field, None)


def test_published_sizes_are_compared_by_their_wiring() -> None:
    base = Outline("llama-3-8b", published("llama-3-8b"))
    assert not differences(base, Outline("again", published("llama-3-8b")), shares_trunk=True)
    fields = {one.field for one in differences(base, Outline("1b", published("llama-3.2-1b")), shares_trunk=True)}
    assert {"hidden_size", "num_layers", "rope_scaling", "tie_embeddings"} <= fields


def saved(folder: Path, tokenizer: Tokenizer) -> Outline:
    disk.make_all(folder)
    save_base(folder, tiny_decoder(vocab_size=300), tokenizer, {})
    return outline(folder)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the sum of two and two is four"], 275)


def test_a_permuted_vocabulary_of_equal_size_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = json.loads(tokenizer.inner.to_str())
    vocabulary = found["model"]["vocab"]
    found["model"]["vocab"] = {text: id if id == 0 else len(vocabulary) - id for text, id in vocabulary.items()}
    other = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(found)), tokenizer.special)
    one, two = saved(tmp_path / "one", tokenizer), saved(tmp_path / "two", other)
    for site in SITES:
        (difference,) = differences(one, two, at_site(site).shares_trunk)
        assert (difference.field, difference.allowed) == ("tokenizer: tokens", None)
        assert difference.own.startswith("274 of its own: 1: ") and "two: tokenizer: tokens: 274" in str(difference)


def test_a_folder_without_a_tokenizer_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one", tokenizer), saved(tmp_path / "two", tokenizer)
    assert not tokenizer_differences(one, two)
    disk.unlink(tmp_path / "two" / "tokenizer.json")
    (difference,) = tokenizer_differences(one, two)
    assert (difference.field, difference.base, difference.own) == ("tokenizer", "one", "no tokenizer")


def test_another_template_and_another_padding_are_allowed(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Tokenizer(tokenizer.inner, Special(0, (0,), bos=5, pad=6))
    templated = Tokenizer(tokenizer.inner, before.special, Template("{{ messages[0].content }}"))
    padded = Tokenizer(tokenizer.inner, replace(before.special, pad=7))
    one, two = (Outline(name, published("llama-3-8b"), folder=tmp_path) for name in ("one", "two"))
    for other, why in ((templated, TEMPLATE), (padded, PADDING)):
        given = iter((before, other))
        monkeypatch.setattr("moesaic.kinds.compatibility._tokenizer", lambda folder, found, given=given: next(given))
        (difference,) = tokenizer_differences(one, two)
        assert difference.allowed == why
