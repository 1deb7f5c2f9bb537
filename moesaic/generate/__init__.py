"""Prompts in, text out: the one engine behind generate, chat and evaluate, and its sampling."""

from moesaic.generate.engine import Batch, Engine
from moesaic.generate.request import Generation, Request, RoutingReport
from moesaic.generate.row import Tokenizing
from moesaic.generate.sample import GREEDY, Sampling, choose

__all__ = ["GREEDY", "Batch", "Engine", "Generation", "Request", "RoutingReport", "Sampling", "Tokenizing", "choose"]
