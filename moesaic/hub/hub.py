"""The Hugging Face hub: a repository as a folder of the local cache, and files of ours as a commit of a repository.

Knows nothing about what is in the files. Every call goes through `huggingface_hub`, by its settings: `HF_ENDPOINT`,
`HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_ETAG_TIMEOUT`.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic import __version__
from moesaic.errors import MoesaicWarning, RecipeError, WeightsError, clipped
from moesaic.files import disk
from moesaic.sections.places import HubId, hub_id

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*merges.txt", "*vocab.txt"]
"""What is asked of the hub: nothing that could run code."""

TWICE = ["original/*", "consolidated*", "checkpoint-*"]
"""What is not: the same weights in another layout, and states of the training that made them."""

CARD = "README.md"

HINT = "check the name, the network and HF_HUB_OFFLINE; for a gated or private one, log in with `hf auth login`"


def download(wanted: HubId) -> Path:
    """The snapshot of a repository in the cache, complete for our purposes; the folder is called as its commit.

    The hub is asked first, and given `HF_HUB_ETAG_TIMEOUT` seconds (10): the client by itself waits without end for one
    that does not answer. Where it gives nothing, the copy in the cache is used, with a warning unless HF_HUB_OFFLINE
    asks for that. WeightsError where there is none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    def snapshot(cached: bool) -> Path:
        name, revision = wanted.name, wanted.revision
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=TWICE, local_files_only=cached
            )
        )

    with answering("no such folder, and the hub does not give it", str(wanted), Path(HF_HUB_CACHE)):
        try:
            client().model_info(wanted.name, revision=wanted.revision, timeout=HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            try:
                found = snapshot(cached=True)
            except LocalEntryNotFoundError:
                raise error from None  # what the hub said tells more than that the cache has nothing
            if not isinstance(error, OfflineModeIsEnabled):
                text = f"{wanted}: the copy in the cache is used, of commit {found.name}: {said(error)}"
                warnings.warn(text, MoesaicWarning, stacklevel=2)
            return found
        return snapshot(cached=False)


def repository(name: str, branch: str | None) -> HubId:
    """Where something is to be pushed; RecipeError where no repository can be called so."""
    found = hub_id(name if branch is None else f"{name}@{branch}")
    if found is None or found.revision != branch:
        got = repr(name) if branch is None else f"{name!r}, branch {branch!r}"
        raise RecipeError("not a name for a repository of the hub", expected="owner/name, and a branch", got=got)
    return found


def push(target: HubId, files: Mapping[str, Path | bytes], private: bool | None, token: str | None) -> str:
    """Make `files`, by their names there, the content of a branch in one commit. Returns the commit's address.

    The repository is created where it is missing, `private` or as its owner's are by default, and so is the branch. Of
    what was there before, files of the kinds that models are read from go, as they would be read instead; any other
    stays. WeightsError with what the hub answered.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    api, name, branch = client(token), target.name, target.revision
    with answering("the hub does not take it", str(target)):
        try:
            standing = api.model_info(name, timeout=HF_HUB_ETAG_TIMEOUT)
        except RepositoryNotFoundError:
            api.create_repo(name, private=private)
        else:
            if private is not None and private != standing.private:
                what, got = "the repository is there already", "private" if standing.private else "public"
                hint = "change that on the hub, or leave it as it is and do not say it here"
                raise WeightsError(what, path=name, field="private", expected=private, got=got, hint=hint)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        there = {*api.list_repo_files(name, revision=branch)} - files.keys()
        operations: list[CommitOperationDelete | CommitOperationAdd] = [
            *(CommitOperationDelete(old) for old in sorted(filter_repo_objects(there, allow_patterns=PATTERNS))),
            *(CommitOperationAdd(new, it if isinstance(it, bytes) else str(it)) for new, it in files.items()),
        ]
        message = f"Pushed by moesaic {__version__}"
        return api.create_commit(name, operations, commit_message=message, revision=branch).commit_url


def client(token: str | bool | None = None) -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="moesaic", library_version=__version__)


@contextmanager
def answering(what: str, path: str, cache: Path | None = None) -> Iterator[None]:
    """Raises whatever the client raises as WeightsError with what the hub said; a failing disk as StorageError."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # the client's own, and those of the HTTP library, another one in each of its versions
        if cache and isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            with disk.errors(cache):
                raise
        raise WeightsError(f"{what}: {said(error)}", path=path, hint=HINT) from error


def said(error: Exception) -> str:
    """What went wrong between client and hub, on one line, without what only the hub's own people have a use for.

    Nor the query of an address: where a file is uploaded to, that is the right to do so.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RuntimeError) and error.__cause__:  # of uploads it says itself only which file it was
        text += f" {error.__cause__}"
    return clipped(re.sub(r"\(Request ID: [^)]*\)|For more information check: \S+|(?<=\w)\?[^\s']*", "", text), 300)
