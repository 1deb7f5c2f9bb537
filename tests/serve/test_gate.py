"""Does nothing come in without the key, from a stranger's host or page, or in a body without end?"""

import socket

import openai
import pytest
from fastapi.routing import APIRoute
from small_server import Running, running

from moesaic.serve.app import Serving, create_app
from moesaic.serve.gate import Entry, Gate
from moesaic.serve.metrics import Metrics

KEY = "a-key-of-enough-length"
PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def closed(mixture):
    """A server with a key, small limits, and a page that may ask."""
    more = {"hosts": ("models.example",), "origins": (PAGE,), "body": 2000, "body_seconds": 0.3}
    with running(mixture, key=KEY, **more) as one:
        yield one


def routes(served: Running) -> list[tuple[str, str]]:
    """Every method and path that is served, and some that are not."""
    app = create_app(Serving(served.server.worker, Metrics(), 1.0, 0))
    found = [(method, one.path) for one in app.routes if isinstance(one, APIRoute) for method in one.methods]
    assert len(found) >= 10
    variants = [("GET", "/openapi.json"), ("POST", "/health/"), ("GET", "/docs"), ("GET", "//v1/models"), ("PUT", "/")]
    variants += [("GET", "/v1/models/"), ("GET", "/V1/models"), ("OPTIONS", "/v1/models"), ("HEAD", "/v1/models")]
    return [
        *found,
        *variants,
        ("GET", "/health?x=/metrics"),
        ("GET", "/metrics?/health"),
        ("GET", "/health/../metrics"),
    ]


def test_without_the_key_every_route_but_health_is_closed(closed):
    wrong = [None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer schlüssel"]
    for method, path in routes(closed):
        for key in wrong if path in ("/v1/models", "/metrics") else wrong[:2]:
            headers = {} if key is None else {"authorization": key.encode()}
            response = httpx_without_key(closed, method, path, headers)
            assert response.status_code == (200 if (method, path.partition("?")[0]) == ("GET", "/health") else 401), (
                path
            )
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        closed.openai.with_options(api_key="wrong").models.list()
    assert closed.http.get("/v1/models").status_code == 200
    assert closed.http.get("/metrics", headers={"authorization": f"bearer {KEY}"}).status_code == 200


def httpx_without_key(closed: Running, method: str, path: str, headers: dict):
    from httpx2 import Client

    with Client(base_url=closed.url, timeout=30) as http:
        return http.request(method, path, headers=headers)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("10.1.2.3", 200),
        ("models.example:443", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("", 403),
    ],
)
def test_a_host_is_an_address_or_a_name_that_was_given(closed, host, status):
    response = closed.http.get("/v1/models", headers={"host": host})
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["code"] == "host_not_allowed"


def test_pages_of_other_addresses_may_not_ask(closed):
    def asked(origin: str, **more: str):
        return closed.http.get("/v1/models", headers={"origin": origin, **more})

    assert asked(closed.url).status_code == 200, "its own"
    for origin in ("https://evil.example", "null", f"{PAGE}.evil", "http://127.0.0.1"):
        assert asked(origin).json()["error"]["code"] == "origin_not_allowed"
    allowed = asked(PAGE)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == PAGE
    assert "x-moesaic-expert" in allowed.headers["access-control-expose-headers"]
    preflight = {"origin": PAGE, "access-control-request-method": "POST"}
    response = httpx_without_key(closed, "OPTIONS", "/v1/chat/completions", preflight)
    assert response.status_code == 204 and "authorization" in response.headers["access-control-allow-headers"]
    strange = httpx_without_key(closed, "OPTIONS", "/v1/models", {**preflight, "origin": "https://evil.example"})
    assert strange.status_code == 403


def test_a_body_has_a_limit_whether_it_says_its_size_or_not(closed):
    assert closed.chat("x" * 3000).status_code == 413
    for chunks in ([b"x" * 1500] * 3, [b" " * 2001]):
        response = closed.http.post("/v1/chat/completions", content=iter(chunks))
        assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"
    assert closed.chat("add").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(closed):
    host, port = closed.server.socket.getsockname()
    with socket.create_connection((host, port), timeout=30) as connection:
        head = f"POST /v1/route HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        while b"body_timeout" not in answer:
            more = connection.recv(4096)
            assert more, answer
            answer += more


def test_headers_that_do_not_end_are_refused(closed):
    host, port = closed.server.socket.getsockname()
    with socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(closed, monkeypatch):
    monkeypatch.setattr("moesaic.serve.server.HEADER_SECONDS", 0.5)
    with socket.create_connection(closed.server.socket.getsockname(), timeout=0.05) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        answer = None
        while answer is None:
            try:
                answer = connection.recv(100)
            except TimeoutError:
                connection.sendall(b"x")
            except ConnectionResetError:
                answer = b""
        assert answer == b""


def test_the_key_is_compared_in_constant_time_and_never_shown(monkeypatch):
    import hmac

    async def app(scope, receive, send): ...

    seen = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    gate = Gate(app, Entry(key=KEY), Metrics())
    for given in ("", "x", KEY, "x" * 10_000):
        try:
            gate.require_key({"authorization": f"Bearer {given}"}, "/v1/models")
        except Exception as problem:
            assert KEY not in str(problem)
    assert [len(a) == len(b) == 32 for a, b in seen] == [True] * 4, "digests: not even the length is told"
    assert KEY not in repr(Entry(key=KEY))


def test_every_response_has_an_id_and_is_counted_under_a_bounded_number_of_names(closed):
    ids = {closed.http.get(f"/v1/nothing/{index}").headers["x-request-id"] for index in range(20)}
    assert len(ids) == 20
    closed.http.get("/v1/models/mix")
    lines = [
        line for line in closed.http.get("/metrics").text.splitlines() if line.startswith("moesaic_requests_total")
    ]
    assert not [line for line in lines if "nothing" in line] and any(
        'route="/v1/models/{id:path}"' in one for one in lines
    )
