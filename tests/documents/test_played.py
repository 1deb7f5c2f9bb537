"""Property: the blocks of the documents are run as they are written, the trainings made tiny; those that are
not say why.

Knows nothing about what pages show beside their blocks.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from generate import ROOT
from markdown import blocks

from moesaic.hub.locate import locate
from moesaic.sections.document import dump, load

PLAYED = {  # pages in the order in which their blocks are run, and the folder in which they are
    "docs/tutorial.md": "tutorial",
    "README.md": "tutorial",
    "docs/experts.md": "tutorial",
    "docs/data.md": "own",
    "docs/python.md": "own",
    "docs/scaling.md": "own",
}
NOT_RUN = {  # how a block begins -> why it is not run here
    "pip install ": "needs a network",
    "make demo": "makes an environment, which needs a network, and minutes of both cores",
    "make check": "runs this test",
    "moesaic generate runs/demo": "needs the demo; tests/journeys/test_first_prompts.py types these prompts over one",
    "moesaic train-expert recipes/demo.yaml --continuous": "goes on until a signal; tests/stages runs it",
    "moesaic study study.yaml": "trains for minutes; tests/cli/test_studying.py runs one in small",
    "moesaic serve mine": "does not end by itself; tests/serve starts servers",
    "from openai import OpenAI": "needs a server; tests/serve/test_documented.py gives it one",
    "moesaic evaluate runs/mine --lm-eval": "its tasks need a network; tests/evaluate/test_harness.py has some",
    "import lm_eval": "its tasks need a network; tests/evaluate/test_harness.py has some",
    "moesaic tokenize books.jsonl": "its texts are not here; tests/data/test_tokenizing.py has some",
    "torchrun --nproc-per-node 2": "takes minutes; tests/journeys/test_ranked_pretraining.py runs it",
    "class Router(Protocol)": "is a signature to read",
}
TINY = {
    "train": {"steps": 2, "batch": 2, "length": 32},
    "evaluate": {"limit": 8, "samples": 1},
    "router": {"epochs": 2, "examples": 40},
}
FEW_STEPS = {"base": {"size": "nano", "pretrain": {"steps": 4, "batch": 4, "length": 32}}}


def shortened(text: str) -> str:
    """A recipe with the fewest steps and rows."""
    recipe = load(text).value
    for name, section in (TINY | (FEW_STEPS if "size" in recipe["base"] else {})).items():
        recipe[name] = {**recipe.get(name, {}), **section}
    for expert in recipe["experts"].values():
        expert.pop("train", None)
    if recipe["name"] == "demo":  # of which the experts and their controls alone are trained
        del recipe["router"]["compare"], recipe["evaluate"]["joint"], recipe["evaluate"]["joint_wide"]
    return dump({**recipe, "workers": 1})


def play(name: str, folder: Path) -> str:
    """Run the blocks of a page one after another in a folder; one that begins with `# NAME` becomes that file."""
    printed = []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in blocks(name):
        if block.language not in ("shell", "python", "yaml") or block.text.startswith(tuple(NOT_RUN)):
            continue
        if named := re.match(r"# (\S+\.\w+)\n", block.text):
            text = shortened(block.text) if block.language == "yaml" else block.text
            (folder / named[1]).write_text(text, encoding="utf-8")
            continue
        if block.language == "yaml":  # a fragment, which test_pages.py reads
            continue
        command = ["sh", "-euc"] if block.language == "shell" else [sys.executable, "-c"]
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            [*command, block.text], cwd=folder, env=environment, start_new_session=True, **pipes
        ) as process:
            try:
                out, said = process.communicate(timeout=300)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too
                raise
        assert process.returncode == 0, f"{block.text}\n{out}\n{said}"
        printed.append(out)
    return "\n".join(printed)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the blocks of every page print."""
    folders = {name: tmp_path_factory.mktemp(name) for name in dict.fromkeys(PLAYED.values())}
    tutorial = folders["tutorial"]
    (tutorial / "recipes").mkdir()
    demo = (ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    (tutorial / "recipes" / "demo.yaml").write_text(shortened(demo), encoding="utf-8")
    (tutorial / "path" / "to").mkdir(parents=True)
    (tutorial / "path" / "to" / "base").symlink_to(locate("shipped:tiny").folder)
    for name, domain in {"math": "math", "code": "code", "chat": "dialogue"}.items():
        (tutorial / "path" / "to" / f"{name}-lora").symlink_to(tutorial / "adapters" / domain)
        (tutorial / f"{name}.txt").symlink_to(tutorial / "prompts" / f"{domain}.txt")
    return {name: play(name, folders[folder]) for name, folder in PLAYED.items()}


@pytest.mark.slow
def test_the_tutorial_goes_from_three_adapters_to_a_report(played: dict[str, str]) -> None:
    said = played["docs/tutorial.md"]
    assert "adopted math, code, dialogue\n" in said and " held-out prompts to their own expert" in said
    assert "\nUse " in said and "\nmixture <--" in said
    assert "rows         2, the prompt's text in 2 of them" in said and "report/index.html" in said


@pytest.mark.slow
def test_three_adapters_become_one_model(played: dict[str, str]) -> None:
    assert "adopted math, code, chat\n" in played["README.md"]
    assert played["README.md"].splitlines()[-1].split()[-1] in ("math", "code", "chat")
    assert "adopted math, chat\n" in played["docs/experts.md"]


@pytest.mark.slow
def test_own_data_becomes_a_mixture(played: dict[str, str]) -> None:
    said = played["docs/data.md"]
    assert said.startswith("Use ")
    assert all(f"\n{name} " in said for name in ("base", "joint_wide", "mixture <--", "oracle_best"))
    assert "> Please count from 3 to 7." in said and "\nrouted to " in said
    assert played["docs/python.md"].splitlines()[-1].startswith("Use ")
    assert "device 1: 17.2 GB of 40.0 GB" in played["docs/scaling.md"]
