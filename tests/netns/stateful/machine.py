"""Random histories of requests and interference: after each step API, kernel and model agree."""

import json
from collections import Counter
from dataclasses import replace

from crash.victim import host_of
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stateful import bodies, facts, harm, kernel, predict
from stateful.model import World

from app.sandbox import Sandbox, eventually

HEALED_WITHIN = 5.0
"""Seconds, generous for a busy machine."""
STARTS = 3
"""So many in a history: each takes the time of five requests."""
TOTALS = Counter()
FAILED = []
"""The last history that failed, step by step, and the end of its daemon's log."""
PICK = st.integers(0, 7)
FORCE = st.sampled_from([False, False, True])
IF_MATCH = st.sampled_from([None, None, None, "current", "stale"])


class Histories(RuleBasedStateMachine):
    """A sandbox and a daemon of its own for each history; subclasses say which backend."""

    firewall = "nftables"

    def __init__(self):
        super().__init__()
        self.world, self.keys, self.agreed, self.patience = World(), [], True, HEALED_WITHIN
        self.starts, self.told = 0, []
        self.sandbox = Sandbox(ipv6=True)
        self._add_admins()
        self.untouched = host_of(self.sandbox)
        # else a history that damages one network ten times in ten seconds is a fight, which is outwaited
        self.daemon = self.sandbox.daemon(firewall=self.firewall, values={"fast_repairs": 100_000}).start()
        self.api = self.daemon.client
        TOTALS["histories"] += 1

    def _add_admins(self):
        host = self.sandbox.host
        host.add_bridge("admin0")
        host.exec(["nft", "add table inet admin; add chain inet admin own"])
        if self.firewall == "iptables":
            host.exec(["iptables-legacy", "-A", "FORWARD", "-s", "10.99.0.0/16", "-j", "DROP"])

    # --- requests

    def ask(self, method, path, predicted, body=None, **headers):
        """Sends a request that must end as predicted; the answer's body."""
        TOTALS["requests"] += 1
        self.agreed, self.patience = False, HEALED_WITHIN if method == "DELETE" else 0.0
        self.told.append(f"{method} /{path} {json.dumps(body)} {headers}")
        answer = self.api.request(method, f"/{path}", json=body, headers={k: v for k, v in headers.items() if v})
        if answer.is_success and not predicted.faults:
            shown = answer.json() if answer.content else None
            predicted.apply(shown)
            return answer
        code = answer.json().get("code") if not answer.is_success else answer.status_code
        assert code in predicted.faults | predicted.perhaps, f"{answer.text}; predicted: {predicted}"
        TOTALS["refused"] += 1
        return answer

    def _post(self, path, predicted, body, keyed):
        key = f"key-{len(self.keys)}" if keyed else None
        answer = self.ask("POST", path, predicted, body, **{"Idempotency-Key": key})
        if keyed and answer.is_success:
            self.keys.append((key, path, body, answer.text))

    def _change(self, method, path, predicted, body=None, if_match=None):
        """if_match: a tag that holds, or one that does not, which refuses whatever is there."""
        tag = '"stale"' if if_match == "stale" else None
        if if_match == "current":
            tag = self.api.get(f"/{path.partition('?')[0]}").headers.get("ETag")
        if tag == '"stale"' and "not_found" not in predicted.faults:
            predicted = replace(predicted, faults={"precondition_failed"})
        self.ask(method, path, predicted, body, **{"If-Match": tag})

    @initialize(body=bodies.NETWORKS, namespaces=st.lists(bodies.NAMESPACES, max_size=3))
    def begin(self, body, namespaces):
        self.create_network(body, keyed=False)
        for namespace in namespaces if self.world.networks else ():
            self.agree()
            self.create_plain_endpoint(0, namespace)

    @rule(body=bodies.NETWORKS, keyed=st.booleans())
    def create_network(self, body, keyed):
        self._post("networks", predict.create_network(self.world, body), body, keyed)

    @precondition(lambda self: self.world.networks)
    @rule(pick=PICK, body=bodies.NETWORK_PATCHES, if_match=IF_MATCH)
    def patch_network(self, pick, body, if_match):
        network = self._one(self.world.networks, pick)
        body = bodies.placed(body, network)
        self._change(
            "PATCH", f"networks/{network.name}", predict.patch_network(self.world, network.id, body), body, if_match
        )

    @precondition(lambda self: self.world.networks)
    @rule(pick=PICK, force=FORCE, if_match=IF_MATCH)
    def delete_network(self, pick, force, if_match):
        network = self._one(self.world.networks, pick)
        predicted = predict.delete_network(self.world, network.id, force)
        self._change("DELETE", f"networks/{network.name}{'?force=true' * force}", predicted, None, if_match)

    @precondition(lambda self: self.world.networks)
    @rule(pick=PICK, body=bodies.ENDPOINTS, keyed=st.booleans())
    def create_endpoint(self, pick, body, keyed):
        network = self._one(self.world.networks, pick)
        body = bodies.placed(body | {"network": network.name}, network)
        self._post("endpoints", predict.create_endpoint(self.world, body), body, keyed)

    @precondition(lambda self: self.world.networks)
    @rule(pick=PICK, namespace=bodies.NAMESPACES)
    def create_plain_endpoint(self, pick, namespace):
        body = {"network": self._one(self.world.networks, pick).id, "namespace": namespace}
        self._post("endpoints", predict.create_endpoint(self.world, body), body, keyed=False)

    @precondition(lambda self: self.world.endpoints)
    @rule(pick=PICK, body=bodies.ENDPOINT_PATCHES, if_match=IF_MATCH)
    def patch_endpoint(self, pick, body, if_match):
        endpoint = self._one(self.world.endpoints, pick)
        if not self.world.alive(endpoint):
            body = {name: value for name, value in body.items() if name != "ephemeral"}  # it would go at any moment
        predicted = predict.patch_endpoint(self.world, endpoint.id, body)
        self._change("PATCH", f"endpoints/{endpoint.name}", predicted, body, if_match)

    @precondition(lambda self: self.world.endpoints)
    @rule(pick=PICK, force=FORCE, if_match=IF_MATCH)
    def delete_endpoint(self, pick, force, if_match):
        endpoint = self._one(self.world.endpoints, pick)
        predicted = predict.delete_endpoint(self.world, endpoint.id, force)
        self._change("DELETE", f"endpoints/{endpoint.name}{'?force=true' * force}", predicted, None, if_match)

    @precondition(lambda self: self.world.endpoints)
    @rule(pick=PICK, body=bodies.PORTMAPS, keyed=st.booleans())
    def create_portmap(self, pick, body, keyed):
        body = body | {"endpoint": self._one(self.world.endpoints, pick).name}
        self._post("portmaps", predict.create_portmap(self.world, body), body, keyed)

    @precondition(lambda self: self.world.portmaps)
    @rule(pick=PICK, other=st.none() | PICK, body=bodies.PORTMAP_PATCHES, if_match=IF_MATCH)
    def patch_portmap(self, pick, other, body, if_match):
        portmap = self._one(self.world.portmaps, pick)
        if other is not None:
            body = body | {"endpoint": self._one(self.world.endpoints, other).name}
        predicted = predict.patch_portmap(self.world, portmap.id, body)
        self._change("PATCH", f"portmaps/{portmap.id}", predicted, body, if_match)

    @precondition(lambda self: self.world.portmaps)
    @rule(pick=PICK, if_match=IF_MATCH)
    def delete_portmap(self, pick, if_match):
        portmap = self._one(self.world.portmaps, pick)
        predicted = predict.delete_portmap(self.world, portmap.id)
        self._change("DELETE", f"portmaps/{portmap.id}", predicted, None, if_match)

    @precondition(lambda self: self.world.networks)
    @rule(pick=PICK, body=bodies.RESERVATIONS, keyed=st.booleans())
    def reserve(self, pick, body, keyed):
        network = self._one(self.world.networks, pick)
        body = bodies.placed(body | {"network": network.name}, network)
        self._post("ipam/allocations", predict.reserve(self.world, body), body, keyed)

    @precondition(lambda self: self.world.networks)
    @rule(pick=PICK)
    def release(self, pick):
        """A reservation, or what cannot be given back so."""
        refs = [*self.world.reservations, *self.world.endpoints, *self.world.networks, "none"]
        ref = refs[pick % len(refs)]
        self._change("DELETE", f"ipam/allocations/{ref}", predict.release(self.world, ref))

    @precondition(lambda self: self.world.portmaps)
    @rule(request=bodies.STRAY)
    def ask_for_nothing(self, request):
        """Something that is not there, by its path or in the body."""
        method, path, body = request
        self.ask(method, path, predict.Prediction({"not_found"}), body)

    @precondition(lambda self: self.keys)
    @rule(pick=PICK, same=st.booleans())
    def repeat(self, pick, same):
        """A request whose key was used: the same answer and nothing else; with another body none."""
        key, path, body, text = self.keys[pick % len(self.keys)]
        faults = set() if same else {"idempotency_mismatch"}
        body = body if same else body | ({"note": "other"} if path == "ipam/allocations" else {"labels": {"x": "y"}})
        answer = self.ask("POST", path, predict.Prediction(faults), body, **{"Idempotency-Key": key})
        assert not same or (answer.text, answer.headers["Idempotency-Replayed"]) == (text, "true")

    @staticmethod
    def _one(objects, pick):
        found = list(objects.values())
        return found[pick % len(found)]

    # --- interference

    def _wait(self, told=""):
        self.agreed, self.patience = False, HEALED_WITHIN
        self.told.append(told)

    @precondition(lambda self: self.world.networks)
    @rule(data=st.data(), pick=PICK)
    def damage(self, data, pick):
        self._wait()
        self._damage(data, pick, lambda _name, harm: harm)

    def _damage(self, data, pick, made):
        choices = harm.damages(self.firewall)
        name = data.draw(st.sampled_from(sorted(choices)), "damage")
        self.told.append(f"damage: {name}, to number {pick}")
        done = made(name, choices[name])(self.world, self.sandbox, pick)
        TOTALS["interferences"] += done

    @precondition(lambda self: self.world.networks)
    @rule(what=st.sampled_from(sorted(harm.THEIRS)), pick=PICK)
    def add_theirs(self, what, pick):
        self._wait(f"theirs: {what}, to number {pick}")
        TOTALS["interferences"] += harm.THEIRS[what](self.world, self.sandbox, pick)

    @rule(name=bodies.NAMESPACES)
    def add_namespace(self, name):
        if name not in self.world.spaces:
            self._wait(f"ip netns add {name}")
            self.sandbox.add_netns(name)
            self.world.spaces[name] = False
            TOTALS["interferences"] += 1

    @precondition(lambda self: self.world.portmaps)
    @rule(protocol=st.sampled_from(["tcp", "udp"]), port=bodies.PORT_NUMBERS)
    def listen(self, protocol, port):
        """A process of the host's takes a port, which works where no mapping has it, and gives it back later."""
        self._wait(f"a process listens, or no more: {protocol} {port}")
        listeners = self.world.foreign.listeners
        if (protocol, port) in listeners:
            listeners.pop((protocol, port)).close()
            return
        mappings, _processes = self.world.port_holders(protocol, "0.0.0.0", port, 1)
        if mappings and not all(self.world.alive(one.endpoint) for one in mappings):
            return  # it would keep the mapping from coming back
        try:
            listeners[protocol, port] = self.sandbox.host.server(protocol, port)
        except OSError:
            assert mappings, f"{protocol} {port} is held by nobody"
            return
        TOTALS["interferences"] += 1
        assert not mappings, f"{protocol} {port} was not reserved"

    @precondition(lambda self: self.world.endpoints and self.starts < STARTS)
    @rule(data=st.data(), killed=st.booleans(), picks=st.lists(PICK, max_size=2))
    def start_again(self, data, killed, picks):
        """Stopped or killed; what is damaged until it is back is put back at its start."""
        self._wait(f"daemon {'killed' if killed else 'stopped'}, then started")
        (self.daemon.kill if killed else self.daemon.stop)()
        for pick in picks:
            self._damage(data, pick, harm.while_down)
        self.daemon.start()
        self.world.daemon_starts()
        self.starts += 1
        TOTALS["starts"] += 1

    # --- what must hold

    @invariant()
    def agree(self):
        if self.agreed:
            return
        TOTALS["steps"] += 1
        eventually(self._same, self.patience, "API, kernel and model agree")
        self.agreed = True

    def _same(self):
        # the kernel before the API: where it is right, its repair is done, and what is said of it then stays
        try:
            found = kernel.found(self.sandbox, self.firewall)
        except OSError as moving:  # a namespace on its way
            raise AssertionError(f"the kernel cannot be read: {moving}") from moving
        answered, shown = facts.answered(self._get), facts.shown(self.world)
        for kind, wanted in shown.items():
            seen = answered[kind]
            differ = {
                key: (seen.get(key), wanted.get(key)) for key in seen | wanted if seen.get(key) != wanted.get(key)
            }
            assert not differ, f"API and model, {kind}: {differ}"
        self._note_macs(found)
        must, may = facts.expected(self.world, self.firewall)
        lines = [f"- {one}" for one in must - found] + [f"+ {one}" for one in found - must - may]
        assert not lines, "kernel and model:\n" + "\n".join(sorted(lines, key=lambda line: line[2:]))
        return True

    def _note_macs(self, found):
        """A bridge's MAC is any at first, and then for good."""
        macs = {one[2]: one[6].removeprefix("mac ") for one in found if one[:2] == ("link", "")}
        for network in self.world.networks.values():
            network.mac = network.mac or macs.get(network.bridge)

    def _get(self, path):
        return self.api.get(f"/{path}", params={"limit": 1000}).raise_for_status().json()

    def teardown(self):
        """With everything deleted, the host is as it was."""
        try:
            if self.agreed:
                self._clear()
        finally:
            if not self.agreed:
                FAILED[:] = [*self.told, self.daemon.log()[-4000:]]
            for server in self.world.foreign.listeners.values():
                server.close()
            self.sandbox.close()

    def _clear(self):
        for network in list(self.world.networks.values()):
            self.ask(
                "DELETE", f"networks/{network.id}?force=true", predict.delete_network(self.world, network.id, True)
            )
        self.agree()
        for name in self.world.spaces:
            self.sandbox.delete_netns(name)
        for server in self.world.foreign.listeners.values():
            server.close()
        self.world.foreign.listeners.clear()
        self.agreed = False
        eventually(self._untouched, what="the host as it was before")
        self.agreed = True

    def _untouched(self):
        difference = self.untouched.difference(host_of(self.sandbox))
        assert difference == "", difference
        return True


class HistoriesIptables(Histories):
    firewall = "iptables"


MACHINES = {"nftables": Histories, "iptables": HistoriesIptables}
