"""Property: each guard taken out of the code makes a test fail, so every promise is also watched.

A mutant names its function and not its file, so that files may move. The report's templates hold no functions and have
no mutants here.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moesaic"


@dataclass(frozen=True)
class Mutant:
    """A function as `name` or `Class.name`, the text in it that goes, its replacement, and the tests that must notice.

    One test that fails is enough; `tests` is a place below tests/.
    """

    function: str
    old: str
    new: str
    tests: str


@dataclass(frozen=True)
class Place:
    """A function in a file: its lines, counted from 0, the last one excluded."""

    path: Path
    first: int
    last: int

    @property
    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines(keepends=True)

    @property
    def source(self) -> str:
        return "".join(self.lines[self.first : self.last])

    def replaced(self, source: str) -> str:
        """The text of the whole file with another source of the function."""
        lines = self.lines
        return "".join([*lines[: self.first], source, *lines[self.last :]])


DELETE = """\
        for number in sorted(found)[: max(len(found) - keep, 0)]:
            disk.rename(found[number], scratch / found[number].name)  # half of one never bears its name
"""
SWING = """\
        disk.rename(link, at)
"""
LAST_FIRST = """\
values, experts = shares.flip(-1).topk(k, -1)
        experts = shares.shape[-1] - 1 - experts
"""
TEXTS, LABELS = "stages/test_texts_seen.py", "stages/test_labels_seen.py"

DISK = {
    "without fsync": Mutant("sync", "        os.fsync(fd)\n", "        pass\n", "files"),
    "with rename and delete swapped": Mutant("publish", SWING, f"{DELETE}{SWING}", "files/test_publishing.py"),
    "the draft written in place": Mutant("publish", "scratch / version.name,", "version,", "files/test_publishing.py"),
    "without the lock": Mutant("_take", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "files"),
    "without hashes": Mutant("_check", "hashed=verify)", "hashed=False)", "faults/test_resuming.py"),
    "without the state of randomness": Mutant("drawing", "torch.manual_seed(seed)", "pass", "faults/test_resuming.py"),
    "without the finite check": Mutant(
        "fit",
        "if not math.isfinite(total) or not (math.isfinite(norm) or overflows):",
        "if False:",
        "faults/test_resuming.py",
    ),
    "without the optimiser's moments": Mutant("restore", "if moments:", "if False:", "faults/test_kills.py"),
    "without cutting the log": Mutant(
        "Checkpoint.begin", "not self._log.cut(rows)", "False", "faults/test_resuming.py"
    ),
    "without comparing settings": Mutant("Checkpoint.compare", "if differing:", "if False:", "faults/test_resuming.py"),
    "without the best so far": Mutant(
        "Checkpoint.save",
        "for name, tensor in state.kept.items()}\n",
        "for name, tensor in []}\n",
        "faults/test_resuming.py",
    ),
    "without a saved state before it goes": Mutant("Checkpoint.after", "if done or stop or", "if done or", "faults"),
    "without asking for room": Mutant("check_space", "if free < needed:", "if False:", "files"),
}
DATA = {
    "training on rows of another domain's test": Mutant(
        "Domain.without", "without(self.train, judged)", "without(self.train, set())", "data/test_splits.py"
    ),
    "train and test share rows": Mutant("load_domain", '("train", "test"), ', "", "data/test_splits.py"),
    "the first rows instead of those of smallest hash": Mutant(
        "chosen_of", "sorted(range(len(drawn)), key=drawn.__getitem__)[:n]", "[*range(n)]", "data/test_splits.py"
    ),
}
ROWS = {
    "pretraining on test rows": Mutant("corpus", "Longest([domain.train for", "Longest([domain.test for", TEXTS),
    "settings chosen on test rows": Mutant("plan_of", "take(domain.validation,", "take(domain.test,", TEXTS),
    "an expert that writes chosen on training rows": Mutant(
        "TextTask.held_out", "plan.validation.items()", "plan.train.items()", TEXTS
    ),
    "an expert that classifies chosen on training rows": Mutant(
        "LabelTrainer.__init__",
        "self.held_out = self.encoded(plan.validation,",
        "self.held_out = self.encoded(plan.train,",
        LABELS,
    ),
    "a router trained on test prompts": Mutant(
        "prompts_of", "getattr(run.materials.domains[expert], split)", "run.materials.domains[expert].test", TEXTS
    ),
    "a router calibrated on training rows": Mutant(
        "train_router",
        "calibrate(router, validation)",
        "calibrate(router, train)",
        TEXTS,
    ),
    "texts judged that were trained on": Mutant("Task.test_rows", "take(domain.test,", "take(domain.train,", TEXTS),
    "labels judged that were trained on": Mutant("Task.test_rows", "take(domain.test,", "take(domain.train,", LABELS),
}
STAGES = {
    "the mixture costs as much as the base": Mutant(
        "TextTask.findings",
        '"router": counts["active"]',
        '"router": own',
        "stages/test_run.py::test_the_costs_of_contenders_are_counted_from_their_files",
    ),
    "a finished expert does not depend on its data": Mutant(
        "ExpertPart.inputs",
        '"data": digests(self.source, self.name),',
        "",
        "stages/test_run.py::test_what_depends_on_a_change_is_stale_and_nothing_else",
    ),
    "verify takes an expert that writes at its word": Mutant(
        "TextTask.verified",
        "if abs(found - said) > 1e-4 * said or idle:",
        "if idle:",
        "stages/test_run.py::test_verify_refuses_an_expert_that_is_whole_but_does_not_do_what_it_says",
    ),
    "verify takes an expert that classifies at its word": Mutant(
        "LabelTask.verified", "if value != said[key]:", "if False:", LABELS
    ),
    "a row that nobody claims is looked up in an expert": Mutant(
        "looked_up",
        "torch.where(weights.sum(-1) > 0, weights.argmax(-1), len(names))",
        "weights.argmax(-1)",
        "stages/test_evaluation.py::test_a_row_that_no_router_claims_is_looked_up_in_the_base",
    ),
    "the sum of adapters as their average": Mutant(
        "AdapterKind.average", "[1 / len(experts)] * len(experts)", "[1.0] * len(experts)", LABELS
    ),
    "matched prompts from the beginning": Mutant(
        "middle", "start = (row.prompt - size) // 2", "start = 0", "stages/test_matched_prompts.py"
    ),
}
ANSWERS = {
    "labels in alphabetical order of their experts": Mutant(
        "classified", "zip(stored.model.classifier.labels,", "zip(sorted(stored.model.classifier.labels),", LABELS
    ),
    "the last of equal experts answers": Mutant(
        "Selection.__call__", "values, experts = shares.topk(k, -1)\n", LAST_FIRST, "routing/test_selection.py"
    ),
    "a row that abstains has a best expert": Mutant(
        "Routing.best", "self.weights.sum(-1) > 0", "self.weights.sum(-1) >= 0", "routing/test_selection.py"
    ),
}
EVALUATION = {
    "a hundredth of the scale instead of one percent": Mutant(
        "Unit.close", "within * abs(self.figure(best))", "within", "evaluate/test_units.py"
    ),
    "the best part as the best expert": Mutant(
        "_best_parts",
        "return best(experts), best(parts)",
        "return best(parts), best(parts)",
        "evaluate/test_verdict.py",
    ),
    "differences that are not paired": Mutant(
        "Means.difference",
        "bounds(self.draws[a] - self.draws[b],",
        "bounds(self.draws[a] - self.draws[b][::-1],",
        "evaluate/test_statistics.py",
    ),
    "choices and labels of the confusion swapped": Mutant(
        "router_report",
        "np.add.at(counts, (true, picked), 1)",
        "np.add.at(counts, (picked, true), 1)",
        "evaluate/test_router_report.py",
    ),
    "two runs compared the wrong way round": Mutant(
        "Side.minus", "mine - its", "its - mine", "report/test_comparison.py"
    ),
}
MUTANTS = {**DISK, **DATA, **ROWS, **STAGES, **ANSWERS, **EVALUATION}


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function by its name, methods with that of their class, whatever other blocks stand around them."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.ClassDef | ast.FunctionDef)
        name = f"{inside}{node.name}" if named else ""
        if isinstance(node, ast.FunctionDef):
            yield name, node
        yield from functions(node, f"{name}." if named else inside)


def places(package: Path) -> dict[str, list[Place]]:
    """All functions of a package by their names."""
    found: dict[str, list[Place]] = {}
    for path in sorted(package.rglob("*.py")):
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(name, []).append(Place(path, node.lineno - 1, node.end_lineno or node.lineno))
    return found


def place_of(mutant: Mutant, found: dict[str, list[Place]]) -> Place:
    """The one function of the mutant's name that holds its text, once."""
    holding = [place for place in found.get(mutant.function, []) for _ in range(place.source.count(mutant.old))]
    assert len(holding) == 1, f"{mutant.function} holds {mutant.old!r} {len(holding)} times, not once"
    return holding[0]


@pytest.fixture(scope="module")
def package() -> dict[str, list[Place]]:
    return places(PACKAGE)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_guard_and_the_tests_that_watch_it_exist(mutant: str, package):
    one = MUTANTS[mutant]
    place = place_of(one, package)
    ast.parse(place.replaced(place.source.replace(one.old, one.new)))
    file, _, name = one.tests.partition("::")
    assert (ROOT / "tests" / file).exists()
    assert not name or f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.mark.faults
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_test_notices(mutant: str, tmp_path: Path):
    one = MUTANTS[mutant]
    for name in ("moesaic", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place = place_of(one, places(tmp_path / "moesaic"))
    place.path.write_text(place.replaced(place.source.replace(one.old, one.new)), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not faults", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, f"tests/{one.tests}"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    print(f"{mutant}: {next(line for line in done.stdout.splitlines() if line.startswith(('FAILED', 'ERROR')))}")
