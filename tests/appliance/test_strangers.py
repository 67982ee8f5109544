"""Strangers."""

from dataclasses import dataclass

import pytest

from harness import acceptance, strangers
from harness.errors import CloudError, HostError
from harness.plugin import expect
from harness.strangers import Attempt, Intrusion, When
from harness.voip.call import Call, placed

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_one_call")]

KERNEL, USER = "kernel", "user space"
AFTERWARDS = 2.0
TRIES = 3


@dataclass(frozen=True)
class Intruded:
    """What strangers at `origin` did to calls, by the path that those took once the relay had learned their endpoints;
    `forwarded` is how many packets the kernel forwarded by the module's own count, `past` how many of the calls in
    user space came past the module by the firewall's."""

    origin: str
    learned: float | None
    paths: dict[str, list[Intrusion]]
    forwarded: int
    past: int


@pytest.fixture(scope="module")
def third(server, endpoint_towards, media_address):
    """An endpoint that the relay knows nothing of, and the server's address that it sends to.

    It takes another route than the media, so that its address is another one. Where no other one begins at the same
    place it has an address with them in common, and another port: its packets are timed between those of the call.
    """
    places = {route.gateway for route in server.routes if route.address == media_address}
    others = [route.address for route in server.routes if route.address != media_address and route.gateway in places]
    address = next(iter(others), media_address)
    return endpoint_towards(address), address


@pytest.fixture(scope="module")
def intruded(host, read, firewall, switchboard, endpoint, third, arrived, by_module, rtpengine):
    """For each path three calls at once; their strangers come before the first packet, during learning and after it."""
    caller, callee, (stranger, address) = endpoint(), endpoint(), third
    file = f"/proc/rtpengine/{rtpengine.table}/list"

    def targets():
        return acceptance.targets(read(file).get(file, ""))

    def attempted():
        paths = {path: [Attempt(Call(switchboard, caller, callee), stranger, address, when) for when in When]
                 for path in ((KERNEL, USER) if rtpengine.table >= 0 else (USER,))}
        # The relay has begun to learn when the last call is set up: those whose callers are silent at first come last.
        attempts = sorted((one for path in paths.values() for one in path), key=lambda one: one.when is When.FIRST)
        unsure = list(attempts)

        def has_learned():
            unsure[:] = [one for one in unsure if not strangers.learned(switchboard.query(one.call.id))]
            return not unsure and {port for one in paths.get(KERNEL, ()) for port in one.ports} <= set(targets())

        before, begun = arrived(), by_module({})
        calls = [attempt.call for attempt in attempts]
        with placed(calls):
            origin = f"-p udp -s {stranger.address} --sport {stranger.port}"
            # The first rule only counts.
            with firewall(origin, *acceptance.past_module(port for one in paths[USER] for port in one.ports)):
                watched = strangers.watch(attempts, has_learned, afterwards=AFTERWARDS, linger=acceptance.LINGER)
                rules = host.check_output("iptables -w -v -S INPUT")
            counted, results = targets(), [call.result() for call in calls]
            forwarded = by_module(acceptance.grown({}, counted, [port for one in paths.get(KERNEL, ())
                                                                 for port in one.ports])) - begun
        acceptance.fit(results, watched.health, arrived() - before)
        sent = sum(one.early.sent + one.late.sent for one in watched.intrusions.values())
        came = acceptance.counted(rules, stranger.address, stranger.port)
        if came < sent / 2:
            raise CloudError(f"strangers can't be judged: of their {sent:,} packets {came:,} came to the server",
                             hint=f"does something on the way stop packets from {stranger.address} to {address}?")
        return watched, Intruded(
            stranger.address if stranger.address != caller.address else f"another port of {stranger.address}",
            watched.learned, {path: [watched.intrusions[one] for one in paths[path]] for path in paths},
            forwarded, sum(acceptance.past(rules, port) for one in paths[USER] for port in one.ports))

    for _ in range(TRIES):
        watched, found = attempted()
        if not watched.too_late:
            return found
    raise HostError(f"strangers can't be judged: a caller began {watched.begun:.1f} s after its call's answer, and the "
                    f"relay learns for {strangers.LEARNING:.0f} s", hint="this machine or the server is too busy")


def test_no_media_stolen(intruded, rtpengine, seen):
    """once the relay has heard a caller at its own address, the caller's media go nowhere else"""
    every, known = [one for path in intruded.paths.values() for one in path], rtpengine.learning == "known"
    stolen, unheard = (strangers.total(getattr(one, name) for one in every) for name in ("heard", "unheard"))
    said = f"{stolen} packets for callers went to {intruded.origin}; before the caller was heard, {unheard}"
    seen(said)
    shut_out = sum(one.shut_out for one in every)
    expect(not shut_out, "every caller heard", f"{shut_out} of {len(every)} callers shut out by a stranger; {said}")
    wrong = stolen.came + known * unheard.came
    expect(wrong == 0, "none, not even before that" if known else "none", said)


@pytest.mark.parametrize("path", [
    pytest.param(USER, id="user-space"),
    pytest.param(KERNEL, id="kernel", marks=pytest.mark.after("test_forwarded_by_module"))])
def test_nothing_injected(intruded, rtpengine, seen, path):
    """once the relay has learned its endpoints, nobody else gets a packet into a call"""
    if path not in intruded.paths:
        pytest.skip("the description asks for forwarding in user space (table: -1)")
    every, known = intruded.paths[path], rtpengine.learning == "known"
    early, late = (strangers.total(getattr(one, name) for one in every) for name in ("early", "late"))
    seconds = max(one.until for one in every)
    said = f"{late} packets from {intruded.origin} injected; while the relay learned, {early}"
    seen(f"{said}, for {seconds:.1f} s" if early.came else said)
    expect(intruded.learned is not None, "every endpoint learned", f"some are not; {said}")
    if path == KERNEL:
        expect(intruded.forwarded > 0, "these calls in the kernel", "none of their packets forwarded there")
    else:
        expect(intruded.past > 0, "these calls in user space", "none of their packets came past the module")
    wrong = late.came + known * early.came
    expect(wrong == 0, "none injected, at no time" if known else "none injected after learning", said)
