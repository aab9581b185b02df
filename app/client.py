"""The command's side of the API: requests over the unix socket, and their failure in one line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import httpx

DEFAULT_SOCKET = "/run/bridgehead/api.sock"
_TIMEOUT = 60.0
Socket = Annotated[str, typer.Option("--socket", envvar="BRIDGEHEAD_SOCKET", help="The daemon's unix socket.")]


def request(
    socket: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    content: bytes | None = None,
    query: dict[str, Any] | None = None,
    check: bool = True,
) -> httpx.Response:
    """The daemon's answer; ends the command with the problem's words where it is one."""
    import httpx

    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=socket), base_url="http://bridgehead", timeout=_TIMEOUT
        ) as api:
            answer = api.request(method, path, json=body, content=content, params=query)
    except httpx.TransportError as failure:
        reason = str(failure) if os.path.exists(socket) else "it is not there"
        fail(f"no answer from the daemon at {socket} ({reason}): is 'bridgehead serve' running?")
    if check and answer.is_error:
        problem = answer.json()
        fail(f"{problem['detail']} [{problem['code']}]")
    return answer


def fail(words: str) -> Any:
    """Ends the command."""
    print(f"bridgehead: {words}", file=sys.stderr)
    raise typer.Exit(1)
