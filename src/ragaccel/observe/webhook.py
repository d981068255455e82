"""Alerts by HTTP: from a thread of their own, so that a dead endpoint slows nobody."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from ragaccel.errors import ConfigurationError
from ragaccel.resources import Errands

if TYPE_CHECKING:
    from ragaccel.observe.alerts import Alert

_MOST_WAITING: Final = 100
_log = logging.getLogger("ragaccel.observe")


class Webhook:
    """A callback that posts each alert as JSON, once; see `Alert.to_dict`.

    The thread ends with the last alert that waits. Faults are logged, without the URL's path, which
    may be a secret. When too many alerts wait, new ones are dropped.

    Args:
        url: Where to, http:// or https://.
        timeout: Seconds to wait for the endpoint.

    Raises:
        ConfigurationError: No such URL, or a timeout that is not over zero.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        if not timeout > 0:
            raise ConfigurationError(f"timeout must be over zero seconds, got {timeout!r}.")
        self._url, self._host, self._timeout = url, _host(url), timeout
        self._errands = Errands(self._post, "ragaccel-webhook", _MOST_WAITING)

    def __call__(self, alert: Alert) -> None:
        """Post an alert soon."""
        if not self._errands.add(msgspec.json.encode(alert.to_dict())):
            _log.warning("An alert for %s was dropped: too many wait", self._host)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no alert waits, for a program that ends.

        Args:
            timeout: Seconds; None for as long as it takes.

        Returns:
            Whether none waits.
        """
        return self._errands.wait(timeout)

    def _post(self, body: bytes) -> None:
        request = Request(  # noqa: S310 - the scheme was checked
            self._url, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urlopen(request, timeout=self._timeout):  # noqa: S310
                pass
        except HTTPError as error:
            with error:
                _log.warning("An alert was not taken by %s: status %d", self._host, error.code)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            _log.warning("An alert did not reach %s: %s", self._host, type(error).__name__)


def _host(url: str) -> str:
    """Return the host of a URL and its port, which are no secrets."""
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    except ValueError:
        pass
    raise ConfigurationError("url must be an http:// or https:// address with a host.")
