"""How servers are reached: what a URL or a ready client says, with time-outs of our own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from ragaccel.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Node = tuple[str, int]
"""Host and port of one server; a unix socket has its path and 0."""

Mode = Literal["standalone", "sentinel", "cluster"]

_MANY = {
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
}
_UNLIMITED = 2**31
_PLUMBING = ("maint", "oss_cluster", "orig_", "himport", "event_dispatcher", "cache")


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of the servers before any of them was asked.

    Attributes:
        mode: One server, the present master that sentinels name, or a cluster.
        seeds: The servers to ask first: the server itself, sentinels or cluster nodes.
        options: How to connect to a server with data: arguments of redis-py's connections.
        sentinel: How to connect to a sentinel.
        service: What the sentinels call the master.
        given: The caller's own client; None if there was a URL.
    """

    mode: Mode
    seeds: tuple[Node, ...]
    options: Mapping[str, Any] = field(repr=False)
    sentinel: Mapping[str, Any] = field(default_factory=dict, repr=False)
    service: str = ""
    given: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Where it is, for logs: host and port and no secrets."""
        host, port = self.seeds[0]
        return f"redis at {host}:{port}" if port else "redis at a unix socket"

    def at(self, node: Node) -> dict[str, Any]:
        """Return the arguments of a connection to one node."""
        options = self.sentinel if self.mode == "sentinel" and node in self.seeds else self.options
        if node[1] == 0 or (self.given is not None and self.mode != "cluster"):
            return dict(options)
        return {**options, "host": node[0], "port": node[1]}


def target(server: Any, timeout: float) -> Target:
    """Understand what a level was given.

    Args:
        server: A URL or a sync redis-py client.
        timeout: Seconds to wait for a connection or an answer.

    Raises:
        MissingExtraError: redis-py or hiredis is not installed.
        ConfigurationError: It is neither, or cannot be used.
    """
    try:
        import hiredis  # noqa: F401 - links need it
        import redis
    except ImportError as error:
        raise MissingExtraError("redis", error.name or "redis") from error
    if isinstance(server, redis.RedisCluster):
        return _of_cluster(server, timeout)
    if isinstance(server, redis.Redis):
        return _of_client(server, timeout)
    if not isinstance(server, str):
        raise ConfigurationError(
            "a Redis level takes a URL or a sync client of redis-py (redis.Redis, RedisCluster), "
            f"got {type(server).__name__}."
        )
    try:
        found = _of_url(server, timeout)
        _check(found)
    except (ValueError, TypeError, redis.RedisError):
        raise ConfigurationError(  # what redis-py says may quote a password
            "the Redis URL cannot be used: it must look like redis://host:port/db, unix://path, "
            "redis+cluster://host:port,host:port or redis+sentinel://host:port,host:port/service, "
            "with options that redis-py knows."
        ) from None
    return found


def _of_url(url: str, timeout: float) -> Target:
    import redis.connection

    parse_url: Callable[[str], dict[str, Any]] = redis.connection.parse_url
    parts = urlsplit(url)
    if parts.scheme not in _MANY:
        options = parse_url(url)
        return Target("standalone", (_take_node(options),), _ours(options, timeout))
    mode, scheme = _MANY[parts.scheme]
    user, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if mode == "cluster":
        service, db = "", service
    if (mode == "sentinel") != bool(service) or (mode == "cluster" and db not in {"", "0"}):
        raise ValueError("no such service or database")
    each = [
        parse_url(urlunsplit((scheme, f"{user}{at}{host}", db, parts.query, "")))
        for host in hosts.split(",")
    ]
    if not all("host" in options for options in each):
        raise ValueError("a host is missing")
    seeds = tuple(_take_node(options) for options in each)
    options = each[0]
    sentinel = {
        name: value
        for name, value in options.items()
        if name == "connection_class" or name.startswith("ssl_")
    }
    for name in ("username", "password"):
        if f"sentinel_{name}" in options:
            sentinel[name] = options.pop(f"sentinel_{name}")
    if mode == "cluster":
        options.pop("db", None)
        return Target("cluster", seeds, _ours(options, timeout))
    return Target(
        "sentinel", seeds, _ours(options, timeout), _ours(sentinel, timeout), service=service
    )


def _of_client(client: Any, timeout: float) -> Target:
    pool = client.connection_pool
    options = dict(pool.connection_kwargs)
    if options.get("decode_responses"):
        raise ConfigurationError("the Redis client must not decode responses: entries are bytes.")
    node = (str(options.get("host", "localhost")), int(options.get("port", 6379)))
    if "path" in options:
        node = (options["path"], 0)
    elif hasattr(pool, "service_name"):
        node = (f"sentinel service {pool.service_name}", 26379)
    return Target(
        "standalone",
        (node,),
        _ours({**options, "connection_class": pool.connection_class}, timeout),
        given=client,
    )


def _of_cluster(client: Any, timeout: float) -> Target:
    options = dict(client.nodes_manager.connection_kwargs)
    if options.get("decode_responses"):
        raise ConfigurationError("the Redis client must not decode responses: entries are bytes.")
    seeds = tuple((node.host, node.port) for node in client.get_nodes())
    for name in ("host", "port", "redis_connect_func", "connection_pool_class"):
        options.pop(name, None)
    if options.pop("ssl", False):
        from redis.connection import SSLConnection

        options["connection_class"] = SSLConnection
    return Target("cluster", seeds, _ours(options, timeout), given=client)


def _take_node(options: dict[str, Any]) -> Node:
    if "path" in options:
        return options["path"], 0
    return options.pop("host", "localhost"), options.pop("port", 6379)


def _ours(options: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Lay our own choices over somebody's options: time-outs, no retries, no extra round trips."""
    from redis.backoff import NoBackoff
    from redis.connection import AbstractConnection
    from redis.retry import Retry

    known = inspect.signature(AbstractConnection).parameters
    quiet = {"driver_info": None} if "driver_info" in known else {}
    quiet = quiet or {"lib_name": None, "lib_version": None}
    return {
        "max_connections": _UNLIMITED,
        **{name: it for name, it in options.items() if not name.startswith(_PLUMBING)},
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "health_check_interval": 0,
        "decode_responses": False,
        "protocol": 2,
        **quiet,
    }


def _check(found: Target) -> None:
    """Make a connection without connecting: options that redis-py does not know show here."""
    connection(found, found.seeds[0])
    if found.mode == "sentinel":
        connection(found, ("localhost", 0))


def connection(found: Target, node: Node, **more: Any) -> Any:
    """Return a sync connection of redis-py that is not connected yet."""
    from redis.connection import Connection

    options = {**found.at(node), **more}
    options.pop("max_connections", None)
    kind = options.pop("connection_class", Connection)
    return kind(**options)


def client(found: Target, node: Node) -> Any:
    """Return the caller's own client of one node."""
    given = found.given
    if not hasattr(given, "nodes_manager"):
        return given
    known = given.get_node(*node)
    if known is not None:
        return given.get_redis_connection(known)
    manager = given.nodes_manager
    return manager.create_redis_node(*node, **manager.connection_kwargs)


def aclient(found: Target, node: Node) -> Any:
    """Return an async client of one node, for one event loop."""
    from redis.asyncio import Connection, ConnectionPool, Redis
    from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options = {**found.at(node), "retry": Retry(NoBackoff(), 0)}
    kinds = {
        "SSLConnection": SSLConnection,
        "UnixDomainSocketConnection": UnixDomainSocketConnection,
    }
    kind = getattr(options.pop("connection_class", None), "__name__", "")
    pool = ConnectionPool(connection_class=kinds.get(kind, Connection), **options)
    return Redis(connection_pool=pool)
