"""The client's commands, as far as they answer without a daemon."""

import pytest
from typer.testing import CliRunner

from app.cli import app


@pytest.mark.parametrize("command", [["network", "rm"], ["network", "show"], ["endpoint", "rm"], ["portmap", "rm"]])
def test_an_empty_reference_is_refused(tmp_path, command):
    """A shell's unset variable: the path of a list is no object's."""
    result = CliRunner().invoke(app, [*command, "", "--socket", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "a REF is empty" in result.stderr
    assert result.stdout == ""
