"""The daemon's rights, its socket's peers, its tokens and TLS, as the kernel and real clients see them."""

import json
import os
import ssl
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from world import endpoint, network, refused

from app.host.privileges import NEEDED, REQUIRED
from app.sandbox import DaemonFailed

USER, GROUP = 41000, 41001
PORT = 8015

_CLIENT = """
import ctypes, http.client, json, os, socket, sys
uid, gid, path, own = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "own"
if uid:
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
if own and ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000):
    sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
print("ready", flush=True)
for line in sys.stdin:
    method, where, body = json.loads(line)
    connection = http.client.HTTPConnection("bridgehead")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request(method, where, json.dumps(body) if body is not None else None)
    answer = connection.getresponse()
    print(json.dumps([answer.status, json.loads(answer.read() or "null")]), flush=True)
    connection.close()
"""


class User:
    """A process of some user that asks the daemon."""

    def __init__(self, process):
        self._process = process
        self.pid = process.pid

    def ask(self, method, path, body=None):
        self._process.stdin.write(json.dumps([method, path, body]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def connect(self, name, **where):
        status, body = self.ask("POST", "/endpoints", {"network": "web", "name": name, **where})
        return status, body.get("code"), body.get("detail", "")


@contextmanager
def user(daemon, uid=USER, *, inside=None, own=False):
    """own: in a user and a network namespace that it makes; inside: where the process starts, an Ns."""
    for place in (daemon.socket.parent, *daemon.socket.parent.parents):
        if place.stat().st_uid == os.getuid() and not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
    os.chown(daemon.socket, -1, GROUP)
    command = [sys.executable, "-S", "-c", _CLIENT, str(uid), str(GROUP), str(daemon.socket), "own" if own else ""]

    def spawn():
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    process = inside.run(spawn) if inside is not None else spawn()
    try:
        assert process.stdout.readline() == "ready\n"
        yield User(process)
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


# --- capabilities


def test_it_keeps_no_right_that_it_does_not_need(daemon, api):
    network(api)
    endpoint(api, "red")
    needed = sum(1 << number for number in NEEDED.values())
    threads = list(Path(f"/proc/{daemon.pid}/task").iterdir())
    assert len(threads) > 1
    for thread in threads:
        status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert not int(status[kind], 16) & ~needed, (kind, status[kind])
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0


@pytest.mark.parametrize(("firewall", "forward_policy"), [("iptables", "DROP"), ("nftables", "ACCEPT")])
def test_all_that_it_does_it_can_with_what_is_left(sandbox, daemon, api):
    """Links, rules, settings, a name under /run/netns, a pid, and the holder of a port, another user's too."""
    network(api, subnet6="auto", spoof_protection=True)
    endpoint(api, "red")
    with user(daemon, own=True) as somebody, sandbox.host.tcp_server(9000):
        assert api.post("/endpoints", json={"network": "web", "pid": somebody.pid}).status_code == 201
        problem = refused(api.post("/portmaps", json={"endpoint": "red", "host_port": 9000}), 409, "port_taken")
        assert f"(pid {os.getpid()})" in problem["detail"]
    assert api.post("/portmaps", json={"endpoint": "red", "host_port": 80}).status_code == 201
    with sandbox.netns("red").tcp_server(80):
        assert sandbox.client.tcp("203.0.113.2", 80) == b"red\n"


@pytest.mark.parametrize("capability", REQUIRED)
def test_without_a_right_that_it_needs_it_refuses_to_start_in_one_line(sandbox, capability):
    directory = sandbox.directory / "short"
    lacking = f"--bounding-set=-{capability.removeprefix('CAP_').lower()}"
    command = ["setpriv", lacking, sys.executable, "-m", "app.cli", "serve", "--listen", "", "--firewall", "none"]
    command += ["--socket", str(directory / "api.sock"), "--state-dir", str(directory)]
    done = sandbox.host.exec(command, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"bridgehead: must be started as root, with the capabilities {capability}\n",
    )
    assert not directory.exists()


# --- the socket's peers


def test_a_user_s_own_namespace(daemon, api):
    network(api)
    with user(daemon, own=True) as somebody:
        assert somebody.connect("by-pid", pid=somebody.pid)[0] == 201
        assert somebody.connect("by-path", netns=f"/proc/{somebody.pid}/ns/net")[0] == 201
        with user(daemon, USER + 1, own=True) as other:
            assert somebody.connect("other", pid=other.pid)[:2] == (403, "forbidden")
            assert other.connect("by-other", pid=other.pid)[0] == 201
        with user(daemon, 0) as root:
            assert root.connect("by-root", pid=somebody.pid)[0] == 201


def test_namespaces_of_others(sandbox, daemon, api):
    network(api)
    endpoint(api, "red")
    roots = sandbox.add_netns("roots")
    with user(daemon) as somebody, user(daemon, 0, inside=roots) as root:
        for where in (
            {"namespace": "roots"},
            {"namespace": "red"},
            {"netns": "/run/netns/roots"},
            {"netns": "/etc/shadow"},
            {"netns": f"/proc/{root.pid}/ns/net"},
            {"netns": f"/proc/self/root/proc/{root.pid}/ns/net"},
            {"pid": root.pid},
        ):
            status, code, detail = somebody.connect("theirs", **where)
            assert (status, code) == (403, "forbidden"), (where, detail)
            assert f"uid {USER} pid {somebody.pid} (" in detail
            assert "--allow-foreign-namespaces" in detail
        assert somebody.connect("new", namespace="new")[0] == 201
        assert somebody.connect("again", namespace="new")[0] == 201
    sandbox.delete_netns("roots")


def test_a_process_of_the_user_s_in_a_namespace_that_root_made(sandbox, daemon, api):
    network(api)
    with user(daemon, inside=sandbox.add_netns("roots")) as inside, user(daemon) as somebody:
        assert somebody.connect("by-name", namespace="roots")[0] == 403
        assert somebody.connect("by-pid", pid=inside.pid)[0] == 201
        somebody.ask("DELETE", "/endpoints/by-pid")
    sandbox.delete_netns("roots")


@pytest.mark.parametrize("daemon_options", [{"values": {"allow_foreign_namespaces": True}}])
def test_foreign_namespaces_where_they_are_allowed(sandbox, daemon, api):
    network(api)
    sandbox.add_netns("roots")
    with user(daemon) as somebody:
        assert somebody.connect("by-name", namespace="roots")[0] == 201
        somebody.ask("DELETE", "/endpoints/by-name")
    sandbox.delete_netns("roots")


def test_the_audit_log_has_the_peer(sandbox, baseline):
    file = sandbox.directory / "audit.log"
    with sandbox.daemon(firewall="none", values={"audit_log": str(file)}) as daemon:
        with user(daemon) as somebody:
            assert somebody.ask("POST", "/networks", {"name": "web"})[0] == 201
            assert somebody.ask("POST", "/networks", {"name": "web"})[0] == 409
            file.rename(file.with_suffix(".1"))
            assert somebody.ask("DELETE", "/networks/web")[0] == 204
        rotated = [json.loads(line) for line in file.with_suffix(".1").read_text().splitlines()]
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert file.stat().st_mode & 0o777 == 0o600
    assert [(line["verb"], line["outcome"]) for line in rotated + lines] == [
        ("create", "ok"),
        ("POST", "name_taken"),
        ("delete", "ok"),
    ]
    for line in rotated + lines:
        assert line["who"].startswith(f"uid {USER} pid {somebody.pid} (")
    assert "bridgehead.audit" in daemon.log()


# --- TCP


def asked(sandbox, path="/networks", token="", *, method="GET", context=None, host="127.0.0.1"):
    """Status and body of a request over TCP."""
    with sandbox.host.connect("127.0.0.1", PORT, timeout=10) as plain:
        client = context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
        client.sendall(head.encode())
        found = b""
        while part := client.recv(65536):
            found += part
    head, _empty, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def bridgehead(*arguments):
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


TCP = {"listen": f"127.0.0.1:{PORT}"}


@pytest.mark.parametrize("daemon_options", [TCP])
def test_tokens_of_a_running_daemon(sandbox, daemon):
    def token(*arguments):
        done = bridgehead("token", *arguments, "--state-dir", daemon.state_dir)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    first = (daemon.state_dir / "token").read_text().strip()
    assert asked(sandbox, token=first)[0] == 200
    second = token("rotate")
    assert asked(sandbox, token=first)[0] == 401
    assert asked(sandbox, token=second)[0] == 200
    look = token("create", "look", "--role", "read")
    scoped = token("create", "ci", "--network", "web")
    assert asked(sandbox, token=look)[0] == 200
    assert asked(sandbox, "/networks/x", look, method="DELETE")[0] == 403
    network(daemon.client)
    network(daemon.client, "lan")
    status, body = asked(sandbox, "/networks/lan", scoped, method="DELETE")
    assert (status, json.loads(body)["code"]) == (403, "forbidden")
    token("rm", "look")
    assert asked(sandbox, token=look)[0] == 401
    assert [line.split()[0] for line in token("ls").splitlines()] == ["default", "ci"]


@pytest.mark.parametrize("daemon_options", [TCP])
def test_the_host_header(sandbox, daemon):
    token = (daemon.state_dir / "token").read_text().strip()
    assert asked(sandbox, token=token, host=f"localhost:{PORT}")[0] == 200
    status, body = asked(sandbox, token=token, host="rebound.example")
    assert (status, json.loads(body)["code"]) == (421, "misdirected")


def one_line(daemon):
    lines = daemon.log().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("listen", ["0.0.0.0:8015", "203.0.113.2:8015", "[::]:8015"])
def test_beyond_loopback_without_tls(sandbox, baseline, listen):
    daemon = sandbox.daemon(firewall="none", listen=listen)
    with pytest.raises(DaemonFailed):
        daemon.start()
    assert daemon.exit_code() == 1
    assert "--tls-cert" in one_line(daemon)
    assert "--insecure-listen" in one_line(daemon)
    assert baseline.difference() == ""


def test_beyond_loopback_where_it_is_forced(sandbox):
    with sandbox.daemon(firewall="none", listen=f"0.0.0.0:{PORT}", values={"insecure_listen": True}) as daemon:
        assert asked(sandbox, token=(daemon.state_dir / "token").read_text().strip())[0] == 200


# --- TLS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A CA, what it signed for 127.0.0.1 and for a client, and another CA's client."""
    place = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)

    for ca in ("ca", "other"):
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
        openssl(*new, "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
    (place / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    (place / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
    for name, ca, extensions in (
        ("server", "ca", "server.ext"),
        ("client", "ca", "client.ext"),
        ("stranger", "other", "client.ext"),
    ):
        request = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}")
        openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("x509", "-req", "-days", "2", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial")
        openssl(*signed, "-in", f"{name}.csr", "-extfile", extensions, "-out", f"{name}.pem")
    return place


def tls_daemon(sandbox, certificates, listen=f"127.0.0.1:{PORT}", **values):
    files = {"tls_cert": str(certificates / "server.pem"), "tls_key": str(certificates / "server.key")}
    return sandbox.daemon(firewall="none", listen=listen, values=files | values)


def trusting(certificates, client=""):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if client:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    return context


def test_tls(sandbox, certificates):
    with tls_daemon(sandbox, certificates, f"0.0.0.0:{PORT}") as daemon:
        token = (daemon.state_dir / "token").read_text().strip()
        assert asked(sandbox, token=token, context=trusting(certificates))[0] == 200
        assert asked(sandbox, token="wrong", context=trusting(certificates))[0] == 401
        with pytest.raises((OSError, IndexError)):  # plain text gets nothing
            asked(sandbox, token=token)
        old = trusting(certificates)
        with warnings.catch_warnings(action="ignore"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            asked(sandbox, token=token, context=old)


def test_client_certificates(sandbox, certificates):
    with tls_daemon(sandbox, certificates, tls_client_ca=str(certificates / "ca.pem")) as daemon:
        token = (daemon.state_dir / "token").read_text().strip()
        assert asked(sandbox, token=token, context=trusting(certificates, "client"))[0] == 200
        assert asked(sandbox, token="wrong", context=trusting(certificates, "client"))[0] == 401
        for one in (token, "wrong"):
            asked(sandbox, "/networks/none", one, method="DELETE", context=trusting(certificates, "client"))
        lines = [
            json.loads(line.partition("bridgehead.audit: ")[2])
            for line in daemon.log().splitlines()
            if "not_found" in line or "unauthorized" in line
        ]
        assert [line["who"] for line in lines] == [
            "token default, certificate CN=client",
            "address 127.0.0.1, certificate CN=client",
        ]
        for client in ("", "stranger"):
            with pytest.raises((OSError, IndexError)):  # TLS 1.3 says so after the handshake, or closes
                asked(sandbox, token=token, context=trusting(certificates, client))
        assert daemon.client.get("/networks").status_code == 200


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"tls_cert": "/nowhere.pem"}, "/nowhere.pem"),
        ({"tls_key": "/nowhere.key"}, "/nowhere.key"),
        ({"tls_client_ca": "/nowhere.ca"}, "/nowhere.ca"),
    ],
)
def test_certificates_that_cannot_be_used(sandbox, certificates, values, word):
    daemon = tls_daemon(sandbox, certificates, **values)
    with pytest.raises(DaemonFailed):
        daemon.start()
    assert word in one_line(daemon)
