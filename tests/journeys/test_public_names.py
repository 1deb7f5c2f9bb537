"""Journey: the journeys use every public name at least once, and none that is not public."""

import ast
from pathlib import Path

import moesaic

TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(Path(__file__).parent.glob("*.py"))]
NODES = [node for tree in TREES for node in ast.walk(tree)]


def test_every_public_name_is_used_in_a_journey():
    used = {
        node.attr
        for node in NODES
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "moesaic"
    }
    assert set(moesaic.__all__) - used == set()
    assert used - {*moesaic.__all__, "__all__"} == set()


def test_no_journey_imports_what_lies_behind_the_public_names():
    modules = {alias.name for node in NODES if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in NODES if isinstance(node, ast.ImportFrom) and node.module}
    assert [module for module in sorted(modules) if module.startswith("moesaic.")] == []
