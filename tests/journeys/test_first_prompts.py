"""Journey: a newcomer runs the demo, types the prompts of the README, and then whatever comes to mind."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moesaic

ROOT = Path(__file__).parents[2]
FASTER = ["router.compare=[]", "evaluate.controls=[]", "evaluate.limit=20", "evaluate.samples=0"]

README = {  # what the README types -> the expert, and what the answer holds
    "What is 3 + 4?": ("math", r"= 7$"),
    "Oskar has 6 apples and buys 3 more. How many apples does Oskar have?": ("math", r"= 9$"),
    "def largest(prices):": ("code", r"return max\(prices\)"),
    "Could I get a haircut this week?": ("dialogue", r"\?$"),
    "Once upon a time, there was a hungry fox who lived near the river.": ("prose", r"fox.+(friend|[.\"])"),
}
FIRST = {  # what a newcomer types -> who may answer
    "hello": ("dialogue", "base"),
    "How are you?": ("dialogue", "base"),
    "What is 2 + 2?": ("math", "base"),
    "7 - 3": ("math", "base"),
    "import os": ("code", "base"),
    "Write a Python function that checks for primes": ("code", "base"),
    "Wie geht es dir?": ("base",),
    "The quick brown fox": ("prose", "base"),
    "write a poem": ("prose", "base"),
    "What is the capital of France?": ("base", "dialogue"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's mixture, without its controls."""
    folder = tmp_path_factory.mktemp("demo")
    recipe = shutil.copy(ROOT / "recipes" / "demo.yaml", folder)
    program = "import sys; from moesaic.cli.main import main; sys.argv[0] = 'moesaic'; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", str(recipe), *FASTER]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=1800)
    return folder / "runs" / "demo"


@pytest.mark.slow
def test_the_prompts_of_the_readme_reach_their_experts_and_are_answered(demo: Path) -> None:
    said = re.search(r"moesaic generate runs/demo (.+?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert said
    words = shlex.split(said[1].replace("\\\n", " "))
    prompts = words[: words.index("--max-new-tokens")]
    assert prompts == list(README)
    answers = moesaic.load(demo).generate(prompts, max_new_tokens=int(words[-1]))
    told = {prompt: (one.routing.chosen, one.text) for prompt, one in zip(prompts, answers, strict=True)}
    for prompt, (expert, holds) in README.items():
        chosen, text = told[prompt]
        assert chosen == expert and re.search(holds, text.strip(), re.DOTALL), told


@pytest.mark.slow
def test_the_first_ten_prompts_go_to_an_expert_that_fits_or_to_the_base(demo: Path) -> None:
    chosen = [one.chosen for one in moesaic.load(demo).route(list(FIRST))]
    wrong = {prompt: who for (prompt, may), who in zip(FIRST.items(), chosen, strict=True) if who not in may}
    assert not wrong


@pytest.mark.slow
def test_nine_in_ten_sums_and_differences_up_to_ten_are_right(demo: Path) -> None:
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 11 - a)]
    right = {f"What is {a} + {b}?": a + b for a, b in pairs} | {f"{a + b} - {b} = ?": a for a, b in pairs}
    answers = moesaic.load(demo).generate(list(right), max_new_tokens=12, expert="math")
    wrong = [
        (prompt, one.text)
        for (prompt, result), one in zip(right.items(), answers, strict=True)
        if not one.text.strip().endswith(f"= {result}")
    ]
    assert len(wrong) <= len(right) // 10, wrong


@pytest.mark.slow
def test_no_text_of_the_demo_is_in_two_splits_or_domains(demo: Path) -> None:
    assert json.loads((demo / "data.json").read_text())["duplicates"] == {}
