"""Does a client that leaves free its slots, and does an order that takes too long or finds no room end as it should?"""

import random
import socket
import threading

import openai
import pytest
from small_server import Running, events, running

from moesaic.generate.trace import read_trace
from moesaic.serve.server import Limits

LONG = {"max_tokens": 200, "temperature": 0, "model": "mix:base"}  # the toy models write no end


@pytest.fixture(scope="module")
def narrow(mixture, tmp_path_factory):
    """A server that writes two answers at once, and lets one wait; with a trace."""
    trace = tmp_path_factory.mktemp("narrow") / "traffic.jsonl"
    with running(mixture, Limits(rows=2, queue=1), trace=trace) as one:
        yield one, trace


def leave(served: Running, after: int, stream: bool, rng: random.Random) -> None:
    """Ask for a long answer, and close the connection after some bytes of it."""
    import json

    body = {**LONG, "messages": [{"role": "user", "content": "the owl"}], "stream": stream, "n": rng.choice([1, 2])}
    data = json.dumps(body).encode()
    with socket.create_connection(served.server.socket.getsockname(), timeout=60) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        if stream and after:
            connection.recv(after)


def test_clients_that_leave_free_their_slots_and_their_tokens_are_counted(narrow):
    served, trace = narrow
    rng = random.Random(0)
    for index in range(24):
        leave(served, rng.choice([0, 100, 3000]), stream=index % 3 > 0, rng=rng)
        if index % 2:
            served.until(lambda: served.idle)
    served.until(lambda: served.idle)
    assert served.server.worker.version.scheduler.used == 0, "every slot"
    rows = list(read_trace(trace))
    assert {one.finish for one in rows} <= {"aborted", "length"} and any(one.finish == "aborted" for one in rows)
    assert all(one.tokens_made is not None for one in rows)
    written = sum(
        served.figure(f'moesaic_generated_tokens_total{{expert="{expert}"}}') for expert in ("base", "sums", "birds")
    )
    assert sum(one.tokens_made for one in rows) == written
    assert any(0 < one.tokens_made < 200 for one in rows), "some left in the middle"
    assert served.chat("add").status_code == 200


@pytest.mark.slow
def test_five_hundred_clients_that_leave_free_their_slots(narrow):
    served, trace = narrow
    rng = random.Random(1)
    for index in range(500):
        leave(served, rng.choice([0, 1, 400, 3000]), stream=index % 3 > 0, rng=rng)
    served.until(lambda: served.idle)
    experts = ("base", "sums", "birds")
    written = sum(served.figure(f'moesaic_generated_tokens_total{{expert="{expert}"}}') for expert in experts)
    assert sum(one.tokens_made for one in read_trace(trace)) == written
    assert served.server.worker.version.scheduler.used == 0


def slowed(scheduler, seconds: float):
    """A step that takes its time."""
    step, never = scheduler.step, threading.Event()

    def delayed():
        never.wait(seconds)
        return step()

    return delayed


def test_more_than_the_queue_holds_is_told_to_come_back(narrow, monkeypatch):
    served, _ = narrow
    scheduler = served.server.worker.version.scheduler
    monkeypatch.setattr(scheduler, "step", slowed(scheduler, 0.05))
    streams = [served.openai.chat.completions.create(
        messages=[{"role": "user", "content": "owl"}], stream=True, **LONG) for _ in range(2)]  # fmt: skip
    waiting = threading.Thread(target=lambda: served.chat("owl", **LONG))
    waiting.start()
    served.until(lambda: served.figure("moesaic_waiting") == 1)
    assert served.figure("vllm:num_requests_running") == 2 and served.figure("vllm:num_requests_waiting") == 1
    info = next(one for one in served.http.get("/metrics").text.splitlines() if one.startswith("vllm:lora"))
    assert 'max_lora="2"' in info and 'running_lora_adapters="base"' in info and 'waiting_lora_adapters="base"' in info
    refused = served.chat("owl")
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        served.openai.chat.completions.create(messages=[{"role": "user", "content": "owl"}], **LONG)
    assert served.http.get("/health").status_code == 200
    for one in streams:
        one.close()
    waiting.join(60)
    served.until(lambda: served.idle)
    assert served.chat("owl").status_code == 200


def test_an_answer_that_takes_too_long_ends(mixture, tmp_path):
    with running(mixture, Limits(rows=2), seconds=3.0, trace=tmp_path / "t.jsonl") as served:
        scheduler = served.server.worker.version.scheduler
        scheduler.step = slowed(scheduler, 0.3)
        whole = served.chat("add the sum", **{**LONG, "model": "mix"})
        assert whole.status_code == 504 and whole.json()["error"]["code"] == "timeout"
        assert whole.headers["x-moesaic-expert"] == "sums"
        stream = events(served.chat("add", **LONG, stream=True))
        assert stream[-2]["error"]["code"] == "timeout" and stream.count("[DONE]") == 1
        assert not [one for one in stream[:-2] if one["choices"][0]["finish_reason"]]
        served.until(lambda: served.idle)
        assert [one.finish for one in read_trace(tmp_path / "t.jsonl")] == ["timeout"] * 2


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error(mixture):
    with running(mixture, Limits(rows=2)) as served:
        scheduler, step, steps = served.server.worker.version.scheduler, served.server.worker.version.scheduler.step, []

        def fails():
            steps.append(None)
            if len(steps) > 3:
                raise RuntimeError("secret")
            return step()

        scheduler.step = fails
        response = served.chat("add", **LONG, stream=True)
        stream = events(response)
        assert response.status_code == 200 and stream[-1] == "[DONE]" and "secret" not in response.text
        assert stream[-2]["error"]["code"] == "internal_error" and stream[0]["routing"]["expert"] == "base"
        assert served.chat("add").status_code == 200 and served.http.get("/health").status_code == 200
