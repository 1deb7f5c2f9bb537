"""Runs every recipe beside this file, in a process whose arithmetic the environment pins.

    python child.py FOLDER

leaves FOLDER/NAME/run of each recipe, or FOLDER/NAME/failed.txt, and FOLDER/probe.json: the hash of what this processor
makes of some fixed arithmetic. Knows nothing about what is compared.
"""

import hashlib
import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from materials import write_materials
from torch.nn import functional as F

import moesaic

HERE = Path(__file__).parent


def probe() -> dict[str, str]:
    """Hash the bits of fixed arithmetic, and name the versions of the libraries that compute it."""
    generator = torch.Generator().manual_seed(0)
    hashed = hashlib.sha256()
    for rows, width in ((1, 32), (7, 48), (64, 128)):
        drawn = torch.randint(-4096, 4096, (rows, width), generator=generator)
        x = (drawn.float() / 1024).requires_grad_()
        weight = torch.randint(-4096, 4096, (33, width), generator=generator).float() / 16384
        normed = F.layer_norm(x, (width,))
        heads = normed.view(1, rows, 4, width // 4).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        y = F.silu(F.linear(normed, weight))
        loss = F.cross_entropy(y, torch.arange(rows) % 33) + attended.square().mean()
        loss.backward()
        found = [F.linear(x, weight), y, attended, loss, x.grad, F.gelu(x), x.exp(), x.tanh(), x.sigmoid(), x.cos()]
        found += [
            x.softmax(-1),
            x.log_softmax(-1),
            x.sum(),
            x.sum(0),
            x.mean(-1),
            x.square().mean(-1).rsqrt(),
            x.norm(),
        ]
        found += [x.double().exp().sum(), x.double() @ x.double().T, torch.linalg.svd(x.detach())[1]]
        found += [torch.empty(rows, width).normal_(generator=generator)]
        for tensor in found:
            hashed.update(tensor.detach().contiguous().numpy().tobytes())
        exact = drawn.double().numpy() / 1024
        for array in (np.exp(exact), np.log(np.abs(exact) + 1), exact.mean(-1), exact.std(), exact @ exact.T):
            hashed.update(array.tobytes())
    return {"arithmetic": hashed.hexdigest(), "torch": torch.__version__, "numpy": np.__version__}


def run(recipe: Path, folder: Path) -> None:
    """Run one recipe among its materials, and leave the traceback of what fails."""
    folder.mkdir()
    write_materials(folder)
    (folder / "recipe.yaml").write_bytes(recipe.read_bytes())
    try:
        moesaic.run(moesaic.read_recipe(folder / "recipe.yaml"), folder / "run")
    except Exception:
        (folder / "failed.txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    into = Path(sys.argv[1])
    torch.set_num_threads(1)
    (into / "probe.json").write_text(json.dumps(probe()))
    for recipe in sorted(HERE.glob("*.yaml")):
        run(recipe, into / recipe.stem)
