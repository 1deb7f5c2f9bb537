"""Does the process start only where it may, drain on SIGTERM, and swap its model without a failed request?"""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from small_server import WORDS, build, running

import moesaic
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.generate.trace import read_trace
from moesaic.serve.conversations import Held
from moesaic.serve.server import Entry, Limits, Listening, Place, bound

KEY = "a-key-of-enough-length"


def started(mixture: Path, *options: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """`moesaic serve` as a process, and its address."""
    command = [sys.executable, "-m", "moesaic", "serve", str(mixture), "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    line = process.stdout.readline()
    assert " at http://127.0.0.1:" in line, line + process.stderr.read()
    return process, line.split(" at ")[1].strip().removesuffix("/v1")


def chat(url: str, **fields) -> httpx2.Response:
    body = {
        "model": "mixture",
        "messages": [{"role": "user", "content": "owl"}],
        "max_tokens": 4,
        "temperature": 0,
    } | fields
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def test_a_process_answers_ends_what_it_began_on_sigterm_and_exits_with_0(mixture, tmp_path):
    process, url = started(mixture, "--trace", str(tmp_path / "trace.jsonl"), "--name", "mixture")
    answers = []
    with process:
        assert chat(url).json()["routing"]["expert"] == "birds"
        body = {
            "model": "mixture:base",
            "messages": [{"role": "user", "content": "owl"}],
            "max_tokens": 200,
            "temperature": 0,
        }
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            answers.append(next(lines))
            process.send_signal(signal.SIGTERM)
            answers += [line for line in lines if line]
        assert answers[-1] == "data: [DONE]" and '"finish_reason":"length"' in answers[-2]
        assert process.wait(60) == 0, process.stderr.read()
        with pytest.raises(httpx2.ConnectError):
            chat(url)
        assert "Traceback" not in process.stderr.read()
    assert [one.finish for one in read_trace(tmp_path / "trace.jsonl")] == ["length"] * 2


def test_a_key_comes_from_a_file_or_the_environment_and_a_bad_one_is_refused(mixture, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    process, url = started(mixture, "--api-key-file", str(tmp_path / "key"), MOESAIC_API_KEY="another-key-of-length")
    with process:
        with_key = {"authorization": f"Bearer {KEY}"}
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        assert httpx2.get(f"{url}/v1/models", headers=with_key).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    command = [sys.executable, "-m", "moesaic", "serve", str(mixture), "--port", "0"]
    short = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MOESAIC_API_KEY": "short"})
    assert short.returncode == 2 and "not an API key; expected 16 or more" in short.stderr
    assert "short" not in short.stderr.replace("short ", "") or short.stderr.count("\n") == 1


def test_without_a_key_only_this_machine_may_ask():
    with pytest.raises(RecipeError, match="host: only this machine may ask a server without a key; .*api-key-file"):
        Listening(host="0.0.0.0")
    assert Listening(host="0.0.0.0", entry=Entry(key=KEY)).host == "0.0.0.0"
    assert [Listening(host=host).host for host in ("127.0.0.1", "localhost", "::1")]


def test_plain_models_and_single_experts_are_served_too(mixture):
    with running("shipped:tiny", Limits(rows=2)) as served:
        assert [one.id for one in served.openai.models.list()] == ["mix"]
        prompt = [{"role": "user", "content": "Once upon"}]
        made = served.openai.chat.completions.create(model="mix", messages=prompt, max_tokens=5, temperature=0)
        expected = moesaic.load("shipped:tiny").generate(prompt, max_new_tokens=5)
        assert made.choices[0].message.content == expected.text and made.routing["expert"] == "base"
        assert served.chat("x", model="mix:base").status_code == 404
    with running(mixture.parent / "birds", Limits(rows=2), base=str(mixture.parent / "base")) as served:
        assert [one.id for one in served.openai.models.list()] == ["mix", "mix:birds", "mix:base"]
        expected = moesaic.load(mixture).generate(
            [{"role": "user", "content": "add"}], max_new_tokens=6, expert="birds"
        )
        found = served.chat("add").json()
        assert found["choices"][0]["message"]["content"] == expected.text and found["routing"]["expert"] == "birds"


def test_what_writes_no_text_or_has_no_name_is_refused(mixture, tmp_path, monkeypatch):
    assert Place("shipped:tiny").called == "tiny" and Place("runs/demo").called == "demo"
    assert Place(str(mixture)).called == "mixture" and Place("org/name@main").called == "name"
    with pytest.raises(RecipeError, match="not a name for a model"):
        Place("x", name="a:b").called  # noqa: B018
    with pytest.raises(RecipeError, match="decisions to trace"):
        Place("shipped:tiny", trace=tmp_path / "t.jsonl").load()

    class Classifies:
        @property
        def writer(self):
            raise CompatibilityError("this mixture answers with labels and predicts no text")

    monkeypatch.setattr("moesaic.serve.server.load", lambda *_, **__: Classifies())
    with pytest.raises(CompatibilityError, match="labels"):
        Place("x").load()


def test_a_port_in_use_is_named(served):
    host, port = served.server.socket.getsockname()
    with pytest.raises(RecipeError, match=f"port: cannot listen: {host}:{port}"):
        bound(host, port)


def test_the_address_can_be_reached_before_the_server_runs():
    early = bound("127.0.0.1", 0)
    with early, socket.create_connection(early.getsockname(), timeout=10):
        pass


def test_collections_pass_over_what_is_loaded(mixture):
    gc.unfreeze()
    with running(mixture) as served:
        served.chat("the owl")
        assert gc.get_freeze_count() > 100_000, "a full collection would stop every answer"


# --- swaps ------------------------------------------------------------------------------------------------------------


def text_of(served, **fields) -> tuple[str, str]:
    found = served.chat("the owl", model="mix:birds", max_tokens=30, **fields).json()
    return found["routing"]["mixture"], found["choices"][0]["message"]["content"]


def test_a_swap_under_load_fails_no_request_and_each_answer_is_of_one_version(tmp_path, capsys):
    old, new = build(tmp_path / "old"), build(tmp_path / "new", seeds=(5, 6))
    shutil.copytree(old, tmp_path / "served")
    with running(tmp_path / "served", Limits(rows=16, queue=64)) as served:
        before = text_of(served)
        answers, stopped, failures = [], threading.Event(), []

        def asks() -> None:
            while not stopped.is_set():
                try:
                    answers.append(text_of(served))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=asks) for _ in range(8)]
        for thread in threads:
            thread.start()
        served.until(lambda: len(answers) > 8)
        (tmp_path / "served").rename(tmp_path / "gone")
        shutil.copytree(new, tmp_path / "served")
        served.until(lambda: bool(served.figure('moesaic_swaps_total{outcome="done"}')))
        count = len(answers)
        served.until(lambda: len(answers) > count + 16)
        stopped.set()
        for thread in threads:
            thread.join(60)
        after = text_of(served)
        assert not failures and before[0] != after[0] and before[1] != after[1]
        assert {*answers} == {before, after}, "each is entirely of the old or the new"
        served.until(lambda: len(served.server.worker.versions) == 1)
        alone = moesaic.load(new).generate([{"role": "user", "content": "the owl"}], max_new_tokens=30, expert="birds")
        assert after[1] == alone.text


def test_a_version_that_cannot_be_loaded_changes_nothing(tmp_path, capsys):
    place = build(tmp_path / "one")
    with running(place, Limits(rows=2)) as served:
        before = text_of(served)
        (place / "router" / "router.safetensors").write_bytes(b"damaged")
        served.server.reload()
        served.until(lambda: bool(served.figure('moesaic_swaps_total{outcome="failed"}')))
        assert text_of(served) == before and "the new version is not served" in capsys.readouterr().err


def test_sighup_loads_another_router(tmp_path):
    first, second = build(tmp_path / "first"), build(tmp_path / "second", words=[*reversed(WORDS)])
    link = tmp_path / "link"
    link.symlink_to(first)
    process, url = started(link, "--name", "mixture")
    with process:
        assert chat(url).json()["routing"]["expert"] == "birds"
        link.unlink()
        link.symlink_to(second)
        process.send_signal(signal.SIGHUP)
        assert "swapped to" in process.stderr.readline()
        assert chat(url).json()["routing"]["expert"] == "sums"
        process.terminate()
        assert process.wait(60) == 0


def test_a_held_expert_that_a_swap_removes_is_routed_anew(mixture):
    with running(mixture, Limits(rows=2)) as served:
        assert served.chat("the owl", session_id="x").json()["routing"]["expert"] == "birds"
        served.server.worker.conversations._held = type(served.server.worker.conversations._held)(
            dict.fromkeys(served.server.worker.conversations._held, Held("gone", {"gone": 1.0}))
        )
        found = served.chat("add the owl", session_id="x").json()["routing"]
        assert (found["reason"], found["held_from"]) == ("router", None)
