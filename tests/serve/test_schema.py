"""Does no body, whatever it holds, make the server fail, and is every error of the shape of OpenAI's?

schemathesis reads the OpenAPI that is served, and asks each route with bodies that fit it and bodies that do not.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from small_server import running

from moesaic.serve.server import Limits

KEYS = {"message", "type", "param", "code"}
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # the shape checks of the tests do
PHASES = (Phase.explicit, Phase.generate)


@pytest.fixture(scope="module")
def limited(mixture, tmp_path_factory):
    """A server that writes few tokens, so that a body decides quickly."""
    trace = tmp_path_factory.mktemp("limited") / "trace.jsonl"
    with running(mixture, Limits(rows=4, queue=16, new_tokens=3), trace=trace) as one:
        yield one


def asked(limited, examples: int) -> dict[tuple[str, str], set[int]]:
    """Ask every route with so many bodies; returns the statuses of each."""
    schema = schemathesis.openapi.from_url(f"{limited.url}/openapi.json")
    statuses: dict[tuple[str, str], set[int]] = {}
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        for found in schema.get_all_operations():
            operation = found.ok()
            seen = statuses.setdefault((operation.method.upper(), operation.path), set())
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                ask(limited, strategy, seen, examples, known=mode is GenerationMode.POSITIVE)
            except Exception as error:
                if "Unsatisfiable" not in type(error).__name__:
                    raise
    return statuses


def ask(limited, strategy, seen: set[int], examples: int, known: bool) -> None:
    """Ask one route; `known`: with the name of a model that is served, behind which a body is read further."""

    @settings(
        max_examples=examples, deadline=None, phases=PHASES, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def one(case) -> None:
        if known and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "mix"
        response = case.call(base_url=limited.url)
        seen.add(response.status_code)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        if response.status_code >= 400:
            body = response.json()
            assert body.keys() == {"error"} and body["error"].keys() == KEYS, case.as_curl_command()
            assert isinstance(body["error"]["message"], str) and isinstance(body["error"]["code"], str)
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    one()


def test_no_body_makes_the_server_fail(limited):
    statuses = asked(limited, 12)
    assert len(statuses) == 10 and all(statuses.values())
    assert 400 in statuses["POST", "/v1/chat/completions"]
    limited.until(lambda: limited.idle)


@pytest.mark.faults
def test_no_body_of_hundreds_makes_the_server_fail(limited):
    asked(limited, 250)
    limited.until(lambda: limited.idle)


def test_the_openapi_names_every_field_and_no_answer_that_is_not_given(limited):
    found = limited.http.get("/openapi.json").json()
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    assert not [one for one in operations if "422" in one["responses"]] and len(operations) == 10
    body = found["components"]["schemas"]["ChatRequest"]
    assert body["additionalProperties"] is False and {"messages", "session_id", "routing"} <= body["properties"].keys()
    assert {"model", "messages"} == set(body["required"])
