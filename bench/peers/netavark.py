"""Podman's netavark: a command that reads what is wanted on stdin."""

import json

from bench.peers.base import Commands, need

_ID = "b" * 64


class Netavark(Commands):
    name = "netavark"

    def __init__(self, ground):
        (self._command,) = need("/usr/lib/podman/netavark")
        need("iptables")
        super().__init__(ground)

    def set_up(self, number, ports=(), client=0):
        return {"added": self._run("setup", number, ports, client)}

    def tear_down(self, number, ports=(), client=0):
        return self._run("teardown", number, ports, client)

    def _run(self, verb, number, ports, client):
        file = self.directory / f"wanted{client}"
        file.write_text(json.dumps(_wanted(number, ports)))
        words = (self._command, "--config", self.directory, verb, self.netns(number))
        answer = self.directory / f"got{client}"
        try:
            return self.floors[client]("pipe", file, answer, *words)
        except RuntimeError as failure:
            failure.add_note(answer.read_text())
            raise


def _wanted(number, ports):
    address = f"10.40.{1 + number // 250}.{1 + number % 250}"
    return {
        "container_id": f"c{number}",
        "container_name": f"c{number}",
        "port_mappings": [
            {"container_port": 80, "host_ip": "", "host_port": port, "protocol": "tcp", "range": 1} for port in ports
        ],
        "networks": {"web": {"static_ips": [address], "interface_name": "eth0"}},
        "network_info": {
            "web": {
                "name": "web",
                "id": _ID,
                "driver": "bridge",
                "network_interface": "podman1",
                "subnets": [{"subnet": "10.40.0.0/16", "gateway": "10.40.0.1"}],
                "ipv6_enabled": False,
                "internal": False,
                "dns_enabled": False,
                "ipam_options": {"driver": "host-local"},
            }
        },
    }
