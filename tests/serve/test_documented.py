"""Property: what docs/serving.md shows is what the server gives: its block, its fields, its `routing` object."""

import json
import re
import subprocess
import sys
from pathlib import Path

from small_server import Running

from moesaic.serve.conversations import REMEMBERED as CONVERSATIONS
from moesaic.serve.schema import ChatRequest, CompletionRequest
from moesaic.serve.version import Limits
from moesaic.serve.worker import REMEMBERED

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_the_python_block_asks_a_server_and_prints_who_answered(served: Running):
    script = block("python").replace("http://127.0.0.1:8000", served.url).replace('"mine"', '"mix"')
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "base"


def test_the_routing_object_has_the_keys_that_are_shown(served: Running):
    shown, found = json.loads(block("json")), served.chat("add the sum").json()["routing"]
    assert shown.keys() == found.keys() and found["id"][:4] == shown["id"][:4] == "dec_"
    assert [len(found[key]) for key in ("id", "mixture")] == [len(shown[key]) for key in ("id", "mixture")]


def test_every_field_of_a_request_and_every_default_is_named():
    fields = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
    assert not [field for field in fields if f"`{field}" not in PAGE]
    for value in (f"`--margin` ({Limits.margin})", f"{CONVERSATIONS:,} latest", f"latest {REMEMBERED:,} decisions"):
        assert value in " ".join(PAGE.split()), value


def test_every_route_is_named(served: Running):
    for path, operations in served.http.get("/openapi.json").json()["paths"].items():
        assert all(f"`{method.upper()} {path}`" in PAGE for method in operations), path
