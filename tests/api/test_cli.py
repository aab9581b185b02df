"""The client's commands, as far as they answer without a daemon, or with one that is played."""

import contextlib
import socket
import threading

import pytest
from typer.testing import CliRunner

from app import client
from app.cli import app


@pytest.mark.parametrize("command", [["network", "rm"], ["network", "show"], ["endpoint", "rm"], ["portmap", "rm"]])
def test_an_empty_reference_is_refused(tmp_path, command):
    """A shell's unset variable: the path of a list is no object's."""
    result = CliRunner().invoke(app, [*command, "", "--socket", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "a REF is empty" in result.stderr
    assert result.stdout == ""


class Slow:
    """A daemon in one thread that takes its time, and answers as it is told, or hangs up."""

    def __init__(self, path, seconds, answer):
        self._seconds, self._answer = seconds, answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_failure):
        self._ended.set()
        self._thread.join()
        self._listener.close()

    def _serve(self):
        connection, _address = self._listener.accept()
        with connection:
            connection.recv(1 << 16)
            self._ended.wait(self._seconds)
            if self._answer:
                head = f"HTTP/1.1 {self._answer[0]} x\r\ncontent-length: {len(self._answer[1])}\r\n\r\n"
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(head.encode() + self._answer[1].encode())


def run(tmp_path, *command, seconds=0.0, answer=None):
    path = tmp_path / "api.sock"
    with Slow(path, seconds, answer):
        return CliRunner().invoke(app, [*map(str, command), "--socket", str(path)])


@pytest.fixture
def document(tmp_path):
    (tmp_path / "document.json").write_text("{}")
    return tmp_path / "document.json"


def test_an_import_is_waited_for(tmp_path, document, monkeypatch):
    monkeypatch.setattr(client, "_TIMEOUT", 0.1)
    result = run(tmp_path, "import", document, seconds=0.5, answer=(201, '{"networks": 1}'))
    assert (result.exit_code, result.stdout) == (0, "1 networks\n")


def test_another_command_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_TIMEOUT", 0.1)
    result = run(tmp_path, "network", "ls", seconds=30, answer=(200, "[]"))
    assert result.exit_code == 1
    assert "within 0.1 s; what was asked for may still be done" in result.stderr


def test_a_daemon_that_ends_meanwhile(tmp_path, document):
    result = run(tmp_path, "import", document)
    assert result.exit_code == 1
    assert "ended before it answered" in result.stderr


def test_the_command_names_its_own_flag(tmp_path):
    problem = '{"detail": "network \'web\' has endpoints; or use ?force=true", "code": "in_use"}'
    result = run(tmp_path, "network", "rm", "web", answer=(409, problem))
    assert result.stderr == "bridgehead: network 'web' has endpoints; or use --force [in_use]\n"
