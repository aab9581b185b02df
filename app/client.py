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
"""Seconds that an answer may take, and a connection."""
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
    patient: bool = False,
) -> httpx.Response:
    """The daemon's answer; ends the command with the problem's words where it is one.

    patient: for what may take long, and is waited for as long as the daemon lives.
    """
    import httpx

    timeout = httpx.Timeout(_TIMEOUT, read=None if patient else _TIMEOUT)

    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=socket), base_url="http://bridgehead", timeout=timeout
        ) as api:
            answer = api.request(method, path, json=body, content=content, params=query)
    except httpx.ReadTimeout:
        fail(f"no answer from the daemon at {socket} within {_TIMEOUT:g} s; what was asked for may still be done")
    except (httpx.ReadError, httpx.RemoteProtocolError) as failure:
        fail(f"the daemon at {socket} ended before it answered ({failure}); what was asked for may have been done")
    except httpx.TransportError as failure:
        reason = str(failure) if os.path.exists(socket) else "it is not there"
        fail(f"no answer from the daemon at {socket} ({reason}): is 'bridgehead serve' running?")
    if check and answer.is_error:
        problem = answer.json()
        fail(f"{in_flags(problem['detail'])} [{problem['code']}]")
    return answer


def in_flags(words: str) -> str:
    """The API's words as the command has them."""
    return words.replace("?force=true", "--force")


def fail(words: str) -> Any:
    """Ends the command."""
    print(f"bridgehead: {words}", file=sys.stderr)
    raise typer.Exit(1)
