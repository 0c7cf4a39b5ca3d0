"""The schema and its page say the same, and the check refuses what the schema does."""

from __future__ import annotations

import json
import re

import pytest
from house.source import ROOT

from glmc.bench.schema import REPORT, check
from glmc.errors import ReportError

PAGE = (ROOT / "docs/bench.md").read_text()
LATENCIES = ("tpot", "itl", "e2el")


def names(schema) -> set[str]:
    """Every field that a schema names."""
    found = set(schema.get("properties", {}))
    for part in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        found |= names(part) if part else set()
    return found


def test_the_page_names_every_field():
    told = set(re.findall(r"`(\w+)`", PAGE))
    told |= {name.replace("ttft", latency) for name in told for latency in LATENCIES}
    assert names(REPORT) - told == set()


def test_the_schema_is_json():
    assert json.loads(json.dumps(REPORT))["$schema"].startswith("https://json-schema.org/")
    assert len(names(REPORT)) > 100


@pytest.mark.parametrize(("schema", "good", "bad", "said"), [
    ({"type": "integer"}, 3, 3.5, "another type"), ({"type": "integer"}, 3, True, "another type"),
    ({"type": ["number", "null"]}, None, "x", "number or null"),
    ({"type": "array", "items": {"type": "string"}}, ["a"], [1], r"\[0\]"),
    ({"type": "object", "required": ["a"]}, {"a": 1}, {}, "lacks a field"),
    ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"x": True}, {"x": 1}, "x"),
    ({"type": "integer", "enum": [1]}, 1, 2, "another format"),
])
def test_the_check(schema, good, bad, said):
    check(good, schema, "a.json")
    with pytest.raises(ReportError, match=said):
        check(bad, schema, "a.json")
