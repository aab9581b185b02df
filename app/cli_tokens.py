"""`bridgehead token`: the TCP listener's tokens, in the state directory's files; a running daemon sees it at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from app.host.tokens import TokenStore

T = TypeVar("T")

app = typer.Typer(help="Tokens of the TCP listener; for root.", no_args_is_help=True)
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="BRIDGEHEAD_STATE_DIR", metavar="DIR", help="The daemon's.")
]
Name = Annotated[str, typer.Argument(metavar="NAME")]
_DEFAULT = Path("/var/lib/bridgehead")


@app.command()
def create(
    name: Name,
    role: Annotated[str, typer.Option(metavar="read|write", help="read: looks, and changes nothing.")] = "write",
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="Changes only what is on these networks; may be repeated."),
    ] = None,
    state_dir: StateDir = _DEFAULT,
) -> None:
    """Makes a token and prints it: this once, for only its hash is kept."""
    from app.model.access import Role

    if role not in list(Role):
        _fail(f"role '{role}' is neither read nor write")
    print(_with(state_dir, lambda store: store.create(name, Role(role), network or None)))


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="By default the one in the file 'token'.")] = "default",
    state_dir: StateDir = _DEFAULT,
) -> None:
    """Gives a token a new secret and prints it; the old one is void at once."""
    print(_with(state_dir, lambda store: store.rotate(name)))


@app.command()
def ls(state_dir: StateDir = _DEFAULT) -> None:
    """Lists the tokens: name, role, networks, since when."""
    for token in _with(state_dir, lambda store: store.all()):
        networks = "all networks" if token.networks is None else ",".join(sorted(token.networks))
        print(f"{token.name:<20} {token.role:<6} {networks:<30} {token.created_at}".rstrip())


@app.command()
def rm(name: Name, state_dir: StateDir = _DEFAULT) -> None:
    """Makes a token void at once."""
    _with(state_dir, lambda store: store.remove(name))
    print(name)


def _with(state_dir: Path, work: Callable[[TokenStore], T]) -> T:
    from app.host.tokens import TokenStore
    from app.model.errors import BridgeheadError

    if not state_dir.is_dir():
        _fail(f"state directory {state_dir} is not there: start the daemon once, or name its --state-dir")
    try:
        return work(TokenStore(state_dir))
    except BridgeheadError as failure:
        _fail(failure.detail)
    except OSError as refusal:
        _fail(f"the tokens in {state_dir} cannot be used: {refusal.strerror}; this is for root")


def _fail(words: str) -> NoReturn:
    print(f"bridgehead: {words}", file=sys.stderr)
    raise typer.Exit(1)
