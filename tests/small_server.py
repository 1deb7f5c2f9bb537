"""A small mixture, and real servers over it, each in a thread with a port of its own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch
from openai import OpenAI

from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.compose.mixture import save_mixture
from moesaic.routing import Selection
from moesaic.routing.routers import KeywordRouter
from moesaic.serve.server import Entry, Limits, Listening, Place, Server
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

EXPERTS = ("sums", "birds")
WORDS = [["add", "sum"], ["owl", "wren"]]
SENTENCES = ["add the sum of two and two, please", "the owl and the wren sing in the wood: hoo, hoo"]


def build(folder: Path, words: list[list[str]] = WORDS, seeds: tuple[int, int] = (1, 2)) -> Path:
    """A mixture of two toy experts, which are chosen by words; without these words it abstains."""
    for name in ("base", *EXPERTS, "router", "mixture"):
        (folder / name).mkdir(parents=True)
    tokenizer = Tokenizer.train(SENTENCES, 300)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=300, context=256)
    save_base(folder / "base", decoder, tokenizer, {})
    fingerprint = load_base(folder / "base").fingerprint
    for seed, name in zip(seeds, EXPERTS, strict=True):
        save_expert(folder / name, toy_expert(decoder, seed), fingerprint, {"name": name})
    stored = StoredRouter(KeywordRouter(words), "keyword", EXPERTS, "text", Selection(kind="top_1"), {})
    save_router(folder / "router", stored, fingerprint, {})
    experts = {name: folder / name for name in EXPERTS}
    save_mixture(folder / "mixture", folder / "base", experts, folder / "router", {"name": "mix"})
    return folder / "mixture"


@dataclass
class Running:
    """A server that answers, and its clients."""

    server: Server
    key: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = self.server.address
        if self.key:
            self.headers["authorization"] = f"Bearer {self.key}"
        self.http = httpx2.Client(base_url=self.url, timeout=60, headers=self.headers)
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60)

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        return self.http.post(path, json=body, headers=headers)

    def chat(self, text: str, **fields: Any) -> httpx2.Response:
        """The response to one message of a user, at most 6 tokens and greedy unless `fields` say otherwise."""
        usual = {"model": "mix", "messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0}
        return self.post("/v1/chat/completions", usual | fields)

    def figure(self, line: str) -> float:
        """A sample of /metrics by its name and labels; 0 before the first one."""
        found = [one for one in self.http.get("/metrics").text.splitlines() if one.startswith(f"{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; a test that waits in vain ends."""
        for _ in range(6000):
            if holds():
                return
            time.sleep(0.01)
        raise AssertionError("waited in vain")

    @property
    def idle(self) -> bool:
        """No order is under way and all slots are free."""
        versions = self.server.worker.versions
        return not self.server.worker.jobs and all(version.scheduler.idle for version in versions)


@contextmanager
def running(place: Path | str, limits: Limits | None = None, key: str | None = None, **more: Any) -> Iterator[Running]:
    """A server over a model, until the end of the block."""
    listening = {name: more.pop(name) for name in ("seconds", "drain") if name in more}
    entry = Entry(
        key=key, **{name: more.pop(name) for name in ("hosts", "origins", "body", "body_seconds") if name in more}
    )
    where = Listening(port=0, entry=entry, **listening)
    server = Server(Place(str(place), name="mix", **more), limits or Limits(rows=8), where)
    thread = threading.Thread(target=server.run)
    thread.start()
    one = Running(server, key)
    try:
        yield one
    finally:
        one.http.close()
        one.openai.close()
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def events(response: httpx2.Response) -> list[Any]:
    """The data of a stream; its last event is "[DONE]"."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
