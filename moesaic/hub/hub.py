"""The Hugging Face hub: downloads repositories into the local cache, pushes files as a commit.

Knows nothing about the files' content. Every call goes through `huggingface_hub` and its settings: `HF_ENDPOINT`,
`HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_ETAG_TIMEOUT`.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic import __version__
from moesaic.errors import MoesaicWarning, RecipeError, WeightsError, clipped
from moesaic.files import disk
from moesaic.sections.places import HubId, hub_id

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*merges.txt", "*vocab.txt"]
"""Files to download: none that could run code."""

TWICE = ["original/*", "consolidated*", "checkpoint-*"]
"""Files to skip: the same weights in another layout, and states of their training."""

CARD = "README.md"

HINT = "check the name, the network and HF_HUB_OFFLINE; for a gated or private one, log in with `hf auth login`"


def download(wanted: HubId) -> Path:
    """Download a repository into the cache, and return the folder of its snapshot, whose name is the commit.

    A first request waits at most `HF_HUB_ETAG_TIMEOUT` seconds (10), as the client itself would wait without end. Where
    the request fails, the cached copy is used, with a warning unless HF_HUB_OFFLINE is set. WeightsError without one.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    def snapshot(cached: bool) -> Path:
        get = partial(snapshot_download, allow_patterns=PATTERNS, ignore_patterns=TWICE)
        return Path(get(wanted.name, revision=wanted.revision, local_files_only=cached))

    with answering("no such folder, and the download failed", wanted.typed, Path(HF_HUB_CACHE)):
        try:
            client().model_info(wanted.name, revision=wanted.revision, timeout=HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            try:
                found = snapshot(cached=True)
            except LocalEntryNotFoundError:
                raise error from None  # says more than the error of the cache
            if not isinstance(error, OfflineModeIsEnabled):
                copy = f"the cached copy of commit {found.name}"
                text = f"{wanted.typed}: using {copy}, as the request failed: {reason(error)}"
                warnings.warn(text, MoesaicWarning, stacklevel=2)
            return found
        return snapshot(cached=False)


def repository(name: str, branch: str | None) -> HubId:
    """The repository and branch to push to; RecipeError for an invalid name."""
    found = hub_id(name if branch is None else f"{name}@{branch}")
    if found is None or found.revision != branch:
        got = repr(name) if branch is None else f"{name!r}, branch {branch!r}"
        raise RecipeError("not the name of a repository of the hub", expected="owner/name, and a branch", got=got)
    return found


def push(target: HubId, files: Mapping[str, Path | bytes], private: bool | None, token: str | None) -> str:
    """Push `files`, by their names in the repository, to a branch in one commit, and return the commit's address.

    Creates a missing branch and a missing repository, `private` or by its owner's default. Deletes old files that match
    PATTERNS, as models would be read from them; others stay. WeightsError with the hub's answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    api, name, branch = client(token), target.name, target.revision
    with answering("the push failed", str(target)):
        try:
            existing = api.model_info(name, timeout=HF_HUB_ETAG_TIMEOUT)
        except RepositoryNotFoundError:
            api.create_repo(name, private=private)
        else:
            if private is not None and private != existing.private:
                what, got = "the repository already exists", "private" if existing.private else "public"
                hint = "change its visibility on the hub, or leave out the option"
                raise WeightsError(what, path=name, field="private", expected=private, got=got, hint=hint)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        old = {*api.list_repo_files(name, revision=branch)} - files.keys()
        operations: list[CommitOperationDelete | CommitOperationAdd] = [
            *(CommitOperationDelete(path) for path in sorted(filter_repo_objects(old, allow_patterns=PATTERNS))),
            *(CommitOperationAdd(path, at if isinstance(at, bytes) else str(at)) for path, at in files.items()),
        ]
        message = f"Pushed by moesaic {__version__}"
        return api.create_commit(name, operations, commit_message=message, revision=branch).commit_url


def client(token: str | bool | None = None) -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="moesaic", library_version=__version__)


@contextmanager
def answering(what: str, path: str, cache: Path | None = None) -> Iterator[None]:
    """Raise errors of the client as WeightsError with the hub's answer, and errors of the disk as StorageError."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # the client's own, and those of its HTTP library, which differs between its versions
        if cache and isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            with disk.errors(cache):
                raise
        raise WeightsError(f"{what}: {reason(error)}", path=path, hint=HINT) from error


def reason(error: Exception) -> str:
    """The client's error on one line, without request ids and without the queries of addresses, which may be secret."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RuntimeError) and error.__cause__:  # the error of an upload names only the file
        text += f" {error.__cause__}"
    return clipped(re.sub(r"\(Request ID: [^)]*\)|For more information check: \S+|(?<=\w)\?[^\s']*", "", text), 300)
