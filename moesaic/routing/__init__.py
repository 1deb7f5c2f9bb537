"""Decisions: feature -> router -> logits -> selection -> Routing; and Gates, a batch of decisions for the layers."""

from moesaic.routing.gates import Gates, Routing, require
from moesaic.routing.selection import Selection
from moesaic.routing.states import States

__all__ = ["Gates", "Routing", "Selection", "States", "require"]
