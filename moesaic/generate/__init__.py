"""Prompts in, text out: the one engine behind generate, chat, evaluate and servers, and its sampling."""

from moesaic.generate.engine import Engine
from moesaic.generate.request import Generation, Request, RoutingReport
from moesaic.generate.row import Tokenizing
from moesaic.generate.sample import GREEDY, Logprob, Sampling, choose
from moesaic.generate.scheduler import Scheduler, Ticket

__all__ = [
    "GREEDY",
    "Engine",
    "Generation",
    "Logprob",
    "Request",
    "RoutingReport",
    "Sampling",
    "Scheduler",
    "Ticket",
    "Tokenizing",
    "choose",
]
