"""One version of the served model: its names, its scheduler, and its decisions about orders.

Knows nothing about threads or HTTP. A swap makes a second version, and the first ends with its last answer.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, cast, runtime_checkable

from moesaic.generate.engine import Encoded
from moesaic.generate.loaded import WritingModel
from moesaic.generate.request import BASE, Prompt, Request, RoutingReport
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.generate.scheduler import Scheduler
from moesaic.model.deciding import Decider
from moesaic.model.features import Prompts
from moesaic.model.mixture import Begun
from moesaic.routing import Routing
from moesaic.serve.catalogue import Catalogue
from moesaic.serve.choosing import Decision, Reason, among, believed, one_hot, precise, report_of, routing_of, stays
from moesaic.serve.conversations import NO_TALK, Held, Talk
from moesaic.serve.problems import Problem


@dataclass(frozen=True)
class Limits:
    """Limits of the engine.

    `rows`: answers that are written at once; `queue`: answers that may wait besides. `new_tokens`: of one answer.
    `memory`: bytes of cached keys and values; None leaves them to the scheduler. `prefill`: tokens of a prompt that are
    read between two steps. `margin`: see `choosing.stays`.
    """

    rows: int = 16
    queue: int = 64
    new_tokens: int = 1024
    memory: int | None = None
    prefill: int = 256
    margin: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a caller asks for.

    `allow` and `exclude`: see `Catalogue.allowed`. `max_new_tokens`: None means all that the limits leave. `params`:
    see `problem_of`.
    """

    model: str
    prompt: Prompt
    raw: bool
    allow: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    talk: Talk = NO_TALK
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    stream: bool = False
    params: Mapping[str, str] = field(default_factory=dict)


class Choice(NamedTuple):
    """A decision before it has an id: why, with which weights, the same by name, whether the router was asked, and what
    it has read for the answer.
    """

    reason: Reason
    routing: Routing
    report: RoutingReport
    asked: bool
    begun: Begun | None = None


@runtime_checkable
class Deciding(Protocol):
    """A mixture of any kind of experts."""

    decider: Decider


class Version:
    """A loaded model, ready to decide about orders and to answer them."""

    def __init__(self, name: str, model: WritingModel, limits: Limits):
        self.model, self.engine, self.limits = model, model.engine, limits
        self.catalogue = Catalogue(name, model.names)
        self.scheduler = self.new_scheduler()

    def new_scheduler(self) -> Scheduler:
        return Scheduler(self.engine, self.limits.memory, self.limits.rows, self.limits.prefill)

    def restart(self) -> None:
        """Begin with an empty scheduler, after one that failed."""
        self.scheduler = self.new_scheduler()

    @property
    def routes_tokens(self) -> bool:
        """The router decides before every token, so that a conversation holds no expert."""
        return self.model.level == "token"

    def request(self, order: Order) -> Request:
        """The order for the engine, with a limit that its prompt leaves."""
        most = self.limits.new_tokens
        if order.max_new_tokens is not None and order.max_new_tokens > most:
            param = order.params.get("max_new_tokens", "max_new_tokens")
            message = f"{param}: more than this server writes; expected at most {most}; got {order.max_new_tokens}"
            raise Problem(400, message, code="invalid_value", param=param)
        if order.n > self.limits.rows:
            message = f"n: more answers than this server writes at once; expected at most {self.limits.rows}"
            raise Problem(400, message, code="invalid_value", param="n")
        wanted = Request(
            prompt=order.prompt,
            max_new_tokens=order.max_new_tokens or 1,
            sampling=order.sampling,
            stop=order.stop,
            raw=order.raw,
            n=order.n,
            logprobs=order.logprobs,
        )
        if order.max_new_tokens is not None:
            return wanted
        left = self.engine.mixture.context - self.read(wanted).tokens + 1  # one of these tokens is new
        return replace(wanted, max_new_tokens=max(1, min(most, left)))

    def read(self, request: Request) -> Encoded:
        return self.engine.read([request], [request.max_new_tokens or 1])

    def decide(
        self, order: Order, encoded: Encoded, held: Held | None, id: str | None
    ) -> tuple[Decision, Begun | None]:
        """Who answers an order, and why, and what the router has read for the answer.

        `held`: that of its conversation, None at the beginning.
        """
        started = time.perf_counter()
        forced = self.catalogue.expert(order.model)
        allowed = self.catalogue.allowed(order.allow, order.exclude)
        held = held if held and held.expert in allowed and not self.routes_tokens else None
        if forced is not None:
            if forced not in allowed:
                message = f"routing: the model names {forced}, which the lists exclude; name the mixture to route"
                raise Problem(400, message, code="invalid_value", param="routing")
            choice = self.named(forced, "forced")
        elif held is not None and order.talk.after_a_tool:
            choice = self.named(held.expert, "tool")
        else:
            choice = self.routed(order, encoded, allowed, held)
        report = choice.report
        decision = Decision(
            id=id,
            mixture=self.model.identity,
            expert=report.chosen,
            reason=choice.reason,
            probabilities=report.probabilities if choice.asked else None,
            weights=report.weights,
            held_from=held.expert if held and held.expert != report.chosen else None,
            read=encoded.prompts.ids.shape[1],
            router_ms=(time.perf_counter() - started) * 1e3,
            routing=choice.routing,
        )
        return decision, choice.begun

    def spell(self, token: int) -> str:
        """The text of a token by itself."""
        return self.engine.tokenizer.decode([token])

    def named(self, expert: str, reason: Reason) -> Choice:
        index = self.engine.index(expert)
        routing = self.engine.decision_of([-1 if index is None else index])
        return Choice(reason, routing, report_of(routing, self.catalogue.experts), asked=False)

    def routed(self, order: Order, encoded: Encoded, allowed: frozenset[str], held: Held | None) -> Choice:
        """The router's choice among the allowed, by the latest turn of a conversation that keeps its expert."""
        names = self.catalogue.experts
        decider = cast(Deciding, self.engine.mixture).decider
        turn = self.turn_of(order) if held else None
        said = [message.content for message in order.talk.turn] or encoded.prompts.texts
        decided, begun = self.engine.begun(turn or encoded)
        routing = among(decided, names, allowed, decider.selection)
        report = report_of(routing, names)
        reason: Reason = "abstained" if report.chosen not in names else "router"
        choice = Choice(reason, routing, report, True, None if turn else begun)
        return (
            choice if held is None or {held.expert, report.chosen} == {BASE} else self.kept(choice, allowed, held, said)
        )

    def kept(self, choice: Choice, allowed: frozenset[str], held: Held, said: Sequence[str]) -> Choice:
        """Who answers a conversation after a turn that said this, for which the router made a choice."""
        names, own, size = self.catalogue.experts, choice.report, sum(len(text.encode()) for text in said)
        shares = believed(held.shares, own.probabilities, [name for name in names if name in allowed], size)
        routing = routing_of(shares, names, cast(Deciding, self.engine.mixture).decider.selection, choice.routing)
        report = report_of(routing, names)
        if stays(held.expert, report.chosen, report.probabilities, self.limits.margin):
            routing = one_hot(held.expert, names, routing)
            report = report_of(routing, names)
        reason: Reason = "held" if report.chosen == held.expert != own.chosen else "router"
        return choice._replace(reason=reason, routing=routing, report=report)

    def turn_of(self, order: Order) -> Encoded | None:
        """The latest turn of a conversation by itself; None where the order says nothing else."""
        turn = order.talk.turn
        return self.read(Request(prompt=turn, max_new_tokens=1)) if turn and turn != order.talk.messages else None

    def record(self, order: Order, prompts: Prompts, decision: Decision) -> None:
        """Write a decision into the trace, if there is one."""
        if self.model.trace is not None:
            silent = decision.probabilities is None
            routing = precise(decision.routing)
            self.model.trace.record([order.prompt], prompts, routing, silent, order.raw, decision.id, decision.reason)
