"""Do clients of OpenAI's API get from the routes what they expect, and does every answer say which expert gave it?"""

import json
import random
import string

import openai
import pytest
from small_server import EXPERTS, Running, events

import moesaic
from moesaic.generate.trace import read_trace
from moesaic.serve.choosing import believed

TALK = [
    {"role": "user", "content": "sing of the owl"},
    {"role": "assistant", "content": "hoo"},
    {"role": "user", "content": "and again"},
]


def ask(served: Running, **fields):
    usual = {
        "model": "mix",
        "messages": [{"role": "user", "content": "add the sum"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    return served.openai.chat.completions.create(**(usual | fields))


@pytest.fixture(scope="session")
def local(mixture):
    return moesaic.load(mixture)


# --- the official client ----------------------------------------------------------------------------------------------


def test_a_chat_gets_the_text_of_generate_and_says_who_gave_it(served, local):
    for text, expert, reason in (
        ("add the sum", "sums", "router"),
        ("the owl and the wren", "birds", "router"),
        ("neither", "base", "abstained"),
    ):
        expected = local.generate([{"role": "user", "content": text}], max_new_tokens=8)
        made = ask(served, messages=[{"role": "user", "content": text}])
        (choice,) = made.choices
        assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
        assert choice.finish_reason == expected.finish and made.object == "chat.completion" and made.model == "mix"
        assert made.usage.completion_tokens == len(expected.ids)
        assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
        assert (made.routing["expert"], made.routing["reason"]) == (expert, reason)
        assert made.routing["probabilities"] == pytest.approx(expected.routing.probabilities)
        assert made.routing["weights"] == pytest.approx(expected.routing.weights)
        assert made.routing["confidence"] == made.routing["probabilities"][expert]


def test_a_conversation_is_read_whole(served, local):
    made = ask(served, messages=TALK)
    assert made.choices[0].message.content == local.generate(TALK, max_new_tokens=8).text
    assert made.routing["expert"] == "birds"


def test_a_completion_continues_the_text_as_it_is(served, local):
    expected = local.generate("add the sum", max_new_tokens=8, raw=True)
    made = served.openai.completions.create(model="mix", prompt="add the sum", max_tokens=8, temperature=0)
    assert made.choices[0].text == expected.text and made.object == "text_completion"
    assert made.routing["expert"] == "sums"
    ids = local.engine.tokenizer.begin("add the sum", raw=True)
    again = served.openai.completions.create(model="mix", prompt=ids, max_tokens=8, temperature=0)
    assert again.choices[0].text == expected.text
    usual = served.openai.completions.create(model="mix", prompt="add the sum", temperature=0)
    assert usual.usage.completion_tokens <= 16


def test_a_stream_has_one_role_one_finish_and_the_usage_that_was_asked(served):
    whole = ask(served)
    chunks = list(ask(served, stream=True, stream_options={"include_usage": True}))
    assert [one.choices[0].delta.role for one in chunks if one.choices and one.choices[0].delta.role] == ["assistant"]
    assert [one.choices[0].finish_reason for one in chunks if one.choices and one.choices[0].finish_reason] == [
        "length"
    ]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content
    assert [one.usage for one in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({one.id for one in chunks}) == 1
    assert chunks[0].routing == chunks[-1].routing and chunks[0].routing["expert"] == "sums"
    assert not [one for one in chunks[1:-1] if hasattr(one, "routing")]
    plain = list(ask(served, stream=True))
    assert plain[-1].choices[0].finish_reason == "length" and plain[-1].routing["id"] == plain[0].routing["id"]
    assert all(one.usage is None for one in plain)


def test_logprobs_are_those_of_the_tokens_streamed_or_not(served):
    whole = ask(served, logprobs=True, top_logprobs=3)
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == whole.usage.completion_tokens
    for one in tokens:
        assert len(one.top_logprobs) == 3 and one.logprob == one.top_logprobs[0].logprob <= 0, "greedy"
        assert one.bytes is None or bytes(one.bytes).decode() == one.token
    streamed = [
        token
        for chunk in ask(served, logprobs=True, top_logprobs=3, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert [one.token for one in streamed] == [one.token for one in tokens]
    assert ask(served, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(served).choices[0].logprobs is None
    made = served.openai.completions.create(model="mix", prompt="add", max_tokens=5, temperature=0, logprobs=2)
    columns = made.choices[0].logprobs
    assert len(columns.tokens) == len(columns.token_logprobs) == len(columns.text_offset) == 5
    assert [len(top) for top in columns.top_logprobs] == [2] * 5


def test_n_seeds_and_stops_are_those_of_generate(served, local):
    some = ask(served, n=3, seed=7, temperature=1.0)
    assert [one.index for one in some.choices] == [0, 1, 2]
    texts = [one.message.content for one in some.choices]
    prompt = [{"role": "user", "content": "add the sum"}]
    alone = [local.generate(prompt, max_new_tokens=8, temperature=1.0, seed=7 + index).text for index in range(3)]
    assert texts == alone
    assert [one.message.content for one in ask(served, n=3, seed=7, temperature=1.0).choices] == texts
    assert some.usage.completion_tokens == 24
    chunks = list(ask(served, n=3, seed=7, temperature=1.0, stream=True))
    for index, text in enumerate(texts):
        own = [one.choices[0] for one in chunks if one.choices[0].index == index]
        assert "".join(one.delta.content or "" for one in own) == text
        assert [one.finish_reason for one in own if one.finish_reason] == ["length"]
    full = ask(served, max_tokens=20).choices[0].message.content
    word = full[4:6]
    stopped = ask(served, max_tokens=20, stop=[word]).choices[0]
    assert stopped.message.content == full[: full.index(word)] and stopped.finish_reason == "stop"


def test_the_models_are_the_mixture_and_its_experts_with_their_parent(served):
    models = served.openai.models.list().data
    assert [one.id for one in models] == ["mix", "mix:sums", "mix:birds", "mix:base"]
    assert [one.parent for one in models] == [None, "mix", "mix", "mix"]
    assert served.openai.models.retrieve("mix:birds").id == "mix:birds"
    with pytest.raises(openai.NotFoundError, match="did you mean 'mix:birds'"):
        served.openai.models.retrieve("mix:brids")


def test_a_model_with_an_expert_forces_it(served, local):
    for expert in (*EXPERTS, "base"):
        made = ask(served, model=f"mix:{expert}")
        prompt = [{"role": "user", "content": "add the sum"}]
        assert made.choices[0].message.content == local.generate(prompt, max_new_tokens=8, expert=expert).text
        assert made.model == f"mix:{expert}"
        assert (made.routing["expert"], made.routing["reason"]) == (expert, "forced")
        assert made.routing["probabilities"] is made.routing["confidence"] is None


# --- streams ----------------------------------------------------------------------------------------------------------


def random_request(rng: random.Random) -> dict:
    """A request in which much varies: sampling, stops, number, characters of several bytes."""
    words = ["add", "owl", "the", "sum", "wren", "é", "日本", "\n", "x" * rng.randrange(1, 9)]
    text = "so " + " ".join(rng.choice(words) for _ in range(rng.randrange(1, 8)))
    body = {"model": rng.choice(["mix", "mix:sums", "mix:base"]), "messages": [{"role": "user", "content": text}]}
    body |= {"max_tokens": rng.randrange(1, 14), "temperature": rng.choice([0, 0.7, 1.5]), "seed": rng.randrange(9999)}
    body |= {"n": rng.randrange(1, 4), "top_k": rng.choice([0, 5, 40]), "top_p": rng.choice([1, 0.9])}
    if rng.random() < 0.5:
        body["stop"] = [rng.choice(string.ascii_letters + " ,\n") for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": rng.randrange(0, 3)}
    return body


def same_when_streamed(served: Running, body: dict) -> None:
    whole = served.post("/v1/chat/completions", body).json()
    stream = events(served.post("/v1/chat/completions", body | {"stream": True}))
    assert stream.count("[DONE]") == 1 and stream[-1] == "[DONE]"
    for choice in whole["choices"]:
        own = [one["choices"][0] for one in stream[:-1] if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"], body
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == [choice["finish_reason"]]
        assert [one["delta"]["role"] for one in own if "role" in one["delta"]] == ["assistant"]
        if choice["logprobs"]:
            tokens = [token for one in own if one["logprobs"] for token in one["logprobs"]["content"]]
            assert [one["token"] for one in tokens] == [one["token"] for one in choice["logprobs"]["content"]]


def test_a_stream_joined_is_the_answer_that_is_not_streamed(served):
    rng = random.Random(0)
    for _ in range(40):
        same_when_streamed(served, random_request(rng))


@pytest.mark.faults
def test_a_thousand_streams_joined_are_the_answers_that_are_not_streamed(served):
    rng = random.Random(1)
    for _ in range(1000):
        same_when_streamed(served, random_request(rng))


# --- one decision, said everywhere alike ------------------------------------------------------------------------------


def test_body_headers_route_trace_and_metrics_say_the_same(served, trace):
    rng, seen = random.Random(2), {}
    before = {
        (expert, reason): served.figure(f'moesaic_decisions_total{{expert="{expert}",reason="{reason}"}}')
        for expert in (*EXPERTS, "base")
        for reason in ("router", "forced", "abstained")
    }
    counts = dict.fromkeys(before, 0)
    for index in range(100):
        body = random_request(rng) | {"stream": index % 3 == 0}
        body["max_tokens"] = 3
        told = served.post("/v1/route", {key: body[key] for key in ("model", "messages")}).json()["routing"]
        response = served.post("/v1/chat/completions", body)
        found = events(response)[0]["routing"] if body["stream"] else response.json()["routing"]
        seen[found["id"]] = found
        counts[found["expert"], found["reason"]] += 1
        same = {key: found[key] for key in ("mixture", "expert", "confidence", "probabilities", "weights", "reason")}
        assert same == {key: told[key] for key in same}
        assert response.headers["x-moesaic-decision"] == found["id"]
        assert response.headers["x-moesaic-expert"] == found["expert"]
        assert response.headers["x-moesaic-reason"] == found["reason"]
        assert json.loads(response.headers["x-moesaic-confidence"]) == found["confidence"]
        assert served.http.get(f"/v1/route/{found['id']}").json()["routing"] == found
    rows = {one.id: one for one in read_trace(trace) if one.id in seen}
    assert rows.keys() == seen.keys()
    for id, row in rows.items():
        found = seen[id]
        assert (row.chosen, row.reason, row.mixture) == (found["expert"], found["reason"], found["mixture"])
        assert (row.probabilities, row.weights) == (found["probabilities"], found["weights"])
        assert row.forced == (found["reason"] == "forced") and row.messages is not None
        assert served.http.get(f"/v1/route/{id}").json()["tokens_made"] == row.tokens_made > 0
    for (expert, reason), count in counts.items():
        line = f'moesaic_decisions_total{{expert="{expert}",reason="{reason}"}}'
        assert served.figure(line) == before[expert, reason] + count


def test_errors_after_the_decision_have_its_headers(served, monkeypatch):
    def fails(*_):
        raise RuntimeError("the engine fails")

    monkeypatch.setattr(served.server.worker.version.scheduler, "step", fails)
    response = served.chat("add the sum")
    assert response.status_code == 500 and response.headers["x-moesaic-expert"] == "sums"
    assert response.json()["error"]["code"] == "internal_error" and "fails" not in response.text
    monkeypatch.undo()
    assert served.chat("add the sum").status_code == 200, "the next one is answered"


# --- who may answer ---------------------------------------------------------------------------------------------------


def test_the_router_chooses_among_the_allowed(served):
    def chosen(text: str, **lists):
        found = served.chat(text, routing=lists).json()["routing"]
        assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-9)
        return found["expert"], found["reason"]

    assert chosen("add the owl and the wren", allow=["sums"]) == ("sums", "router")
    assert chosen("add the owl and the wren", allow=["sums", "base"]) == ("sums", "router")
    assert chosen("add the sum of the owl", exclude=["sums", "base"]) == ("birds", "router")
    assert chosen("neither", exclude=["sums"]) == ("base", "abstained")
    nobody = served.chat("neither", routing={"allow": ["sums"]})
    assert nobody.status_code == 400 and nobody.json()["error"]["param"] == "routing.allow"
    barred = served.chat("add", model="mix:sums", routing={"exclude": ["sums"]})
    assert barred.status_code == 400 and barred.json()["error"]["param"] == "routing"
    empty = served.chat("add", routing={"allow": ["sums"], "exclude": ["sums"]})
    assert empty.status_code == 400 and "nobody" in empty.json()["error"]["message"]


def test_a_misspelt_expert_is_refused_with_the_nearest_name(served):
    rng, known = random.Random(3), {*EXPERTS, "base"}
    for _ in range(100):
        expert = rng.choice(EXPERTS)
        at = rng.randrange(len(expert))
        wrong = rng.choice([expert[:at] + expert[at + 1 :], expert[:at] + rng.choice("xyz") + expert[at:]])
        if wrong in known:
            continue
        response = served.chat("add the sum", model=f"mix:{wrong}")
        error = response.json()["error"]
        assert response.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
        assert f"did you mean 'mix:{expert}'?" in error["message"], wrong
        listed = served.chat("add the sum", routing={"allow": [wrong]})
        assert listed.status_code == 400 and f"'{expert}'" in listed.json()["error"]["message"]
    assert "did you mean 'mix:sums'" in served.chat("add", model="sums").json()["error"]["message"]


def test_a_conversation_keeps_its_expert_until_another_wins_by_the_margin(served):
    first = served.chat("sing of the owl and the wren").json()
    said = first["choices"][0]["message"]["content"]
    begun = [
        {"role": "user", "content": "sing of the owl and the wren"},
        {"role": "assistant", "content": f" {said}\n"},
    ]

    def turn(*more, **fields):
        return served.chat("", messages=[*begun, *more], **fields).json()["routing"]

    near = turn({"role": "user", "content": "now add a number"})
    assert (near["expert"], near["reason"], near["held_from"]) == ("birds", "held", None)
    alone = served.post("/v1/route", {"model": "mix", "messages": [{"role": "user", "content": "now add a number"}]})
    told = alone.json()["routing"]
    assert told["expert"] == "sums", "by itself the turn is another expert's"
    shares = believed(first["routing"]["probabilities"], told["probabilities"], ["sums", "birds"], size=16)
    assert near["probabilities"] == pytest.approx({**shares, "base": 0.0}, abs=1e-6)
    assert turn({"role": "user", "content": "why?"})["expert"] == "birds", "a turn of nobody's changes nothing"
    assert turn({"role": "user", "content": "add the sum, add the sum"})["expert"] == "birds", (
        "a short turn says little"
    )
    far = turn({"role": "user", "content": "add the sum, " * 6})
    assert (far["expert"], far["reason"], far["held_from"]) == ("sums", "router", "birds")
    tool = turn({"role": "tool", "tool_call_id": "1", "content": "add the sum, and add the sum"})
    assert (tool["expert"], tool["reason"], tool["probabilities"]) == ("birds", "tool", None)
    barred = turn({"role": "tool", "content": "add the sum"}, routing={"exclude": ["birds"]})
    assert (barred["expert"], barred["reason"]) == ("sums", "router")
    forced = turn({"role": "user", "content": "now add a number"}, model="mix:base")
    assert (forced["expert"], forced["reason"]) == ("base", "forced")


def test_a_session_is_held_by_its_name_and_a_forced_answer_does_not_hold_it(served):
    def turn(text: str, **fields):
        return served.chat(text, session_id="one", **fields).json()["routing"]

    assert turn("the owl")["reason"] == "router"
    assert turn("add the owl")["expert"] == "birds"
    assert turn("add", model="mix:sums")["reason"] == "forced"
    after = turn("add the wren")
    assert (after["expert"], after["held_from"]) == ("birds", None), "as before the forced answer"
    switched = turn("add the sum, " * 6)
    assert (switched["expert"], switched["held_from"]) == ("sums", "birds")
    body = {"model": "mix", "messages": [{"role": "user", "content": "add the owl"}], "max_tokens": 1}
    other = served.post("/v1/chat/completions", body, **{"x-session-id": "one"}).json()["routing"]
    assert (other["expert"], other["reason"]) == ("sums", "router"), "the header names the same session"


# --- decisions and corrections ----------------------------------------------------------------------------------------


def test_a_decision_is_the_routers_probabilities_of_the_choices(served):
    def decided(*values: str, text: str = "add the owl and the wren"):
        question = {"type": "choice", "name": "who", "choices": [{"value": value} for value in values]}
        return served.post("/v1/decisions", {"model": "mix", "input": text, "questions": [question]})

    found = decided("sums", "birds", "base").json()
    (answer,) = found["answers"]
    shares = {one["value"]: one["probability"] for one in answer["probabilities"]}
    asked = {"model": "mix", "messages": [{"role": "user", "content": "add the owl and the wren"}]}
    route = served.post("/v1/route", asked).json()["routing"]
    assert shares == route["probabilities"] and sum(shares.values()) == pytest.approx(1, abs=1e-6)
    assert answer["choice"] == route["expert"] == "birds" and answer["name"] == "who" and answer["type"] == "choice"
    assert 0 < answer["confidence"] < 1
    assert found["usage"]["input_tokens"] == found["usage"]["total_tokens"] > 0
    some = decided("base", "sums").json()["answers"][0]
    assert [one["probability"] for one in some["probabilities"]] == [0, 1] and some["confidence"] == 1
    wrong = decided("sums", "brids")
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "questions[0].choices[1].value"
    assert "'birds'" in wrong.json()["error"]["message"]
    twice = decided("sums", "sums")
    assert twice.status_code == 400
    kind = {"model": "mix", "input": "x", "questions": [{"type": "predicate"}]}
    assert served.post("/v1/decisions", kind).json()["error"]["param"] == "questions[0].type"


def test_a_correction_is_written_into_the_trace_and_the_last_one_counts(served, trace):
    id = served.chat("the owl").json()["routing"]["id"]
    for expert in ("base", "sums"):
        told = served.post(f"/v1/route/{id}/correction", {"expert": expert})
        assert told.status_code == 200 and told.json()["correction"] == expert
    assert next(one for one in read_trace(trace) if one.id == id).correction == "sums"
    served.post(f"/v1/route/{id}/correction", {"expert": None})
    assert next(one for one in read_trace(trace) if one.id == id).correction is None
    unknown = served.post("/v1/route/dec_none/correction", {"expert": "sums"})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "decision_not_found"
    wrong = served.post(f"/v1/route/{id}/correction", {"expert": "brids"})
    assert wrong.status_code == 400 and "did you mean 'birds'" in wrong.json()["error"]["message"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"temprature": 1}, "temprature"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": 255}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "owl", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [*TALK, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"stop": ""}, "stop"),
        ({"seed": -1}, "seed"),
        ({"session_id": ""}, "session_id"),
    ],
)
def test_what_is_not_honoured_is_refused_by_its_name(served, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(served, extra_body=fields)
    assert caught.value.param == param and caught.value.body["type"] == "invalid_request_error"
    assert isinstance(caught.value.code, str)


def test_neutral_values_and_nulls_are_accepted(served):
    made = ask(served, frequency_penalty=0, presence_penalty=0.0, response_format={"type": "text"}, stop=None, n=None)
    assert made.choices[0].message.content == ask(served).choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": "add"}, {"type": "text", "text": "the sum"}]}]
    assert ask(served, messages=parts).routing["expert"] == "sums"
    assert ask(served, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/chat/completions", "{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", "[" * 100_000, 400, None),
        ("POST", "/v1/chat/completions", "[]", 400, None),
        (
            "POST",
            "/v1/chat/completions",
            '{"model": "mix", "messages": [{"role": "user", "content": "\\ud800"}]}',
            400,
            None,
        ),
        ("POST", "/v1/chat/completions", '{"model": "mix", "messages": [], "temperature": NaN}', 400, None),
        ("GET", "/v1/chat/completions", None, 405, "method_not_allowed"),
        ("GET", "/v1/nothing", None, 404, "route_not_found"),
        ("GET", "/v1/models/../../etc", None, 404, None),
    ],
)
def test_every_error_has_the_shape_of_openai(served, method, path, content, status, code):
    response = served.http.request(method, path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and response.json().keys() == {"error"}
    assert code is None or error["code"] == code


def test_a_prompt_that_is_too_long_says_so(served):
    with pytest.raises(openai.BadRequestError, match="exceed the model's context"):
        ask(served, messages=[{"role": "user", "content": "owl " * 400}])


def test_health_is_empty_and_metrics_can_be_parsed(served):
    from prometheus_client.parser import text_string_to_metric_families

    assert served.http.get("/health").status_code == 200 and served.http.get("/health").content == b""
    families = {one.name: one for one in text_string_to_metric_families(served.http.get("/metrics").text)}
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"} <= families.keys()
    (info,) = families["vllm:lora_requests_info"].samples
    assert info.labels.keys() == {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}
    assert info.labels["max_lora"] == "2"
