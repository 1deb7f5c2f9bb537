"""Do models come from a hub and go to one, over real sockets, and is it said soon what a hub refuses?"""

import pkgutil
import socket
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir

from moesaic.errors import MoesaicWarning, RecipeError, StorageError, WeightsError
from moesaic.files import MANIFEST
from moesaic.hub.hub import CARD, PATTERNS, download, push, repository
from moesaic.sections.places import HubId, hub_id
from moesaic.tensors.file_names import INDEX
from moesaic.tokenizer import FILES as TEXT

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "chat_template.jinja": b"hi",
    "1_Pooling/config.json": b"1",
}
NOT_OURS = {
    "code.py": b"import os",
    "weights.bin": b"pickle",
    "original/model.safetensors": b"again",
    "consolidated.00.safetensors": b"again",
    "checkpoint-9/model.safetensors": b"half-way",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# --- from a hub -------------------------------------------------------------------------------------------------------


def test_a_repository_is_downloaded_but_for_what_could_run_code_or_lies_there_twice(hub):
    commit = hub.put("org/toy", {**FILES, **NOT_OURS})
    folder = download(HubId("org/toy"))
    assert contents(folder) == FILES and folder.name == commit
    assert len(scan_cache_dir(constants.HF_HUB_CACHE).repos) == 1


def test_a_branch_a_tag_and_a_commit_are_each_what_they_were(hub):
    old = hub.put("org/toy", FILES)
    hub.put("org/toy", {**FILES, "config.json": b"[]"}, "v1")
    new = hub.put("org/toy", {**FILES, "config.json": b"2"})
    for revision, content in {"main": b"2", None: b"2", "v1": b"[]", old: b"{}", new: b"2"}.items():
        assert (download(HubId("org/toy", revision)) / "config.json").read_bytes() == content


def test_a_second_time_nothing_is_fetched_and_without_a_network_the_copy_serves(hub, monkeypatch):
    commit = hub.put("org/toy", FILES)
    download(HubId("org/toy"))
    hub.asked.clear()
    download(HubId("org/toy"))
    assert not [line for line in hub.asked if "resolve" in line]
    offline(monkeypatch)
    hub.asked.clear()
    for wanted in ("org/toy@main", f"org/toy@{commit}"):
        assert contents(download(hub_id(wanted))) == FILES
    assert not hub.asked


def test_where_the_hub_is_gone_the_copy_serves_with_a_warning(hub, monkeypatch):
    commit = hub.put("org/toy", FILES)
    download(HubId("org/toy"))
    hub.refusals["/api"] = 500, "no room"
    with pytest.warns(MoesaicWarning, match=f"^org/toy: using the cached copy of commit {commit}, as .*500"):
        assert contents(download(HubId("org/toy"))) == FILES
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(MoesaicWarning, match="using the cached copy.*ConnectError"):
        download(HubId("org/toy", commit))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("org/none", "404.*Repository Not Found"),
        ("org/toy@v9", "404.*Revision Not Found"),
        (f"org/toy@{'0' * 40}", "404.*Revision Not Found"),
        ("org/not--a-name", "HFValidationError"),
    ],
)
def test_what_the_hub_does_not_have_is_said_with_what_it_answered(hub, wanted, words):
    hub.put("org/toy", FILES)
    with pytest.raises(
        WeightsError, match=f"^{wanted}: no such folder, and the download failed.*{words}.*check the name"
    ) as e:
        download(hub_id(wanted))
    assert "Request ID" not in str(e.value)


def test_a_gated_repository_says_how_to_log_in(hub):
    hub.refusals["/api/models/org/toy"] = 403, "Access to model org/toy is restricted"
    with pytest.raises(WeightsError, match=r"Access to model org/toy is restricted.*hf auth login"):
        download(HubId("org/toy"))


@pytest.mark.parametrize("revision", ["main", "0" * 40])
@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.usefixtures("hang_limit")
def test_a_hub_that_cannot_be_reached_or_does_not_answer_is_told_within_seconds(hub, monkeypatch, listens, revision):
    """The client alone sleeps 25 seconds for a commit where nobody listens, and waits for ever where nobody answers."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
        with pytest.raises(WeightsError, match="ReadTimeout" if listens else "ConnectError"):
            download(HubId("org/toy", revision))
        assert not slept


def test_offline_without_a_copy_it_is_said_which_setting_forbids_asking(hub, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        download(HubId("org/toy"))


def test_a_cache_that_cannot_be_written_is_a_matter_of_the_disk(hub, monkeypatch, tmp_path):
    hub.put("org/toy", FILES)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="file: storage failed"):
        download(HubId("org/toy"))


def test_every_file_that_a_model_or_mixture_is_read_from_is_asked_for():
    from huggingface_hub.utils import filter_repo_objects

    rooms = [
        import_module(f"moesaic.{room}.{file.name}")
        for room in ("tensors", "hub", "interop", "artefacts", "residency", "compose")
        for file in pkgutil.iter_modules(import_module(f"moesaic.{room}").__path__)
    ]
    own = {*TEXT, MANIFEST, INDEX, *(name for room in rooms for name in getattr(room, "FILES", ()))}
    assert {"adapter_config.json", "router.safetensors", "encoder/1_Pooling/config.json", "merges.txt"} <= own
    files = {f"{folder}{name}" for name in own for folder in ("", "base/", "experts/consolidated/")}
    assert {*filter_repo_objects(files, allow_patterns=PATTERNS)} == files


# --- to a hub ---------------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_there_as_one_commit_and_comes_back(hub, tmp_path):
    (tmp_path / "weights").write_bytes(b"many")
    url = push(
        HubId("me/mine"), {"model.safetensors": tmp_path / "weights", "config.json": b"{}", CARD: b"# me"}, None, "t"
    )
    assert url == f"{hub.url}/me/mine/commit/{hub.repositories['me/mine'].commit('main')}"
    assert len([line for line in hub.asked if "/commit/" in line]) == 1
    assert hub.tokens == {"Bearer t"} and not hub.repositories["me/mine"].private
    assert contents(download(HubId("me/mine"))) == {"model.safetensors": b"many", "config.json": b"{}"}


def test_a_repository_and_a_branch_are_created_as_asked(hub):
    push(HubId("me/mine", "v2"), {"config.json": b"{}"}, True, None)
    found = hub.repositories["me/mine"]
    assert (
        found.private and found.branches["v2"]["config.json"] == b"{}" and "config.json" not in found.branches["main"]
    )
    push(HubId("me/mine", "v2"), {"config.json": b"[]"}, True, None)
    assert found.branches["v2"]["config.json"] == b"[]"


def test_what_would_be_read_in_its_place_goes_and_all_else_stays(hub):
    hub.put(
        "me/mine", {"model.safetensors": b"old", "experts/gone/manifest.json": b"{}", "LICENSE": b"mine", CARD: b""}
    )
    push(HubId("me/mine"), {"model-00001-of-00001.safetensors": b"new", CARD: b"# new"}, None, None)
    there = hub.repositories["me/mine"].branches["main"]
    assert there == {"model-00001-of-00001.safetensors": b"new", "LICENSE": b"mine", CARD: b"# new"}


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_that_is_seen_by_others_than_asked_for_is_left_alone(hub, private):
    hub.put("me/mine", {})
    hub.repositories["me/mine"].private = not private
    with pytest.raises(WeightsError, match=f"me/mine: private: the repository already exists.*expected {private}"):
        push(HubId("me/mine"), {"config.json": b"{}"}, private, None)
    assert hub.repositories["me/mine"].branches["main"] == {}


REFUSALS = {
    "/api/repos/create": "You have no right to create this",
    "/api/models/me/new/preupload": "The quota is used up",
    "/me/new.git": "The quota of large files is used up",
    "/lfs": "Signature mismatch",
    "/api/models/me/new/commit": "A commit is under way",
}


@pytest.mark.parametrize("at", REFUSALS)
def test_a_failed_upload_says_what_the_hub_answered_and_nothing_has_changed(hub, at):
    hub.refusals[at] = 403, REFUSALS[at]
    with pytest.raises(WeightsError, match=f"^me/new@main: the push failed: .*{REFUSALS[at]}.*hf auth login") as e:
        push(HubId("me/new"), {"model.safetensors": b"x"}, None, "secret-token")
    assert "s3cret" not in str(e.value), "which is as good as a password, for some minutes"
    assert at.endswith("create") or "model.safetensors" not in hub.repositories["me/new"].branches["main"]


def test_a_push_without_a_network_is_refused_soon(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="me/new@main: the push failed: ConnectError"):
        push(HubId("me/new"), {}, None, None)
    offline(monkeypatch)
    with pytest.raises(WeightsError, match="offline mode is enabled"):
        push(HubId("me/new"), {}, None, None)


@pytest.mark.parametrize(
    ("name", "branch"),
    [("mine", None), ("me/mine@v1", None), ("a/b/c", None), ("me/mine", ""), ("me/mine", "../x"), ("", "v1")],
)
def test_what_no_repository_can_be_called_is_refused(name, branch):
    with pytest.raises(RecipeError, match="not the name of a repository of the hub"):
        repository(name, branch)
