"""The CNI project's plugins: bridge, then portmap and firewall, each a command that hands its result on."""

import json
from pathlib import Path

from bench.peers.base import Commands, need

_PLUGINS = Path("/usr/lib/cni")
_CHAIN = ("bridge", "portmap", "firewall")


class Cni(Commands):
    name = "CNI"

    def __init__(self, ground):
        need("iptables", str(_PLUGINS / "host-local"), *(str(_PLUGINS / plugin) for plugin in _CHAIN))
        super().__init__(ground)
        for floor in self.floors:
            floor("set", "CNI_PATH", _PLUGINS)
            floor("set", "CNI_IFNAME", "eth0")

    def _conf(self, plugin, ports, result):
        """The configuration that its runtime would give to a plugin."""
        conf = {"cniVersion": "1.0.0", "name": "web", "type": plugin}
        if plugin == "bridge":
            ranges = [[{"subnet": "10.41.0.0/16"}]]
            ipam = {"type": "host-local", "dataDir": str(self.directory / "ipam"), "ranges": ranges}
            conf |= {"bridge": "cni0", "isGateway": True, "ipMasq": True}
            conf["ipam"] = ipam | {"routes": [{"dst": "0.0.0.0/0"}]}
        if plugin == "portmap":
            mappings = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"} for port in ports]
            conf |= {"capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": mappings}}
        return conf | ({"prevResult": result} if result else {})

    def set_up(self, number, ports=(), client=0):
        taken, result = 0.0, None
        for plugin in _CHAIN:
            took, result = self._run("ADD", plugin, number, ports, client, result)
            taken += took
            if plugin == "bridge":
                alone = taken
        self._result(number).write_text(json.dumps(result))
        return {"added by bridge alone": alone, "added": taken}

    def tear_down(self, number, ports=(), client=0):
        result = json.loads(self._result(number).read_text())
        return sum(self._run("DEL", plugin, number, ports, client, result)[0] for plugin in reversed(_CHAIN))

    def _result(self, number):
        return self.directory / f"result{number}"

    def _run(self, verb, plugin, number, ports, client, result):
        floor = self.floors[client]
        given, got = self.directory / f"given{client}", self.directory / f"got{client}"
        given.write_text(json.dumps(self._conf(plugin, ports, result)))
        for name, value in (("COMMAND", verb), ("CONTAINERID", f"c{number}"), ("NETNS", self.netns(number))):
            floor("set", f"CNI_{name}", value)
        took = floor("pipe", given, got, _PLUGINS / plugin)
        return took, json.loads(got.read_text() or "null") if verb == "ADD" else None
