"""Does the JSON schema take every recipe that is read here, and refuse misspelt keys and keys of another kind?"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from moesaic.kinds import KINDS
from moesaic.recipe.json_schema import json_schema
from moesaic.sections import document

FOLDER = Path(__file__).parents[2] / "recipes"
SCHEMA = json_schema()

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "minProperties": lambda value, limit: len(value) >= limit,
    "pattern": lambda value, limit: re.search(limit, value) is not None,
    "enum": lambda value, limit: value in limit,
    "const": lambda value, limit: value == limit,
    "required": lambda value, limit: all(key in value for key in limit),
    "items": lambda value, limit: all(takes(limit, item) for item in value),
    "anyOf": lambda value, limit: any(takes(one, value) for one in limit),
    "oneOf": lambda value, limit: sum(takes(one, value) for one in limit) == 1,
    "$ref": lambda value, limit: takes(SCHEMA["$defs"][limit.removeprefix("#/$defs/")], value),
}
SAYS_NOTHING = {"title", "description", "default", "type", "properties", "additionalProperties", "discriminator"}
SAYS_NOTHING |= {"patternProperties", "$defs", "$schema"}


def takes(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value fits a schema, of the words that a recipe's schema is made of."""
    if "type" in schema:
        alike = isinstance(value, TYPES[schema["type"]])
        if not alike or (isinstance(value, bool) and schema["type"] != "boolean"):
            return False
    if not all(LIMITS[word](value, limit) for word, limit in schema.items() if word not in SAYS_NOTHING):
        return False
    if not isinstance(value, dict):
        return True
    patterns = schema.get("patternProperties", {})
    alike = {key: one for key in value for pattern, one in patterns.items() if re.search(pattern, key)}
    known, others = alike | schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(
        takes(known[key], inner) if key in known else others is True or (others is not False and takes(others, inner))
        for key, inner in value.items()
    )


def recipes() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def written(path: Path) -> Any:
    return document.load(path.read_text(encoding="utf-8")).value


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_it_takes_every_shipped_recipe_and_refuses_each_with_a_misspelt_key(path: Path) -> None:
    recipe = written(path)
    assert takes(SCHEMA, recipe)
    for place in (("trian",), ("router", "hiden"), ("experts", next(iter(recipe["experts"])), "rnak")):
        wrong = copy.deepcopy(recipe)
        section = wrong
        for step in place[:-1]:
            section = section[step]
        section[place[-1]] = 3
        assert not takes(SCHEMA, wrong), place


GOOD = {"name": "x", "base": {"path": "a/b"}, "router": {"kind": "linear"}}
FILES = {"train": "a.jsonl", "test": ["b.jsonl", {"path": "c.jsonl", "limit": 3}]}


@pytest.mark.parametrize(
    ("expert", "good"),
    [
        ({"kind": "lora", "data": FILES, "rank": 4}, True),
        ({"kind": "tt_lora", "data": FILES, "factors": 4}, True),
        ({"kind": "tt_lora", "data": FILES, "factors": {"q_proj": [[8], [2, 4]]}}, True),
        ({"kind": "ffn", "data": FILES, "anchor": True}, True),
        ({"kind": "model", "path": "there", "examples": "a.jsonl"}, True),
        ({"kind": "lora", "data": FILES | {"task": "mrpc", "metric": "f1", "validation": 0.5}}, True),
        ({"kind": "lora", "data": {"demo": "code"}, "train": {"lr": [0.1, 0.2]}}, True),
        ({"data": FILES}, False),
        ({"kind": "loar", "data": FILES}, False),
        ({"kind": "ffn", "data": FILES, "rank": 4}, False),
        ({"kind": "lora", "data": FILES, "factors": 4}, False),
        ({"kind": "lora", "data": FILES, "rank": "4"}, False),
        ({"kind": "ffn", "data": FILES, "sweep": {"rank": [4]}}, False),
        ({"kind": "lora", "data": FILES | {"tset": "d.jsonl"}}, False),
        ({"kind": "lora", "data": {"train": "a.jsonl"}}, False),
    ],
    ids=str,
)
def test_the_kind_decides_which_keys_an_expert_has(expert: dict[str, Any], good: bool) -> None:
    assert takes(SCHEMA, {**GOOD, "experts": {"one": expert}}) == good


def test_sections_are_closed_and_every_key_is_described() -> None:
    sections = [SCHEMA, *SCHEMA["$defs"].values()]
    sections += [section["anyOf"][1] for section in sections if "anyOf" in section]  # beside its shorthand
    closed = [section for section in sections if "properties" in section]
    assert len(closed) == len(SCHEMA["$defs"]) + 1
    for section in closed:
        assert section["additionalProperties"] is False
        assert all(field.get("description") for field in section["properties"].values()), section["title"]


def test_it_is_plain_json_that_names_the_section_of_every_kind() -> None:
    text = json.dumps(SCHEMA)
    assert "\\u0000" not in text
    found = SCHEMA["properties"]["experts"]["additionalProperties"]
    assert found["discriminator"]["propertyName"] == "kind"
    mapping = found["discriminator"]["mapping"]
    sections = {word: SCHEMA["$defs"][ref.rpartition("/")[2]] for word, ref in mapping.items()}
    assert {word: section["properties"]["kind"]["const"] for word, section in sections.items()} == {
        word: word for word in KINDS
    }
    assert all("kind" in section["required"] for section in sections.values())
