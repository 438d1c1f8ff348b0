"""A Redis or Valkey Cluster, for commands whose keys lie in one slot: which node has them, and what if that changes.

Each node is a gateway with a pool and a breaker of its own, so that a node that is away is missed only by those whose
keys it has. redis-py's own client ends the connections to all nodes when one fails, and never finds a cluster again
that was away as a whole: the nodes it knew are struck off one by one.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from app.kernel.background import Background, is_set_within
from app.kernel.observability.telemetry import get_logger
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from app.kernel.settings import RedisSettings

T = TypeVar("T")

_SLOTS = 16_384
# A failover is seen after so long where no command is sent to the nodes meanwhile, and sooner where an answer fails.
_CALM_SECONDS = 1.0
_HURRY_SECONDS = 0.1
# Of many nodes some know enough.
_ASKED_NODES = 8

_logger = get_logger(__name__)


class ClusterGateway(RedisGateway):
    """The URL names any node; the others are found through it and reached with the same credentials."""

    is_cluster = True

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
        self._seed = RedisGateway(settings)
        # By "host:port", primaries and replicas.
        self._nodes: dict[str, RedisGateway] = {}
        # The address of each slot's primary, or "".
        self._owners: list[str] = []
        self._watcher: asyncio.Task[None] | None = None
        self._has_read = asyncio.Event()
        self._hurry = asyncio.Event()
        self._background = Background()
        self._failover_callbacks: list[Callable[[], None]] = []

    @property
    def available(self) -> bool:
        """Whether the nodes are known, or no command has been sent yet; a single one may still be away."""
        return not self._is_closed and (bool(self._owners) or not self._has_read.is_set())

    def on_failover(self, callback: Callable[[], None]) -> None:
        self._failover_callbacks.append(callback)

    async def call(
        self, work: Callable[["Redis"], Awaitable[T]], *, key: str | None = None, timeout: float | None = None
    ) -> T:
        """As of one server, at the node that has `key`; without a key, at any node. Follows one redirection."""
        if self._is_closed:
            raise RedisUnavailable
        self.calls += 1
        if not self._has_read.is_set():
            if self._watcher is None:
                self._watcher = self._background.spawn(self._watch())
            await self._has_read.wait()
        address = self._address_of(key)
        node = self._node(address)
        try:
            return await node.call(work, timeout=timeout)
        except RedisUnavailable as error:
            redirection = error.__cause__
            if not isinstance(redirection, AskError):
                if not isinstance(redirection, ResponseError) or isinstance(redirection, ClusterDownError):
                    self._hurry.set()
                raise
        # A node that does not know its own host means the one that was asked.
        target = f"{redirection.host or address.rpartition(':')[0]}:{redirection.port}"
        if isinstance(redirection, MovedError):
            self._hurry.set()
            return await self._node(target).call(work, timeout=timeout)
        return await self._node(target).call(partial(_ask, work), timeout=timeout)

    def subscriber(self) -> Redis:
        """Messages of a cluster reach all of its nodes, so any of them will do: another one each time."""
        return (self._node(self._address_of(None)) if self._owners else self._seed).subscriber()

    async def close(self) -> None:
        self._is_closed = True
        await self._background.close()
        for node in (self._seed, *self._nodes.values()):
            await node.close()
        await super().close()

    def _address_of(self, key: str | None) -> str:
        if not self._owners:
            raise RedisUnavailable
        if key is not None:
            address = self._owners[key_slot(key.encode())]
            if not address:
                self._hurry.set()
                raise RedisUnavailable
            return address
        addresses = [address for address in set(self._owners) if address]
        if not addresses:
            raise RedisUnavailable
        return random.choice(  # noqa: S311 - any will do
            [address for address in addresses if self._node(address).is_well] or addresses
        )

    def _node(self, address: str) -> RedisGateway:
        node = self._nodes.get(address)
        if node is None:
            parts = urlsplit(self.url)
            credentials = "".join(parts.netloc.rpartition("@")[:2])
            url = urlunsplit(parts._replace(netloc=credentials + address))
            node = self._nodes[address] = RedisGateway(self._settings.model_copy(update={"url": SecretStr(url)}))
        return node

    async def _watch(self) -> None:
        while True:
            self._hurry.clear()
            try:
                is_whole = await self._read_map()
            except Exception:
                is_whole = False
                _logger.exception("redis.nodes_not_read")
            self._has_read.set()
            await asyncio.sleep(_HURRY_SECONDS)
            if is_whole:
                await is_set_within(self._hurry, _CALM_SECONDS)

    async def _read_map(self) -> bool:
        """Puts together what the nodes know; False if one of them did not answer."""
        asked = random.sample([*self._nodes.items()], min(_ASKED_NODES, len(self._nodes)))
        if not self._owners:
            # The node that the URL names may have gone for good later on.
            asked.append((urlsplit(self.url).hostname or "", self._seed))
        answers = await asyncio.gather(*(_map_of(address, node) for address, node in asked))
        told = [answer for answer in answers if answer is not None]
        if told:
            await self._take(told)
        return len(told) == len(asked)

    async def _take(self, told: Iterable[Mapping[str, Any]]) -> None:
        claims: set[tuple[int, int, int, str]] = set()
        addresses: set[str] = set()
        for nodes in told:
            for address, node in nodes.items():
                if "noaddr" in node["flags"] or "handshake" in node["flags"]:
                    continue
                addresses.add(address)
                for part in node["slots"]:
                    claims.add((int(node["epoch"]), int(part[0]), int(part[-1]), address))
        owners = [""] * _SLOTS
        # Where nodes disagree, the one with the newer configuration is right.
        for _, first, last, address in sorted(claims):
            owners[first : last + 1] = [address] * (last + 1 - first)
        before, self._owners = self._owners, owners
        for address in addresses:
            self._node(address)
        for address in self._nodes.keys() - addresses - set(owners):
            await self._nodes.pop(address).close()
        if before and before != owners:
            _logger.info("redis.slots_moved", nodes=len(set(owners)))
            for callback in self._failover_callbacks:
                callback()


async def _map_of(address: str, node: RedisGateway) -> dict[str, Any] | None:
    """The nodes that `node` knows, by address; None without an answer."""
    try:
        nodes: dict[str, Any] = await node.call(
            lambda client: client.execute_command("CLUSTER NODES")  # type: ignore[no-untyped-call]  # redis-py's
        )
    except RedisUnavailable:
        return None
    host = address.rpartition(":")[0] or address
    # A node that does not know its own host names only its port.
    return {host + known if known.startswith(":") else known: node for known, node in nodes.items()}


async def _ask(work: Callable[[Redis], Awaitable[T]], client: Redis) -> T:
    """`work` at a node that is about to get the slot, which answers only after ASKING, and only one command."""
    async with client.client() as connection:
        await connection.execute_command("ASKING")  # type: ignore[no-untyped-call]  # redis-py's
        try:
            return await work(connection)
        except MovedError:
            # The command was the loading of the script.
            await connection.execute_command("ASKING")  # type: ignore[no-untyped-call]  # redis-py's
            return await work(connection)
