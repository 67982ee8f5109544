"""SIP."""

import re
import secrets
import socket
from contextlib import closing

import pytest

from harness.access import namespace, reach
from harness.deadline import Deadline
from harness.plugin import expect
from harness.sip.request import Request, SipNoAnswer, by_datagrams, by_stream

SECONDS = 10.0
"""Until an answer at most: what a busy emulated server takes, and some datagrams that get lost."""
ELSEWHERE = "198.51.100.1"
"""An address of nobody (RFC 5737), for which the proxy is not there."""


@pytest.fixture(scope="module")
def ask(session, server, opensips):
    """ask(transport, method, uri, aor, *headers): the proxy's final answer, by the same route as the server."""
    route, port = server.routes[0], opensips.port

    def asked(transport, method, uri, aor, *headers):
        request = Request(method, uri, aor, transport=transport.upper(), headers=headers)
        if transport == "udp":
            with closing(reach.open_datagrams(session.config, route, port)) as link:
                return by_datagrams(link, (route.address, port), request, Deadline(SECONDS))
        if route.gateway:
            pytest.skip("through a gateway SIP is asked by UDP only")
        with namespace.open_socket(route.namespace, socket.SOCK_STREAM) as link:
            link.settimeout(SECONDS)
            try:
                link.connect((route.address, port))
            except OSError as error:
                raise SipNoAnswer(f"no connection to {route.address}:{port}: {error.strerror or error}") from error
            return by_stream(link, request, Deadline(SECONDS))

    return asked


@pytest.fixture(scope="module")
def domain(server):
    """What the proxy answers for: its own address."""
    return server.internal_ip


@pytest.mark.after("test_proxy_listens")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_options_answered(ask, domain, opensips, transport):
    """OPTIONS is answered"""
    uri = f"sip:{domain}:{opensips.port}"
    answer = ask(transport, "OPTIONS", uri, uri)
    expect(answer.status == 200, "200 OK", answer)


@pytest.mark.level("acceptance")
@pytest.mark.after("test_options_answered")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_registered(ask, domain, transport):
    """REGISTER is remembered until it is taken back"""
    aor, contact = f"sip:dialtone-{secrets.token_hex(4)}@{domain}", "sip:phone@192.0.2.77:5070"

    def registered(*headers):
        answer = ask(transport, "REGISTER", f"sip:{domain}", aor, *headers)
        expect(answer.status == 200, "200 OK to REGISTER", answer)
        return re.findall(r"<(sip:[^>]+)>", answer.header("contact"))

    try:
        known = registered(f"Contact: <{contact}>", "Expires: 120")
        expect(known == [contact], f"Contact: <{contact}>", ", ".join(known) or "no contact")
        expect(registered() == [contact], f"{contact} known", "it is not")
    finally:
        left = registered("Contact: *", "Expires: 0")
    expect(not left and not registered(), "no contact once it is taken back", ", ".join(left) or "still known")


@pytest.mark.level("acceptance")
@pytest.mark.after("test_options_answered")
@pytest.mark.parametrize("user, host, status", [("nobody", None, 404), ("somebody", ELSEWHERE, 403)])
def test_call_refused(ask, domain, user, host, status):
    """a call to who is not registered is refused, and one to elsewhere: the proxy relays for nobody"""
    answer = ask("udp", "INVITE", f"sip:{user}@{host or domain}", f"sip:caller@{domain}",
                 "Contact: <sip:caller@192.0.2.77:5070>")
    expect(answer.status == status, f"{status} to a call to {user}@{host or 'its own domain'}", answer)
