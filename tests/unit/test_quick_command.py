"""What the command imports before it does anything: a user waits for that each time."""

import subprocess
import sys

import pytest

HEAVY = ("fastapi", "httpx", "pyroute2", "rich", "sqlalchemy", "sqlmodel", "starlette", "uvicorn")
SHOW = """
import sys
from app.cli import app
sys.argv[1:] = {arguments!r}
try:
    app()
finally:
    print("imported", *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["version"], ["network", "--help"], ["endpoint", "create", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    ran = subprocess.run(
        [sys.executable, "-c", SHOW.format(arguments=arguments)], capture_output=True, text=True, check=True
    )
    assert ran.stdout
    imported = ran.stderr.rpartition("imported ")[2].split()
    assert "typer" in imported
    assert [name for name in HEAVY if name in imported] == []
    if arguments == ["--help"]:
        assert "pydantic" not in imported  # Typer itself imports it to read arguments


def test_models_that_are_built_when_they_are_used_say_nothing():
    ran = subprocess.run([sys.executable, "-m", "app.cli", "openapi"], capture_output=True, text=True, check=True)
    assert (ran.stdout[:1], ran.stderr) == ("{", "")
