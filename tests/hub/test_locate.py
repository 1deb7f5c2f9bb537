"""Does a place lead to the one folder that it means, and is what nobody has refused in words that help?"""

import shutil
from pathlib import Path

import pytest

import moesaic
from moesaic.errors import WeightsError
from moesaic.hub import locate as places
from moesaic.hub.locate import Located, locate, origins_in


@pytest.fixture
def repository(hub, parts) -> str:
    """The commit of `org/base`, as the hub has it, without a manifest."""
    folder = parts.folder / "base"
    return hub.put(
        "org/base", {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    )


def test_a_folder_is_where_it_is_and_has_no_origin(parts, tmp_path, monkeypatch):
    shutil.copytree(parts.folder / "base", tmp_path / "org" / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("org/base", "./org/base", "~/org/base", Path("org/base"), str(tmp_path / "org" / "base")):
        found = locate(place)
        assert found.folder.resolve() == tmp_path / "org" / "base" and found.origin == {}


def test_an_id_is_a_snapshot_and_its_origin_the_commit(repository):
    for place, revision in (("org/base", None), ("org/base@main", None), ("org/base", "main")):
        found = locate(place, revision)
        assert found.folder.name == repository and (found.folder / "config.json").is_file()
        assert found.origin == {"place": "org/base@main", "commit": repository}
    assert locate(f"org/base@{repository}").origin["place"] == f"org/base@{repository}"


def test_a_folder_wins_over_an_id_but_not_over_one_with_a_revision_nor_as_a_path(repository, tmp_path, monkeypatch):
    for name in ("org/base", "org/base@main"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("org/base").folder == Path("org/base")
    assert locate("org/base@main").commit == repository
    assert locate(Path("org/base@main")).folder == Path("org/base@main")
    with pytest.raises(WeightsError, match="^org/other: no such folder; give"):
        locate(Path("org/other"))


def test_a_model_that_the_package_carries_is_found_by_its_name(parts, tmp_path, monkeypatch):
    shutil.copytree(parts.folder / "base", tmp_path / "shipped" / "tiny")
    (tmp_path / "shipped" / "no-model").mkdir()
    monkeypatch.setattr(places, "SHIPPED_AT", tmp_path / "shipped")
    assert locate("shipped:tiny") == Located(tmp_path / "shipped" / "tiny", "shipped:tiny")
    assert locate("shipped:tiny").origin == {"place": "shipped:tiny"}
    model = moesaic.load_model("shipped:tiny")
    assert model.config == parts.decoder.config and model.origin == {"place": "shipped:tiny"}
    assert moesaic.inspect("shipped:tiny").facts["fingerprint"] == parts.fingerprint
    for wrong in ("shipped:other", "shipped:no-model", "shipped:", "shipped:../tiny", "shipped:tiny/"):
        with pytest.raises(WeightsError, match=f"no such model is shipped; expected shipped:tiny; got {wrong}"):
            locate(wrong)
    monkeypatch.setattr(places, "SHIPPED_AT", tmp_path / "nothing")
    with pytest.raises(WeightsError, match="expected a package with models"):
        locate("shipped:tiny")


@pytest.mark.skipif(not places.SHIPPED_AT.is_dir(), reason="this package carries no model")
@pytest.mark.parametrize("folder", sorted(places.SHIPPED_AT.glob("*")), ids=lambda folder: folder.name)
def test_what_the_package_carries_is_sound_and_a_base(folder):
    from moesaic.artefacts.base import load_base

    assert moesaic.inspect(f"shipped:{folder.name}").verified
    base = load_base(locate(f"shipped:{folder.name}").folder)
    assert moesaic.load_model(f"shipped:{folder.name}").config == base.decoder.config


@pytest.mark.parametrize("place", ["gemma", "no/such/folder/here", "./none", "/none", "a b", "", "org/base@"])
def test_what_is_no_folder_and_no_id_is_refused_without_asking_the_hub(hub, place):
    with pytest.raises(WeightsError, match="no such folder; give a folder, a .gguf file, an id .*shipped:tiny"):
        locate(place)
    assert not hub.asked


def test_a_misspelt_path_into_a_folder_is_refused_without_asking_the_hub(hub, repository, tmp_path, monkeypatch):
    (tmp_path / "adapters" / "code").mkdir(parents=True)
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"^adapters/cod: no such folder; did you mean 'adapters/code'\?$"):
        locate("adapters/cod")
    with pytest.raises(WeightsError, match="^org/base: no such folder; give a folder, a .gguf file, an id .*@main"):
        locate("org/base")
    assert not hub.asked
    assert locate("org/base@main").commit == locate("org/base", "main").commit == repository


@pytest.mark.parametrize(("name", "hint"), [("mine.yaml", "moesaic run"), ("evaluation.json", "give a folder")])
def test_a_file_is_said_to_be_one(tmp_path, name, hint):
    (tmp_path / name).write_text("{}")
    with pytest.raises(WeightsError, match=f"{name}: a file, not a folder; .*{hint}"):
        locate(tmp_path / name)


def test_a_revision_is_said_once_and_of_the_hub_only(repository, parts):
    with pytest.raises(WeightsError, match="revision: the id already has a revision"):
        locate("org/base@main", "main")
    for place in (parts.folder / "base", str(parts.folder / "base"), "shipped:tiny"):
        with pytest.raises(WeightsError, match="revision: a folder has no revisions"):
            locate(place, "main")


def test_a_model_of_the_hub_knows_where_it_is_from(repository, parts):
    model = moesaic.load_model("org/base")
    assert model.config == parts.decoder.config and model.origin == {"place": "org/base@main", "commit": repository}
    assert moesaic.load_model(parts.folder / "base").origin == {}


@pytest.mark.parametrize(
    "forged", [[], "x", {"a": 1}, {"a": {"place": 1}}, {"a": {"path": "x"}}, {"a": {"place": None}}]
)
def test_forged_origins_are_refused(forged, tmp_path):
    with pytest.raises(WeightsError, match="origins: invalid origins"):
        origins_in({"origins": forged}, tmp_path)
    assert origins_in({}, tmp_path) == {}
