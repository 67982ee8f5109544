"""Drop what an address sends that floods the proxy: python docs/examples/block_address.py udp:127.0.0.1:8080 [SECONDS]

As root, on the server of OpenSIPS: pike answers a flood with silence, this spares it the flood. The addresses are in
the set `blocked` of the table `inet opensips`; each leaves it after its time (an hour). Programs on this host are let
through: they are how OpenSIPS is asked, and how this is told.
"""

import contextlib
import ipaddress
import math
import subprocess
import sys

from harness.deadline import Deadline
from harness.opensips.subscriber import Here, listening

RULES = """
add table inet opensips
add set inet opensips blocked { type ipv4_addr; flags timeout; }
add chain inet opensips before { type filter hook prerouting priority raw; }
flush chain inet opensips before
add rule inet opensips before iifname != "lo" ip saddr @blocked counter drop
"""


def nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=10)


place, seconds = sys.argv[1], int((sys.argv[2:] or ["3600"])[0])
nft(RULES)
with contextlib.suppress(KeyboardInterrupt), listening(place, Here("udp", "127.0.0.1:0"), "E_PIKE_BLOCKED") as reader:
    for event in reader.until(Deadline(math.inf)):
        address = ipaddress.ip_address(event.params["ip"])
        if address.version == 4:
            nft(f"add element inet opensips blocked {{ {address} timeout {seconds}s }}")
        print(f"{address} is blocked" if address.version == 4 else f"{address} is not IPv4", flush=True)
