"""Recipe -> run directory, stage by stage: finished parts are skipped, changed ones made anew.

The only place that joins the rooms below, and the verbs' Python twins: `stages.run(recipe, folder)`, `stages.compose`,
... Knows nothing about terminals (the caller passes a Progress).
"""

from moesaic.stages.routing_bench import bench_routing
from moesaic.stages.verbs import compose, continual, evaluate, pretrain, run, train_expert, train_router, verify_expert

__all__ = [
    "bench_routing",
    "compose",
    "continual",
    "evaluate",
    "pretrain",
    "run",
    "train_expert",
    "train_router",
    "verify_expert",
]
