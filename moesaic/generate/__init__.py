"""Prompts in, text out: the one engine behind generate, chat, evaluate and serve, and how it draws tokens."""

from moesaic.generate.engine import Engine, Generation, RoutingReport, Tokenizing
from moesaic.generate.sample import GREEDY, Sampling, choose

__all__ = ["GREEDY", "Engine", "Generation", "RoutingReport", "Sampling", "Tokenizing", "choose"]
