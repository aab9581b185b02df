"""The walk-through, played in a sandbox of namespaces: each request, what the kernel was told, what packets did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
from rich.console import Console

from app.sandbox import (
    CLIENT,
    HOST,
    LAUNCHER,
    SERVER,
    Daemon,
    Ns,
    Sandbox,
    Snapshot,
    eventually,
    machine_view,
    snapshot,
)

_SOURCE = " INFO bridgehead.kernel: "
"""What stands before each command line in the daemon's log."""
_SILENT = 0.5
"""Seconds without an answer that count as none, where none is wanted."""
_RED, _BLUE, _GATEWAY = "192.168.15.1", "192.168.15.2", "192.168.15.5"
_PORT = 8080
_PAGE = b"hello from red\n"


class _Demo:
    """Says what it does and counts what went wrong."""

    def __init__(self, console: Console, sandbox: Sandbox, daemon: Daemon) -> None:
        self._console = console
        self._daemon = daemon
        self._told = 0
        self.sandbox = sandbox
        self.host, self.client, self.internet = sandbox.host, sandbox.client, sandbox.internet
        self.red, self.blue = sandbox.netns("red"), sandbox.netns("blue")
        self.wrong: list[str] = []

    def step(self, number: int, words: str) -> None:
        self._console.print(f"\n{number}. {words}", style="bold")

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a request and shows it, with what the daemon then told the kernel; the answer's object."""
        self._console.print(f"\n  {method} {path}{'' if body is None else ' ' + json.dumps(body)}", style="cyan")
        self._kernel_lines()
        answer = self._daemon.client.request(method, path, json=body)
        for line in self._kernel_lines():
            self._console.print(f"      {line}", style="dim")
        made: dict[str, Any] = answer.json() if answer.content else {}
        wanted = {"POST": 201, "PATCH": 200, "DELETE": 204}[method]
        words = {"detail": made.get("detail")} if answer.is_error else _essence(made)
        self.check(f"{answer.status_code} {answer.reason_phrase}{words}", answer.status_code == wanted)
        return made

    def _kernel_lines(self) -> list[str]:
        """The commands that the log has gained; its lines are written before the answer."""
        lines = self._daemon.log().splitlines()
        new, self._told = lines[self._told :], len(lines)
        return [line.partition(_SOURCE)[2] for line in new if _SOURCE in line]

    def check(self, words: str, right: bool, why: object = None) -> None:
        """Shows an outcome; a wrong one is remembered."""
        if right:
            self._console.print("  ok    ", style="green", end="")
            self._console.print(words)
            return
        self._console.print("  WRONG ", style="bold red", end="")
        self._console.print(words + (f" ({why})" if why else ""))
        self.wrong.append(words)

    def pings(self, source: Ns, target: str, words: str) -> None:
        self.check(f"{source.name} pings {words}", source.ping(target, count=3))

    def reads_page(self, source: Ns, address: str, words: str) -> None:
        page = source.http(address, _PORT, timeout=2.0)
        self.check(f"{words} reads red's page at {address}:{_PORT}", page == _PAGE, source.failure)


def _essence(made: dict[str, Any]) -> str:
    """Of an answer, what the kernel lines do not say."""
    shown = [f"{name} {made[name]}" for name in ("address", "gateway") if made.get(name)]
    if "status" in made:
        shown.append(f"status {made['status']['state']}")
    return f", {', '.join(shown)}" if shown else ""


def _layer_two(demo: _Demo) -> None:
    demo.step(1, "Two namespaces on a bridge without an address: they reach each other, the host does not")
    demo.request("POST", "/networks", {"name": "br0", "subnet": "192.168.15.0/24", "gateway": None})
    for name, address in (("red", _RED), ("blue", _BLUE)):
        body = {"network": "br0", "namespace": name, "ifname": f"veth-{name}", "host_ifname": f"veth-{name}-br"}
        made = demo.request("POST", "/endpoints", body)
        demo.check(f"{name} got {address}", made.get("address") == address, made.get("address"))
    demo.pings(demo.red, _BLUE, f"blue ({_BLUE})")
    demo.check(f"host cannot ping red ({_RED})", not demo.host.ping(_RED, timeout=_SILENT))


def _gateway(demo: _Demo) -> None:
    demo.step(2, "The bridge gets an address: the host reaches them, and both have a default route")
    demo.request("PATCH", "/networks/br0", {"gateway": _GATEWAY})
    demo.pings(demo.host, _RED, f"red ({_RED})")
    demo.pings(demo.red, _GATEWAY, f"its gateway ({_GATEWAY})")
    for place in (demo.red, demo.blue):
        route = place.default_route()
        demo.check(f"{place.name} has the default route via {_GATEWAY}", (route or ("",))[0] == _GATEWAY, route)


def _outbound(demo: _Demo) -> None:
    demo.step(3, "To the outside: forwarded although FORWARD's policy is DROP, and masqueraded (no request needed)")
    demo.pings(demo.red, SERVER, f"{SERVER}, a server outside")
    with demo.internet.tcp_server(8000, SERVER) as server:
        demo.red.tcp(SERVER, 8000, timeout=2.0)
        demo.check(
            f"that server sees the host's address {HOST}, not {_RED}", server.last_peer == HOST, server.last_peer
        )
    forwarding = demo.host.sysctl("net/ipv4/ip_forward")
    demo.check("net.ipv4.ip_forward is 1", forwarding == "1", forwarding)
    chain = demo.host.exec(["iptables-legacy", "-S", "FORWARD"]).stdout
    demo.check("FORWARD's policy is still DROP", "-P FORWARD DROP" in chain, chain)


def _published(demo: _Demo) -> str:
    demo.step(4, "Port 8080 of the host leads to red's web server, from everywhere")
    made = demo.request("POST", "/portmaps", {"endpoint": "red", "host_port": _PORT, "target_port": 80})
    with demo.red.tcp_server(80, http=True, banner=_PAGE) as server:
        demo.reads_page(demo.client, HOST, f"a client outside ({CLIENT})")
        demo.check(f"red's server saw that client as {CLIENT}", server.last_peer == CLIENT, server.last_peer)
        demo.reads_page(demo.host, "127.0.0.1", "the host itself")
        demo.reads_page(demo.host, HOST, "the host itself")
        demo.reads_page(demo.blue, _GATEWAY, "blue")
    return str(made.get("id"))


def _undone(demo: _Demo, portmap: str, before: Snapshot) -> None:
    demo.step(5, "All deleted: the host is as it was before step 1")
    for path in (f"/portmaps/{portmap}", "/endpoints/red", "/endpoints/blue", "/networks/br0"):
        demo.request("DELETE", path)
    difference = _difference(demo.sandbox, before)
    words = "links, addresses, routes, rules, chains, settings, namespaces and sockets are as they were"
    demo.check(words, not difference, f"\n{difference}")


def _difference(sandbox: Sandbox, before: Snapshot) -> str:
    """What differs and stays so: the kernel is a moment behind with what it removes."""
    try:
        eventually(lambda: snapshot(sandbox) == before, timeout=2.0)
    except AssertionError:
        return before.difference(snapshot(sandbox)) or "it changed to and fro"
    return ""


def _play(console: Console) -> list[str]:
    with ExitStack() as stack:
        stack.callback(LAUNCHER.shut_down)
        sandbox = stack.enter_context(Sandbox(forward="DROP"))
        before = snapshot(sandbox)
        daemon = stack.enter_context(sandbox.daemon(firewall="iptables"))
        demo = _Demo(console, sandbox, daemon)
        _layer_two(demo)
        _gateway(demo)
        _outbound(demo)
        portmap = _published(demo)
        _undone(demo, portmap, before)
        return demo.wrong


def _guarded(console: Console, work: Callable[[Console], list[str]]) -> list[str]:
    """The wrong outcomes, among them that the machine itself changed."""
    before = machine_view()
    wrong = work(console)
    after = machine_view()
    if after != before:
        changed = sorted(set(before) ^ set(after))
        wrong = [*wrong, f"this machine's own links, addresses, routes and namespaces changed: {changed}"]
    return wrong


def play() -> int:
    """The exit status: 0 where every outcome was as it should be."""
    if os.geteuid() != 0:
        print("bridgehead demo: needs root, to make network namespaces: sudo bridgehead demo", file=sys.stderr)
        return 1
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    console.print(
        "Bridgehead's walk-through, in namespaces of its own: `host` with the daemon, `internet` behind its uplink, "
        "a `client` out there. Below each request: the commands that one would type for it."
    )
    try:
        wrong = _guarded(console, _play)
    except KeyboardInterrupt:
        return 130
    except (AssertionError, OSError, httpx.HTTPError, subprocess.CalledProcessError) as failure:
        print(f"bridgehead demo: it cannot go on: {type(failure).__name__}: {failure}", file=sys.stderr)
        return 1
    console.print()
    if wrong:
        console.print(f"{len(wrong)} outcomes were wrong:", *(f"  {words}" for words in wrong), sep="\n", style="red")
        return 1
    console.print("Every outcome was as it should be, and this machine is as it was.", style="bold green")
    return 0
