"""A Valkey Cluster of processes started from the wheel, which can be killed, frozen, moved and brought back.

Needs no pytest, so that tests and the scripts of `benchmarks/` can use one and the same.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import redis.asyncio as redis
from redis.crc import key_slot

from app.dev.embedded.valkey import _program
from benchmarks.machine import free_port
from tests.fixtures.waiting import scaled

SLOTS = 16_384
NODE_TIMEOUT = 1.0
"""Seconds of silence after which the others take a node for lost."""


class Node:
    """A server that is a part of a cluster."""

    def __init__(self, directory: Path) -> None:
        self.port, self.bus_port = free_port(), free_port()
        self.client = redis.Redis(port=self.port, socket_timeout=scaled(5))
        directory.mkdir(parents=True)
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "cluster-enabled": "yes",
            "cluster-port": self.bus_port,
            "cluster-node-timeout": round(NODE_TIMEOUT * 1000),
            "cluster-require-full-coverage": "no",
            "save": "",
            "dir": directory,
            "logfile": directory / "log",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._command: list[str | Path] = [_program(), *arguments]
        self.process = subprocess.Popen(self._command)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Again, empty, with its place in the cluster."""
        self.process = subprocess.Popen(self._command)

    async def ask(self, *command: str | int) -> Any:
        return await self.client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py's

    async def is_up(self) -> bool:
        try:
            return bool(await self.client.ping())
        except redis.RedisError:
            return False

    async def is_primary(self) -> bool:
        try:
            return bool((await self.ask("ROLE"))[0] == b"master")
        except redis.RedisError:
            return False

    async def own_id(self) -> str:
        answer: bytes = await self.ask("CLUSTER", "MYID")
        return answer.decode()

    async def keys(self) -> list[bytes]:
        return list(await self.client.keys("cache:*"))


class Cluster:
    """`nodes[:primaries]` were the primaries first; each of them has one of the others as its replica, if any."""

    def __init__(self, nodes: list[Node], primaries: int) -> None:
        self.nodes = nodes
        self._primaries = primaries

    def pairs(self) -> list[list[Node]]:
        return [self.nodes[number :: self._primaries] for number in range(self._primaries)]

    async def primary(self, number: int) -> Node:
        """Of the pair `number`, the one that serves."""
        for node in self.pairs()[number]:
            if await node.is_primary():
                return node
        raise LookupError(number)

    async def is_whole(self) -> bool:
        for node in self.nodes:
            try:
                info = await node.ask("CLUSTER", "INFO")
                links = await node.ask("CLUSTER NODES")
                role = await node.ask("ROLE")
            except redis.RedisError:
                return False
            expected = (b"cluster_state:ok", b"slots_ok:16384", b"known_nodes:%d\r" % len(self.nodes))
            if not all(part in info for part in expected):
                return False
            if any("fail" in found["flags"] or not found["connected"] for found in links.values()):
                return False
            if role[0] == b"slave" and role[3] != b"connected":
                return False
        return True

    async def move(
        self, slot: int, source: Node, target: Node, during: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Moves a slot key by key; `during` runs while either node has a part of them, or could have."""
        ids = {node: await node.own_id() for node in (source, target)}
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        await during()
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
            await during()
        for node in (target, source):
            await node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])


def slot_of(user_id: str) -> int:
    """Where the cache has what belongs to a user."""
    slot: int = key_slot(user_id.replace("-", "").encode())
    return slot


@asynccontextmanager
async def running_cluster(directory: Path, *, primaries: int = 3, replicas: bool = False) -> AsyncIterator[Cluster]:
    nodes = [Node(directory / f"node{number}") for number in range(primaries * (2 if replicas else 1))]
    try:
        cluster = Cluster(nodes, primaries)
        for node in nodes:
            await until(node.is_up)
        for number, node in enumerate(nodes[:primaries]):
            await node.ask(
                "CLUSTER", "ADDSLOTSRANGE", SLOTS * number // primaries, SLOTS * (number + 1) // primaries - 1
            )
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            await nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        for number, node in enumerate(nodes[primaries:]):
            primary_id = await nodes[number].own_id()
            await until(lambda node=node, known=primary_id: _replicates(node, known))  # type: ignore[misc]
        await until(cluster.is_whole)
        yield cluster
    finally:
        for node in nodes:
            await node.client.aclose()
            node.kill()


async def _replicates(node: Node, primary_id: str) -> bool:
    """Once the node has heard of it."""
    try:
        await node.ask("CLUSTER", "REPLICATE", primary_id)
    except redis.ResponseError:
        return False
    return True


async def until(condition: Callable[[], Coroutine[Any, Any, bool]], seconds: float = scaled(30)) -> float:
    """Waits for `condition`; the seconds it took."""
    began = monotonic()
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - no server says when it is ready
            await asyncio.sleep(0.02)
    return monotonic() - began
