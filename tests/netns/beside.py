"""Others' rules on a sandbox's host, and what of ours must work beside them."""

from world import endpoint, get, network, portmap

from app.sandbox import CLIENT, HOST, SERVER


def load(sandbox, program, rules):
    sandbox.host.exec([program, "-f", "-"] if program == "nft" else [program], stdin=rules)


def ruleset(sandbox):
    return sandbox.host.exec(["nft", "-s", "list", "ruleset"]).stdout


def legacy(sandbox, program="iptables"):
    return sandbox.host.exec([f"{program}-legacy-save"]).stdout


def chosen(sandbox, firewall="auto"):
    """A daemon that is started, and what it says of its backend."""
    daemon = sandbox.daemon(firewall=firewall)
    daemon.start()
    return daemon, get(daemon.client, "host")["firewall"]


def published(api):
    network(api)
    endpoint(api, "red")
    portmap(api, host_port=8080, target_port=80)


def passes(sandbox):
    red = sandbox.netns("red")
    with red.tcp_server(80) as web:
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert web.peers[0][0] == CLIENT
    assert red.ping(SERVER)


def status(api, name="web"):
    return get(api, f"networks/{name}")["status"]


def traces(sandbox):
    """What each backend has in the kernel."""
    tables = {line.split()[2] for line in ruleset(sandbox).splitlines() if line.startswith("table")}
    found = {"nftables"} if "bridgehead" in tables else set()
    if any("BRIDGEHEAD" in legacy(sandbox, program) for program in ("iptables", "ip6tables")):
        found.add("iptables")
    return found
