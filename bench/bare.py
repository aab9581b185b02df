"""The least that such an API takes: FastAPI, a thread, one row committed and the floor's messages from Python.

No checks, plans, logs, settings of links, announcements; nothing is undone. Arguments: its socket and its database.
"""

import asyncio
import os
import sqlite3
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from app.kernel import libc, messages
from app.kernel.netlink import Rtnl
from app.kernel.nsfiles import SELF_NETNS
from app.model.naming import alias
from bench.floor import BRIDGE, GATEWAY, PREFIX

_MARK = alias("bare")
_MAC, _MTU = "02:00:00:00:00:07", 1500
_ADDRESS = f"10.30.0.3/{PREFIX}"


class Asked(BaseModel):
    network: str
    namespace: str


class Endpoint(Asked):
    id: str
    address: str
    host_ifname: str


class Bare:
    """Kernel and database, on a thread of their own."""

    def __init__(self, database):
        self._thread = ThreadPoolExecutor(1)
        self._database = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        for words in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE one (id TEXT UNIQUE)"):
            self._database.execute(words)
        self._host = os.open(SELF_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        self._rtnl = Rtnl()
        self._bridge = self._rtnl.require(BRIDGE).index

    async def do(self, work, *arguments):
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def make(self, asked):
        made = Endpoint(**asked.model_dump(), id=str(uuid.uuid4()), address=_ADDRESS, host_ifname="bare")
        place = os.open(f"/run/netns/{asked.namespace}", os.O_RDONLY | os.O_CLOEXEC)
        index, peer = self._rtnl.add_veth(
            "bare", master=self._bridge, mtu=_MTU, peer="eth0", peer_mac=_MAC, peer_netns=place
        )
        self._rtnl.change_all([messages.set_link(index, up=True, alias=_MARK)])
        libc.setns(place)
        try:
            inner = Rtnl()
        finally:
            libc.setns(self._host)
        with inner:
            up = messages.set_link(peer, up=True, alias=_MARK)
            route = messages.new_default_route(ip_address(GATEWAY), peer, replace=False)
            inner.change_all([messages.new_address(peer, ip_interface(_ADDRESS)), up, route])
        os.close(place)
        self._write(made.id)
        return made

    def note(self, asked):
        """The row alone."""
        made = Endpoint(**asked.model_dump(), id=str(uuid.uuid4()), address="", host_ifname="")
        self._write(made.id)
        return made

    def _write(self, identity):
        self._database.execute("INSERT INTO one VALUES (?)", (identity,))

    def remove(self):
        self._rtnl.delete_link(self._rtnl.require("bare").index)


def application(bare):
    made = FastAPI(strict_content_type=False)

    @made.post("/endpoints", status_code=201)
    async def create(asked: Asked) -> Endpoint:
        return await bare.do(bare.make, asked)

    @made.post("/rows", status_code=201)
    async def note(asked: Asked) -> Endpoint:
        return await bare.do(bare.note, asked)

    @made.delete("/endpoints/{ref}", status_code=204)
    async def delete(ref: str) -> Response:
        await bare.do(bare.remove)
        return Response(status_code=204)

    return made


if __name__ == "__main__":
    uvicorn.run(application(Bare(sys.argv[2])), uds=sys.argv[1], log_level="warning", access_log=False)
