"""Single requests of SIP (RFC 3261) over UDP."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence


def asked(to: tuple[str, int], method: str, seconds: float = 3.0, headers: Sequence[str] = ()) -> str:
    """The final answer to a request outside of a dialog; empty where none came within `seconds`.

    `headers` come before those that a proxy looks for.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.connect(to)
        host, port = own.getsockname()
        tag, number = secrets.token_hex(8), 1
        own.send("\r\n".join([
            f"{method} sip:nobody@{to[0]}:{to[1]} SIP/2.0", f"Via: SIP/2.0/UDP {host}:{port};branch=z9hG4bK{tag};rport",
            *headers, f"From: <sip:test@{host}>;tag={tag}", f"To: <sip:nobody@{to[0]}>",
            f"Call-ID: {tag}@{host}", f"CSeq: {number} {method}", f"Contact: <sip:test@{host}:{port}>",
            "Max-Forwards: 70", "Content-Length: 0", "", ""]).encode())
        own.settimeout(seconds)
        try:
            while seconds:
                answer = own.recv(65535).decode(errors="replace")
                if not answer.startswith("SIP/2.0 1"):
                    return answer
        except (TimeoutError, ConnectionRefusedError):
            pass
        return ""
