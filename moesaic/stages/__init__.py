"""Recipe -> run directory, stage by stage: what is finished is skipped, what changed is made anew.

The only place that joins the rooms below, and the verbs' Python twins: `stages.run(recipe, folder)`, `stages.compose`,
... Knows nothing about terminals (a Progress is handed in).
"""

from moesaic.stages.verbs import compose, evaluate, pretrain, run, train_expert, train_router, verify_expert

__all__ = ["compose", "evaluate", "pretrain", "run", "train_expert", "train_router", "verify_expert"]
