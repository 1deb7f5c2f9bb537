"""What the server counts, for Prometheus: names of its own, and the four of vLLM that Kubernetes' gateways scrape.

Knows nothing about requests or models.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]
SHORT = [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1]
LONG = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300]


@dataclass(frozen=True)
class Load:
    """The state of the engine: requests in slots and before, the experts of either, and bytes of its cache."""

    running: int = 0
    waiting: int = 0
    running_experts: tuple[str, ...] = ()
    waiting_experts: tuple[str, ...] = ()
    used: int = 0
    bound: int = 0
    experts: int = 0
    conversations: int = 0


class Metrics(Collector):
    """Counters and histograms, and gauges of the latest `Load`."""

    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        self.load = Load()
        self.requests = Counter(
            "moesaic_requests", "Responses by route and status.", ["route", "status"], registry=made
        )
        self.decisions = Counter(
            "moesaic_decisions", "Decisions by expert and reason.", ["expert", "reason"], registry=made
        )
        self.endings = Counter("moesaic_answers", "Answers by how they ended.", ["finish"], registry=made)
        self.read = Counter("moesaic_prompt_tokens", "Tokens of routed prompts.", registry=made)
        self.cached = Counter("moesaic_cached_tokens", "Tokens of prompts that were in the cache.", registry=made)
        self.written = Counter(
            "moesaic_generated_tokens", "Tokens written, also for aborted requests.", ["expert"], registry=made
        )
        self.switches = Counter("moesaic_switches", "Conversations that changed their expert.", registry=made)
        self.corrections = Counter("moesaic_corrections", "Corrections of decisions.", registry=made)
        self.swaps = Counter("moesaic_swaps", "Loads of a changed model by outcome.", ["outcome"], registry=made)
        self.confidence = Histogram(
            "moesaic_confidence", "Probability of the expert that answers.", buckets=SHARES, registry=made
        )
        self.router = Histogram("moesaic_router_seconds", "Time of a decision.", buckets=SHORT, registry=made)
        self.first = Histogram("moesaic_first_token_seconds", "Time to the first token.", buckets=LONG, registry=made)
        self.between = Histogram(
            "moesaic_inter_token_seconds", "Mean time of each later token.", buckets=SHORT, registry=made
        )
        self.whole = Histogram("moesaic_request_seconds", "Time of a whole answer.", buckets=LONG, registry=made)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The gauges, when they are asked for."""
        load = self.load
        share = load.used / load.bound if load.bound else 0.0
        for name, help, value in (
            ("moesaic_running", "Requests with a slot.", load.running),
            ("moesaic_waiting", "Requests that wait for a slot.", load.waiting),
            ("moesaic_cache_bytes", "Bytes of cached keys and values.", load.used),
            ("moesaic_cache_bound_bytes", "Most bytes of cached keys and values.", load.bound),
            ("moesaic_conversations", "Conversations whose expert is remembered.", load.conversations),
            ("vllm:num_requests_running", "Requests with a slot.", load.running),
            ("vllm:num_requests_waiting", "Requests that wait for a slot.", load.waiting),
            ("vllm:kv_cache_usage_perc", "Share of the cache in use, from 0 to 1.", share),
        ):
            yield GaugeMetricFamily(name, help, value)
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        info = GaugeMetricFamily(
            "vllm:lora_requests_info", "Experts with requests; the value is a time.", labels=labels
        )
        info.add_metric([str(load.experts), listed(load.running_experts), listed(load.waiting_experts)], time.time())
        yield info

    def page(self) -> bytes:
        return generate_latest(self.registry)


def listed(experts: Iterable[str]) -> str:
    return ",".join(sorted({*experts}))
