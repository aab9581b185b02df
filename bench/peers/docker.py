"""Docker: a daemon of its own in the sandbox, containers that only pause, and its API on a unix socket."""

import http.client
import io
import json
import socket
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from app.sandbox import eventually
from bench.floor import Missing, static_binary
from bench.peers.base import CLIENTS, Absent, Peer, need
from bench.site import SETTLE

_PARENT = "bridgehead-bench"
_CGROUPS = Path("/sys/fs/cgroup")


class _Api(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("docker", timeout=600)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, method, path, body=None, kind="application/json"):
        """Seconds. Raises RuntimeError for an error."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        start = time.perf_counter()
        self.request(method, path, data, {"Content-Type": kind})
        answer = self.getresponse()
        text = answer.read()
        took = time.perf_counter() - start
        if answer.status >= 400:
            raise RuntimeError(f"docker: {method} {path}: {answer.status} {text.decode()}")
        return took


class Docker(Peer):
    name = "Docker"
    together = 24

    def __init__(self, ground):
        self._command, *_others = need("dockerd", "containerd", "runc", "iptables")
        super().__init__(ground)
        self._made = set()
        self._socket = str(self.directory / "docker.sock")
        ground.on_exit(self._remove_cgroups)
        process = self._started(ground)
        with suppress(AssertionError):
            eventually(lambda: self._answers() or process.poll() is not None, 30)
        if not self._answers():
            raise Absent(f"dockerd does not come up here: {self._log.read_text()[-300:]}")
        self._api = _Api(self._socket)
        ground.on_exit(self._remove_containers)
        self._api.ask("POST", "/images/create?fromSrc=-&repo=pause&tag=latest", _image(), "application/x-tar")
        for network in ("first", "web"):
            self._api.ask("POST", "/networks/create", {"Name": network, "Driver": "bridge"})

    def _started(self, ground):
        self._log = self.directory / "log"
        roots = {"data-root": self.directory / "data", "exec-root": "/run/docker", "pidfile": "/run/docker.pid"}
        arguments = [self._command, "--host", f"unix://{self._socket}", "--storage-driver", "vfs"]
        arguments += [f"--{name}={value}" for name, value in {**roots, "cgroup-parent": f"/{_PARENT}"}.items()]
        with self._log.open("wb") as log:
            process = self.sandbox.host.run(
                lambda: subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
        ground.on_exit(lambda: (process.terminate(), process.wait()))
        return process

    def _answers(self):
        try:
            _Api(self._socket).ask("GET", "/version")
        except (OSError, RuntimeError):
            return False
        return True

    def _create(self, name, ports=()):
        bindings = {f"{80 + place}/tcp": [{"HostPort": str(port)}] for place, port in enumerate(ports)}
        host = {"NetworkMode": "first", "PortBindings": bindings}
        exposed = {port: {} for port in bindings}
        body = {"Image": "pause", "Cmd": ["/pause", "pause"], "HostConfig": host, "ExposedPorts": exposed}
        self._api.ask("POST", f"/containers/create?name={name}", body)
        self._made.add(name)

    def _remove(self, name):
        self._api.ask("DELETE", f"/containers/{name}?force=true")
        self._made.discard(name)

    def _running(self, number):
        name = f"c{number}"
        if name not in self._made:
            self._create(name)
            self._api.ask("POST", f"/containers/{name}/start")
        return {"Container": name}

    def attach(self, number):
        return {f"{self.name}: added": self._api.ask("POST", "/networks/web/connect", self._running(number))}

    def detach(self, number):
        return {f"{self.name}: removed": self._api.ask("POST", "/networks/web/disconnect", self._running(number))}

    def fill(self, ports):
        self._create("ports", range(20_000, 20_000 + ports))
        self._api.ask("POST", "/containers/ports/start")

    def attach_with_port(self, number):
        """A port comes with the container's start, which is measured without one too."""
        took = {}
        for words, ports in (("container started", ()), ("container started, with a port", (8080,))):
            self._create(f"p{number}", ports)
            took[f"{self.name}: {words}"] = self._api.ask("POST", f"/containers/p{number}/start")
            time.sleep(SETTLE)
            self._remove(f"p{number}")
        return took

    def rate(self):
        bodies = [self._running(number) for number in range(self.together)]

        def work(client):
            api = _Api(self._socket)
            for body in bodies[client::CLIENTS]:
                api.ask("POST", "/networks/web/connect", body)
            api.close()

        with ThreadPoolExecutor(CLIENTS) as pool:
            start = time.perf_counter()
            list(pool.map(work, range(CLIENTS)))
            return self.together / (time.perf_counter() - start)

    def _remove_containers(self):
        for name in list(self._made):
            with suppress(OSError, RuntimeError, http.client.HTTPException):
                self._remove(name)

    @staticmethod
    def _remove_cgroups():
        for place in (_CGROUPS / _PARENT, *_CGROUPS.glob(f"*/{_PARENT}")):
            with suppress(OSError):
                place.rmdir()


def _image():
    """A tar archive with one static program. Raises Absent."""
    try:
        program = Path(static_binary()).read_bytes()
    except Missing as missing:
        raise Absent(str(missing)) from None
    info = tarfile.TarInfo("pause")
    info.size, info.mode = len(program), 0o755
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(info, io.BytesIO(program))
    return packed.getvalue()
