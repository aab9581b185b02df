"""A client that costs little: what is measured shall be the daemon."""

import gc
import http.client
import json
import socket
import time


class Client(http.client.HTTPConnection):
    """One kept connection over the daemon's unix socket."""

    def __init__(self, path):
        super().__init__("bridgehead", timeout=60)
        self._path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, method, path, body=None):
        """The answer's body, and the seconds that it took. Raises RuntimeError for an error."""
        data = None if body is None else json.dumps(body)
        gc.disable()  # a pause of ours is none of the daemon's
        start = time.perf_counter()
        self.request(method, path, data)
        answer = self.getresponse()
        text = answer.read()
        took = time.perf_counter() - start
        gc.enable()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode()}")
        return (json.loads(text) if text else None), took
