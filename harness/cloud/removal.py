"""How what runs made in an OpenStack cloud is removed.

A resource is found by its name and mark, never by an id that may not have been known when its maker died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from harness.cloud import glance, neutron, nova
from harness.cloud.api import Api, Refused
from harness.deadline import Deadline
from harness.errors import CloudError
from harness.resources import Awaited, Remover, Resource

_IN_USE = 90.0
"""Seconds for which a deletion is tried that the API refuses because something is still in use."""
_GONE = 180.0
"""Seconds that a server may take to be gone after it was asked to."""
_LOOKING = 1.0


class Removal:
    """One pass over what is to be removed. Nothing is made meanwhile: of each run everything of a kind is listed once,
    and servers, which take their time to go, once a second."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._listed: dict[tuple[str, str], list[Any]] = {}
        self._running = nova.Listing(api, _LOOKING)
        self._asked: set[str] = set()

    @property
    def removers(self) -> Mapping[str, Remover]:
        return {**dict.fromkeys(neutron.KINDS, self._of_network), "os-router-interface": self._interfaces,
                "os-server": Awaited(self._ask, self._server), "os-key-pair": self._key_pair, "os-image": self._image}

    def _of_network(self, resource: Resource) -> None:
        """What is still in use is tried again for a while: its users are going."""
        for entry in self._found(resource.kind, resource):
            _patiently(partial(self._api.get, f"deleting {resource}", partial(self._delete, resource.kind, entry)))

    def _delete(self, kind: str, entry: Any) -> None:
        getattr(self._api.sdk.network, f"delete_{neutron.KINDS[kind]}")(entry, ignore_missing=True)

    def _found(self, kind: str, resource: Resource) -> list[Any]:
        """By name, or by description where the API knows no name."""
        mark = str(resource.data["mark"])
        if (kind, mark) not in self._listed:
            query = {} if kind in neutron.NAMELESS else {"description": mark}
            self._listed[kind, mark] = neutron.listed(self._api, kind, **query)
        named = "description" if kind in neutron.NAMELESS else "name"
        return [entry for entry in self._listed[kind, mark] if getattr(entry, named) == resource.name]

    def _interfaces(self, resource: Resource) -> None:
        for router in self._found("os-router", resource):
            for port in neutron.interfaces(self._api, router.id):
                _patiently(partial(self._interface, router, str(port.id)))

    def _interface(self, router: Any, port: str) -> None:
        try:
            self._api.get("the router's interface",
                          lambda: self._api.sdk.network.remove_interface_from_router(router, port=port))
        except Refused as error:
            if error.status != 404:
                raise

    def _ask(self, resource: Resource) -> None:
        for state in self._servers(resource):
            if state.id not in self._asked:
                self._asked.add(state.id)
                nova.delete_server(self._api, state)

    def _server(self, resource: Resource) -> None:
        limit = Deadline(_GONE)
        self._ask(resource)
        while found := self._servers(resource):
            if limit.expired:
                raise CloudError(f"{self._api.name}: the server {resource.name} is {found[0].status} still, "
                                 f"{_GONE:.0f} s after it was deleted", hint="./inv reap tries again")
            time.sleep(_LOOKING)
            self._ask(resource)

    def _servers(self, resource: Resource) -> list[nova.State]:
        """Every server of that name and run that is not gone."""
        return [s for s in self._running.states(str(resource.data["run"]))
                if s.name == resource.name and s.status != "DELETED"]

    def _key_pair(self, resource: Resource) -> None:
        nova.delete_key_pair(self._api, resource.name)

    def _image(self, resource: Resource) -> None:
        glance.release(self._api, resource.name, str(resource.data.get("owner", "")), str(resource.data["run"]))


def _patiently(action: Callable[[], object]) -> None:
    """Do `action` until the API no longer answers that something is in use (409). Raises Refused at the end."""
    limit = Deadline(_IN_USE)
    while True:
        try:
            action()
            return
        except Refused as error:
            if error.status != 409 or limit.expired:
                raise
        time.sleep(1.0)
