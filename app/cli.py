"""The `bridgehead` command: the daemon, and a client of its API over the unix socket.

The daemon's own modules are imported by the commands that need them: `bridgehead --help` must not wait.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import cli_backup, cli_serve, cli_tokens
from app.client import DEFAULT_SOCKET, Socket
from app.client import fail as _fail
from app.client import request as _request

if TYPE_CHECKING:
    import httpx

app = typer.Typer(
    help="Container networks for network namespaces.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes cost more time than all else that --help does
)
network = typer.Typer(help="Networks: a bridge with a subnet.", no_args_is_help=True)
endpoint = typer.Typer(help="Endpoints: a namespace's connection to a network.", no_args_is_help=True)
portmap = typer.Typer(help="Published ports.", no_args_is_help=True)
app.add_typer(network, name="network")
app.add_typer(endpoint, name="endpoint")
app.add_typer(portmap, name="portmap")
app.add_typer(cli_tokens.app, name="token")
app.command("serve")(cli_serve.serve)
app.command("export")(cli_backup.export)
app.command("import")(cli_backup.restore)

Json = Annotated[bool, typer.Option("--json", help="The API's own answer.")]
Label = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")]
Force = Annotated[bool, typer.Option("--force", help="Also remove what depends on it.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="An id or a name.")]


@app.command()
def openapi() -> None:
    """Prints the OpenAPI document."""
    from app.main import create_app

    print(json.dumps(create_app().openapi(), indent=2, ensure_ascii=False))


@app.command()
def version() -> None:
    """Prints the version."""
    from app import __version__

    print(__version__)


@app.command()
def health(socket: Socket = DEFAULT_SOCKET) -> None:
    """Exits 0 where the daemon answers and is ready, else 1."""
    answer = _request(socket, "GET", "/readyz", check=False)
    print("ready" if answer.status_code == 200 else "not ready")
    raise typer.Exit(0 if answer.status_code == 200 else 1)


@app.command()
def down(yes: Annotated[bool, typer.Option("--yes", help="Really.")] = False, socket: Socket = DEFAULT_SOCKET) -> None:
    """Removes all that the daemon made: every network with its endpoints, port mappings and namespaces."""
    found = _request(socket, "GET", "/networks").json()
    if not yes:
        names = ", ".join(one["name"] for one in found) or "none"
        _fail(f"this removes every network ({names}) and all that is connected; say so with --yes")
    while found:
        for one in found:
            answer = _request(socket, "DELETE", f"/networks/{one['id']}", query={"force": "true"}, check=False)
            if answer.status_code not in (204, 404):  # 404: somebody else removed it meanwhile
                _fail(f"{answer.json()['detail']} [{answer.json()['code']}]")
            print(one["name"])
        found = _request(socket, "GET", "/networks").json()  # one may have been made meanwhile


@app.command()
def host(socket: Socket = DEFAULT_SOCKET, as_json: Json = False) -> None:
    """Shows the host: backend, settings, uplinks, and others' chains and routes that are in the way."""
    found = _request(socket, "GET", "/host").json()
    if as_json:
        _print_json(found)
    else:
        for subject, words in _host_lines(found):
            print(f"{subject:<22}{words}")


def _host_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Subject and words, a line each."""
    lines = [("firewall", f"{found['firewall']['backend']} ({found['firewall']['why']})")]
    for name in ("ip_forward", "ipv6_forwarding"):
        setting = found[name]
        lines.append((name, f"{setting['value']} ({setting['by']})" if setting else "the kernel has none"))
    for family in ("iptables", "ip6tables"):
        value = found[f"bridge_nf_call_{family}"]
        lines.append((f"bridge-nf {family}", "br_netfilter is not loaded" if value is None else str(int(value))))
    lines.append(("kernel", ", ".join(name for name, there in found["kernel"].items() if there)))
    for one in found["uplinks"]:
        words = f"{one['ifname']} via {one['via'] or '-'}, MTU {one['mtu']}, {', '.join(one['addresses'])}"
        lines.append((f"uplink IPv{one['version']}", words))
    for one in found["foreign_chains"]:
        legacy = "legacy " if one["backend"] == "iptables" else ""
        place = f"chain {one['chain']} of {legacy}table {one['family']} {one['table']}"
        whose = f"({one['verdict']}, {one['owner']})"
        lines.append((one["effect"], f"{place} {whose}: {', '.join(one['bridges']) or 'any network'}"))
    for one in found["overlapping_routes"]:
        words = f"{one['route']} dev {one['ifname']} overlaps {one['subnet']} of network {one['network']}"
        lines.append(("route", words))
    return lines


@app.command()
def demo() -> None:
    """Plays the walk-through in a sandbox of namespaces, and leaves the machine as it was."""
    from app.demo import play

    raise typer.Exit(play())


@network.command("create")
def network_create(
    name: Annotated[str, typer.Argument()],
    subnet: Annotated[str | None, typer.Option(help="By default the next free one.")] = None,
    gateway: Annotated[str | None, typer.Option(help="The bridge's address; 'none' for a pure L2 bridge.")] = None,
    bridge: Annotated[str | None, typer.Option(help="The bridge's interface name.")] = None,
    ip_range: Annotated[str | None, typer.Option(help="Where automatic addresses come from.")] = None,
    subnet6: Annotated[str | None, typer.Option(help="An IPv6 subnet, or 'auto' for a unique local /64.")] = None,
    gateway6: Annotated[str | None, typer.Option(help="The bridge's IPv6 address; 'none' for none.")] = None,
    ip_range6: Annotated[str | None, typer.Option(help="Where automatic IPv6 addresses come from.")] = None,
    mtu: Annotated[int | None, typer.Option()] = None,
    internal: Annotated[bool, typer.Option("--internal", help="No way out and none in.")] = False,
    isolated: Annotated[bool, typer.Option(help="No traffic with the other networks.")] = True,
    icc: Annotated[bool, typer.Option(help="Endpoints of the network reach one another.")] = True,
    masquerade: Annotated[bool, typer.Option(help="Leave with the uplink's address.")] = True,
    snat_address: Annotated[str | None, typer.Option(help="Leave with this address of the host instead.")] = None,
    spoof_protection: Annotated[
        bool, typer.Option("--spoof-protection", help="Endpoints send only from their own MAC and addresses.")
    ] = False,
    label: Label = None,
    socket: Socket = DEFAULT_SOCKET,
    as_json: Json = False,
) -> None:
    """Makes a network."""
    body = _body(name=name, subnet=subnet, gateway=gateway, bridge=bridge, ip_range=ip_range, mtu=mtu)
    body |= _body(subnet6=subnet6, gateway6=gateway6, ip_range6=ip_range6, snat_address=snat_address)
    body |= {key: None for key in ("gateway", "gateway6") if body.get(key) == "none"}
    body |= {"internal": internal, "isolated": isolated, "icc": icc, "masquerade": masquerade}
    body |= {"spoof_protection": spoof_protection, "labels": _labels(label)}
    _show(_request(socket, "POST", "/networks", body), as_json)


@endpoint.command("create")
def endpoint_create(
    network_ref: Annotated[str, typer.Argument(metavar="NETWORK")],
    namespace: Annotated[str | None, typer.Argument(help="A name under /run/netns, made where missing.")] = None,
    pid: Annotated[int | None, typer.Option(help="A process instead of a name.")] = None,
    netns: Annotated[str | None, typer.Option(help="A path instead of a name.")] = None,
    name: Annotated[str | None, typer.Option()] = None,
    address: Annotated[str | None, typer.Option(help="By default the next free one.")] = None,
    address6: Annotated[str | None, typer.Option(help="Likewise, where the network has a subnet6.")] = None,
    mac: Annotated[str | None, typer.Option()] = None,
    ifname: Annotated[str | None, typer.Option(help="Inside the namespace.")] = None,
    host_ifname: Annotated[str | None, typer.Option(help="On the bridge.")] = None,
    default_route: Annotated[bool | None, typer.Option(help="By default automatic.")] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Goes with its namespace.")] = False,
    label: Label = None,
    socket: Socket = DEFAULT_SOCKET,
    as_json: Json = False,
) -> None:
    """Connects a namespace to a network."""
    body = _body(
        network=network_ref,
        namespace=namespace,
        pid=pid,
        netns=netns,
        name=name,
        address=address,
        address6=address6,
        mac=mac,
        ifname=ifname,
        host_ifname=host_ifname,
        default_route=default_route,
        ephemeral=ephemeral or None,
    )
    _show(_request(socket, "POST", "/endpoints", body | {"labels": _labels(label)}), as_json)


@portmap.command("create")
def portmap_create(
    endpoint_ref: Annotated[str, typer.Argument(metavar="ENDPOINT")],
    ports: Annotated[
        str, typer.Argument(metavar="[HOST_PORT][:TARGET_PORT]", help="8080:80, :80, or a range 8000-8010:9000.")
    ] = "",
    protocol: Annotated[str, typer.Option(help="tcp, udp or sctp.")] = "tcp",
    host_ip: Annotated[
        str | None, typer.Option(help="By default 0.0.0.0, every one of the host; '::' of IPv6.")
    ] = None,
    label: Label = None,
    socket: Socket = DEFAULT_SOCKET,
    as_json: Json = False,
) -> None:
    """Publishes a port of an endpoint, or a range of them, on the host."""
    host_port, _colon, target_port = ports.partition(":")
    body = _body(endpoint=endpoint_ref, protocol=protocol, host_ip=host_ip)
    body |= _body(host_port=_ports(host_port), target_port=_ports(target_port))
    _show(_request(socket, "POST", "/portmaps", body | {"labels": _labels(label)}), as_json)


def _ports(text: str) -> int | str | None:
    """One port is an integer to the API; a range it checks itself."""
    if not text:
        return None
    if not all(part.isascii() and part.isdigit() for part in text.split("-")):
        _fail(f"'{text}' is neither a port such as 8080 nor a range such as 8000-8010")
    return text if "-" in text else int(text)


_COLUMNS = {
    "network": ["name", "subnet", "gateway", "subnet6", "gateway6", "bridge", "status"],
    "endpoint": ["name", "network_name", "address", "address6", "namespace", "ifname", "host_ifname", "status"],
    "portmap": ["id", "protocol", "host_ip", "host_port", "endpoint_name", "target_port", "status"],
}


def _list(kind: str, socket: str, as_json: bool, **query: Any) -> None:
    answer = _request(socket, "GET", f"/{kind}s", query=_body(**query))
    _print_json(answer.json()) if as_json else _table(answer.json(), _COLUMNS[kind])


Limit = Annotated[int | None, typer.Option(metavar="N", help="At most so many.")]
OfNetwork = Annotated[str | None, typer.Option("--network", metavar="REF", help="Only those of one network.")]


@network.command("ls")
def network_ls(
    label: Label = None, limit: Limit = None, socket: Socket = DEFAULT_SOCKET, as_json: Json = False
) -> None:
    """Lists the networks."""
    _list("network", socket, as_json, label=label or None, limit=limit)


@endpoint.command("ls")
def endpoint_ls(
    network_ref: OfNetwork = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Only those in one namespace.")] = None,
    label: Label = None,
    limit: Limit = None,
    socket: Socket = DEFAULT_SOCKET,
    as_json: Json = False,
) -> None:
    """Lists the endpoints."""
    _list("endpoint", socket, as_json, network=network_ref, namespace=namespace, label=label or None, limit=limit)


@portmap.command("ls")
def portmap_ls(
    network_ref: OfNetwork = None,
    endpoint_ref: Annotated[
        str | None, typer.Option("--endpoint", metavar="REF", help="Only those of one endpoint.")
    ] = None,
    label: Label = None,
    limit: Limit = None,
    socket: Socket = DEFAULT_SOCKET,
    as_json: Json = False,
) -> None:
    """Lists the port mappings."""
    _list("portmap", socket, as_json, network=network_ref, endpoint=endpoint_ref, label=label or None, limit=limit)


def _add_show(group: typer.Typer, kind: str) -> None:
    @group.command("show", help=f"Shows one {kind}.")
    def show(ref: Ref, socket: Socket = DEFAULT_SOCKET) -> None:
        _print_json(_request(socket, "GET", f"/{kind}s/{_quoted(ref)}").json())


def _add_rm(group: typer.Typer, kind: str) -> None:
    @group.command("rm", help=f"Removes {kind}s.")
    def rm(
        refs: Annotated[list[str], typer.Argument(metavar="REF...")],
        force: Force = False,
        socket: Socket = DEFAULT_SOCKET,
    ) -> None:
        _remove(kind, refs, socket, {"force": "true"} if force else {})


@portmap.command("rm")
def portmap_rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    socket: Socket = DEFAULT_SOCKET,
) -> None:
    """Removes port mappings, by id."""
    _remove("portmap", ids, socket, {})


def _remove(kind: str, refs: list[str], socket: str, query: dict[str, Any]) -> None:
    for ref in refs:
        _request(socket, "DELETE", f"/{kind}s/{_quoted(ref)}", query=query)
        print(ref)


for _group, _kind in ((network, "network"), (endpoint, "endpoint"), (portmap, "portmap")):
    _add_show(_group, _kind)
    if _group is not portmap:
        _add_rm(_group, _kind)


def _quoted(ref: str) -> str:
    from urllib.parse import quote

    if not ref:
        _fail("a REF is empty; give an id or a name")
    return quote(ref, safe="")


def _body(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _labels(given: list[str] | None) -> dict[str, str]:
    pairs = [one.partition("=") for one in given or []]
    for key, equals, _value in pairs:
        if not key or not equals:
            _fail(f"label '{key}' is not KEY=VALUE")
    return {key: value for key, _equals, value in pairs}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _show(answer: httpx.Response, as_json: bool) -> None:
    made = answer.json()
    _print_json(made) if as_json else print(made["name"] if "name" in made else made["id"])


def _table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(column.removesuffix("_name").replace("_", " ").upper() for column in columns), box=None)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['state']} {value['message']}".strip()
    return "-" if value is None else str(value)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
