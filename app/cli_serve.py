"""`bridgehead serve`: the daemon's flags."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer


def serve(
    socket: Annotated[str | None, typer.Option(help="Unix socket; '' for none.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="TCP, token needed; '' for none.")] = None,
    state_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Database and tokens.")] = None,
    database: Annotated[str | None, typer.Option(metavar="URL", help="SQLAlchemy URL.")] = None,
    firewall: Annotated[str | None, typer.Option(metavar="NAME", help="auto, iptables, nftables or none.")] = None,
    pool: Annotated[list[str] | None, typer.Option(metavar="CIDR[:PREFIX]", help="May be repeated.")] = None,
    audit_log: Annotated[str | None, typer.Option(metavar="FILE", help="The audit log, there too.")] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="TLS on --listen: certificate, PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
    tls_client_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="Clients need a certificate that one of these signed.")
    ] = None,
    insecure_listen: Annotated[
        bool | None, typer.Option("--insecure-listen", help="Beyond loopback without TLS.")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A Host header to take over TCP; may be repeated.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A web page's origin to let in; may be repeated.")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="N", help="Requests a second of a client; 0: any.")] = None,
    allow_foreign_namespaces: Annotated[
        bool | None,
        typer.Option("--allow-foreign-namespaces", help="Users other than root may connect any namespace."),
    ] = None,
) -> None:
    """Starts the daemon; the network namespace it is started in is "the host".

    Every flag is also an environment variable: BRIDGEHEAD_SOCKET, BRIDGEHEAD_LISTEN, and so on.
    """
    given = {name: value for name, value in locals().items() if value is not None and value != []}
    gc.disable()  # until all is loaded, which is most of what a start takes
    from app.main import load_settings, run
    from app.model.errors import StartupError

    try:
        settings = load_settings(**given)
    except StartupError as failure:
        print(f"bridgehead: {failure.detail}", file=sys.stderr)
        raise typer.Exit(1) from None
    raise typer.Exit(run(settings))
