"""The Decider of a mixture on disk: its router, the names of its experts, and which of them are disabled.

Knows nothing about the weights of experts, nor about answers.
"""

import os
from pathlib import Path

from moesaic.artefacts.backbone import load_backbone
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.reference import base_at
from moesaic.artefacts.router import load_router, require_base
from moesaic.compose.mixture import KIND, disabled_in, require_names
from moesaic.files import read_manifest
from moesaic.model.deciding import Decider


def load_decider(folder: Path) -> Decider:
    """Read the router of a mixture whose experts write or classify; experts are never read.

    The base is loaded only for a router that reads its states; a router on the text, on characters or with an encoder
    of its own decides without the base.
    """
    folder = Path(os.path.realpath(folder))
    manifest = read_manifest(folder, KIND, verify=False)
    router = load_router(folder / "router")
    require_names(router, expert_names(folder, manifest))
    body = None
    if router.reads.reads_base:
        base = load_backbone(base_at(folder, manifest).folder)
        require_base(folder / "router", router.manifest, base.fingerprint)
        body = base.body
    return router.over(body, disabled_in(folder, manifest))
