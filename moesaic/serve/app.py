"""The routes: chat, completions, models, decisions about prompts, corrections, health and metrics.

Knows nothing about sockets or processes. Everything that a request can name is in the catalogue of the served model.
"""

from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import moesaic
from moesaic.errors import MoesaicError
from moesaic.generate.loaded import conversation_of
from moesaic.generate.request import Prompt
from moesaic.generate.sample import Sampling
from moesaic.serve.answers import ChatStyle, Style, TextStyle, Writer, headers_of
from moesaic.serve.catalogue import Catalogue
from moesaic.serve.choosing import Decision, certainty, renormalised
from moesaic.serve.conversations import Talk
from moesaic.serve.metrics import Metrics
from moesaic.serve.problems import Problem, invalid, problem_of
from moesaic.serve.responses import Following, streamed, whole
from moesaic.serve.schema import (
    ChatRequest,
    CompletionRequest,
    CorrectionRequest,
    DecisionsRequest,
    ErrorBody,
    Question,
    Routable,
    RouteRequest,
    Sampled,
    Turn,
)
from moesaic.serve.version import Order
from moesaic.serve.worker import Worker

CHAT = {"": "messages", "max_new_tokens": "max_tokens"}
TEXT = {"": "prompt", "max_new_tokens": "max_tokens"}
"""The package's names of fields -> those of a request."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request asks for something unknown or not allowed.",
        401: "The API key is missing or wrong.",
        403: "The Host or the Origin is unknown.",
        404: "Nothing has this name.",
        408: "The body did not arrive in time.",
        409: "The server keeps no trace.",
        413: "The body is too large.",
        429: "The queue is full; Retry-After says when to come back.",
        500: "The server could not answer.",
        503: "The server shuts down.",
        504: "The answer took too long.",
    }.items()
}


@dataclass(frozen=True)
class Serving:
    """What the routes need. `seconds`: the longest time of an answer. `created`: when the server began."""

    worker: Worker
    metrics: Metrics
    seconds: float
    created: int

    def following(self, order: Order, request: Request) -> Following:
        """Start an order, unless the queue is full."""
        if not self.worker.healthy:
            raise Problem(503, "the server shuts down", code="shutting_down")
        self.require_room()
        return Following(self.worker, order, request.receive)

    def require_room(self) -> None:
        """Refuse a request that would wait behind too many."""
        if self.worker.full:
            later = {"retry-after": str(self.worker.retry_seconds)}
            raise Problem(429, "the queue is full; come back later", code="queue_full", headers=later)

    async def answer(self, order: Order, request: Request, style: Style, usage: bool) -> Response:
        """The response to an order, as a stream if it asks for one."""

        following = self.following(order, request)

        def writing(decision: Decision) -> Writer:
            version, logprobs = following.job.version, order.logprobs is not None
            assert version is not None
            return Writer(style, order.model, decision, version.spell, order.n, usage, logprobs)

        return await (streamed if order.stream else whole)(following, self.seconds, writing)


def create_app(serving: Serving) -> FastAPI:
    """The application over one worker."""
    app = FastAPI(title="moesaic", version=moesaic.__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_fault)
    add_routes(app, serving)
    describe(app)
    return app


def add_routes(app: FastAPI, serving: Serving) -> None:
    """All routes. Nothing in a request names a file, an address or a template."""
    worker = serving.worker

    @app.post("/v1/chat/completions", response_class=JSONResponse)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; the router chooses the expert, unless the model names one."""
        limit = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        order = order_of(body, request, conversation(body.messages), limit, logprobs, CHAT)
        return await serving.answer(order, request, ChatStyle(), wants_usage(body))

    @app.post("/v1/completions", response_class=JSONResponse)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text as it is; the router chooses the expert, unless the model names one."""
        order = order_of(body, request, body.prompt, body.max_tokens or 16, body.logprobs, TEXT)
        return await serving.answer(order, request, TextStyle(), wants_usage(body))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The served names: the mixture, which routes, and each expert, whose parent is the mixture."""
        return {"object": "list", "data": cards()}

    @app.get("/v1/models/{id:path}")
    async def model(id: str) -> dict[str, Any]:
        """One served name."""
        worker.version.catalogue.expert(id)
        return next(card for card in cards() if card["id"] == id)

    def cards() -> list[dict[str, Any]]:
        version = worker.version
        return version.catalogue.cards(serving.created, version.engine.mixture.context)

    @app.post("/v1/route")
    async def route(body: RouteRequest, request: Request) -> Response:
        """The decision that a request would get now; nothing is written, and nothing is recorded."""
        prompt = body.prompt if body.messages is None else conversation(body.messages)
        order = routing_order(body, request, prompt or "", TEXT if body.messages is None else CHAT)
        decision = await peeked(order)
        return JSONResponse({"model": body.model, "routing": decision.facts}, headers=headers_of(decision))

    @app.get("/v1/route/{id}")
    async def routed(id: str) -> dict[str, Any]:
        """A recorded decision, with the tokens that were made, how the answer ended, and its correction."""
        return await worker.ask(lambda: worker.recorded(id))

    @app.post("/v1/route/{id}/correction")
    async def correction(id: str, body: CorrectionRequest) -> dict[str, Any]:
        """Write into the trace which expert should have answered; the last correction counts, null revokes it."""
        return await worker.ask(lambda: worker.correct(id, body.expert))

    @app.post("/v1/decisions")
    async def decisions(body: DecisionsRequest) -> dict[str, Any]:
        """The router's probabilities as answers to questions whose choices are names of experts."""
        text = body.input if isinstance(body.input, str) else body.input[0].content
        prompt = conversation([Turn(role="user", content=text)])
        order = Order(model=body.model, prompt=prompt, raw=False, params={"": "input"})
        catalogue = worker.version.catalogue
        if catalogue.expert(body.model) is not None:
            message = f"model: only {catalogue.name} decides; {body.model} is one expert"
            raise Problem(400, message, code="invalid_value", param="model")
        for index, question in enumerate(body.questions):
            require_choices(question, f"questions[{index}]", catalogue)
        decision = await peeked(order)
        answers = [answered(question, decision.probabilities or {}) for question in body.questions]
        usage = {"input_tokens": decision.read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0}
        return {"model": body.model, "answers": answers, "usage": {**usage, "total_tokens": decision.read}}

    async def peeked(order: Order) -> Decision:
        serving.require_room()
        try:
            return await worker.ask(lambda: worker.peek(order))
        except MoesaicError as error:
            raise problem_of(error, order.params) from error

    @app.get("/health", response_class=Response)
    async def health() -> Response:
        """200 while the server answers, 503 while it shuts down."""
        return Response(status_code=200 if worker.healthy else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(serving.metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})


def conversation(turns: list[Turn]) -> Prompt:
    """The messages as the package reads them."""
    try:
        return conversation_of([turn.model_dump(include={"role", "content"}) for turn in turns])
    except MoesaicError as error:
        raise problem_of(error, CHAT) from error


def routing_order(body: Routable, request: Request, prompt: Prompt, params: dict[str, str]) -> Order:
    """The part of an order that says who answers."""
    session = request.headers.get("x-session-id") if body.session_id is None else body.session_id
    if session is not None and not 0 < len(session) <= 256:
        raise Problem(400, "x-session-id: expected 1 to 256 characters", code="invalid_value", param="x-session-id")
    lists, talk = body.routing, prompt if isinstance(prompt, tuple) else ()
    return Order(
        model=body.model,
        prompt=prompt,
        raw=not talk,
        allow=None if lists is None or lists.allow is None else tuple(lists.allow),
        exclude=() if lists is None else tuple(lists.exclude or ()),
        talk=Talk(session, talk),
        params=params,
    )


def order_of(
    body: Sampled, request: Request, prompt: Prompt, limit: int | None, logprobs: int | None, params: dict[str, str]
) -> Order:
    """The whole order of a body that asks for text; what is not given has OpenAI's default."""
    try:
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            seed=body.seed,
        )
    except MoesaicError as error:
        raise problem_of(error, params) from error
    return replace(
        routing_order(body, request, prompt, params),
        max_new_tokens=limit,
        sampling=sampling,
        stop=body.stops,
        n=body.n or 1,
        logprobs=logprobs,
        stream=bool(body.stream),
    )


def wants_usage(body: Sampled) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def require_choices(question: Question, field: str, catalogue: Catalogue) -> None:
    """Refuse choices that are no outcomes of the router, or one twice."""
    values = [choice.value for choice in question.choices]
    for index, value in enumerate(values):
        at = f"{field}.choices[{index}].value"
        catalogue.require(value, at)
        if value in values[:index]:
            raise Problem(400, f"{at}: {value} is given twice", code="invalid_value", param=at)


def answered(question: Question, probabilities: dict[str, float]) -> dict[str, Any]:
    """The answer to one question: the router's probabilities of its choices, as shares of their sum."""
    shares = renormalised(probabilities, [choice.value for choice in question.choices])
    return {
        "type": "choice",
        "name": question.name,
        "choice": max(shares, key=lambda value: shares[value]),
        "probabilities": [{"value": value, "probability": share} for value, share in shares.items()],
        "confidence": certainty(shares.values()),
    }


# --- errors -----------------------------------------------------------------------------------------------------------


def refusal(problem: Problem) -> JSONResponse:
    return JSONResponse(problem.body, problem.status, headers=problem.headers)


async def on_problem(_: Request, error: Any) -> JSONResponse:
    return refusal(error)


async def on_invalid(_: Request, error: Any) -> JSONResponse:
    return refusal(invalid(error.errors()))


async def on_http(request: Request, error: Any) -> JSONResponse:
    """An error of the framework: no such route, another method, a body that is no JSON."""
    what = {404: f"no route {request.url.path}", 405: f"{request.method} is not allowed here"}
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = what.get(error.status_code, str(error.detail))
    return refusal(Problem(error.status_code, message, code=code, headers=error.headers))


async def on_fault(_: Request, error: Any) -> JSONResponse:
    return refusal(problem_of(error, {}))


def describe(app: FastAPI) -> None:
    """Describe errors as they are: bodies that do not fit get 400, and none gets FastAPI's own 422."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            key = {"type": "http", "scheme": "bearer"}
            schema["components"]["securitySchemes"], schema["security"] = {"key": key}, [{"key": []}]
            schema["paths"]["/health"]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
