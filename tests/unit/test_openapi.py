"""openapi.json at the top is the app's, and says what it must of every operation."""

import json
from pathlib import Path

import jsonschema
import pytest

from app.main import create_app

FILE = Path(__file__).parents[2] / "openapi.json"
DOCUMENT = json.loads(json.dumps(create_app().openapi()))
OPERATIONS = [
    pytest.param(path, method, operation, id=f"{method} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


def test_the_file_is_the_app_s():
    assert json.loads(FILE.read_text()) == DOCUMENT, "run `make openapi`"


def test_the_operations_are_told_apart():
    names = [param.values[2]["operationId"] for param in OPERATIONS]
    assert len(names) == len(set(names)) == 26


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_operation(path, method, operation):
    assert operation["summary"]
    assert operation["operationId"]
    problems = {status: one for status, one in operation["responses"].items() if int(status) >= 400}
    if path != "/healthz":
        assert "401" in problems
    if "{" in path or method != "get":
        assert {"404", "422"} & set(problems)
    if method in ("post", "patch", "delete"):
        assert {"422", "502", "503"} <= set(problems)
    if method in ("patch", "delete"):
        assert "412" in problems
    for status, one in problems.items():
        assert one["description"]
        if (path, status) != ("/readyz", "503"):
            schema = one["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}


WITH_BODY = [param for param in OPERATIONS if "requestBody" in param.values[2]]


def body_schema(operation):
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


@pytest.mark.parametrize(("path", "method", "operation"), WITH_BODY)
def test_every_example_is_valid(path, method, operation):
    schema = body_schema(operation)
    assert schema["additionalProperties"] is False
    assert schema["examples"]
    for example in schema["examples"]:
        jsonschema.validate(example, {**schema, "components": DOCUMENT["components"]})
