"""A network of the test cloud behind a router of high availability, as only an administrator can make it.

The node's L3 agent is the only one: its keepalived hears nobody else, and becomes active. It is on standby where the
link on which it would hear others is down.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.cloud.api import Api
from harness.settings import Settings
from harness.testcloud.place import place_of
from tests.waiting import until

NAME = "highly-available"
CHANGE = 60.0
"""Seconds in which a router may become active, or Neutron hear of it."""


@dataclass(frozen=True)
class HaNetwork:
    """The network's name, its router's id, and the first process of the node that both are on."""

    name: str
    router: str
    admin: Any
    node: int

    @property
    def namespace(self) -> str:
        return f"qrouter-{self.router}"

    def state(self) -> str:
        """What the router's only agent says of itself: active or standby."""
        [agent] = self.admin.network.routers_hosting_l3_agents(self.router)
        return str(agent.ha_state)

    @contextmanager
    def on_standby(self) -> Iterator[None]:
        """The link between the router's hosts is down for the block."""
        self._link("down")
        try:
            yield self._wait("standby")
        finally:
            self._link("up")
        self._wait("active")

    def _wait(self, state: str) -> None:
        until(lambda: self.state() == state, f"the router is {state}", CHANGE)

    def _link(self, what: str) -> None:
        inside = ["nsenter", "--target", str(self.node), "--all", "ip", "-netns", self.namespace]
        links = subprocess.run([*inside, "-brief", "link"], check=True, capture_output=True, text=True).stdout
        [link] = [line.split("@")[0].split()[0] for line in links.splitlines() if line.startswith("ha-")]
        subprocess.run([*inside, "link", "set", link, what], check=True)


@contextmanager
def network(api: Api, settings: Settings, *, dhcp: bool) -> Iterator[HaNetwork]:
    """A network of the project of `api`, its router active; both removed at the end."""
    mine: Any = api.sdk.network
    admin: Any = Api("testcloud-admin", settings).sdk
    network = mine.create_network(name=NAME)
    removers: list[Callable[[], Any]] = [lambda: mine.delete_network(network)]
    try:
        subnet = mine.create_subnet(network_id=network.id, ip_version=4, cidr="10.6.0.0/24", is_dhcp_enabled=dhcp)
        router = admin.network.create_router(
            name=NAME, project_id=api.sdk.current_project_id, is_ha=True,
            external_gateway_info={"network_id": admin.network.find_network("public").id})
        removers.append(lambda: admin.network.delete_router(router))
        admin.network.add_interface_to_router(router, subnet_id=subnet.id)
        removers.append(lambda: admin.network.remove_interface_from_router(router, subnet_id=subnet.id))
        made = HaNetwork(NAME, router.id, admin, place_of(settings).noted("node")["pid"])
        made._wait("active")
        yield made
    finally:
        for remove in reversed(removers):
            remove()
