"""`bridgehead export` and `bridgehead import`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.client import DEFAULT_SOCKET, Socket, fail, request

_TWIN = "-"
"""Stands for standard output, and input."""


def export(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="By default standard output.")] = Path(_TWIN),
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Writes the desired state, all of it, as one JSON document."""
    text = request(socket, "GET", "/export").content + b"\n"
    if str(file) == _TWIN:
        sys.stdout.buffer.write(text)
        return
    part = file.with_name(f"{file.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    except OSError as refusal:
        fail(f"cannot write {file}: {refusal.strerror}")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote; '-': standard input.")],
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Makes all that a document has, or nothing; for a daemon that has no networks."""
    try:
        content = sys.stdin.buffer.read() if str(file) == _TWIN else file.read_bytes()
    except OSError as refusal:
        fail(f"cannot read {file}: {refusal.strerror}")
    made = request(socket, "POST", "/import", content=content, patient=True).json()
    print(", ".join(f"{number} {kind}" for kind, number in made.items()))
