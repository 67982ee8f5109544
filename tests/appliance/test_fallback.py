"""Forwarding in user space, where the kernel's is not to be had."""

import pytest

from harness import acceptance
from harness.plugin import expect
from harness.voip.call import Call
from harness.voip.traffic import Traffic

pytestmark = pytest.mark.level("acceptance")

UNIT = "rtpengine.service"
KEEP_AWAY = "/run/modprobe.d/dialtone.conf"
SECONDS = 2.0


@pytest.mark.after("test_forwarded_by_module")
def test_without_rule(host, put_back, settled, listed, by_module, media_address, generation, table, whole):
    """without the rule to the module the media of calls go on in user space, and in the kernel once it is back"""
    talk, rule = settled, generation.rule("ip6" if ":" in media_address else "ip", table)
    ports = {stream.target[1] for stream in talk.streams}

    def forwarded():
        """Packets that the module forwards in SECONDS of media: by port, and in all by its own count."""
        before = acceptance.targets(listed())
        begun = by_module(before)
        talk.traffic.wait(SECONDS)
        after = acceptance.targets(listed())
        return acceptance.grown(before, after, ports).values(), by_module(after) - begun

    talk.during(0)
    with put_back(rule.insert):
        host.check_output(rule.delete)
        _, without = forwarded()
    with_rule, _ = forwarded()
    sent = SECONDS * 1000 / talk.streams[0].ptime
    said = (f"by the module's count {without:,} packets forwarded without the rule in {SECONDS:.0f} s, "
            f"{sum(with_rule):,} with it")
    whole(talk.during(0), said)  # in one: a gap from one interval to the next is in neither
    expect(without == 0, "no packet forwarded in the kernel without the rule", said)
    expect(all(number > sent / 2 for number in with_rule), "every stream in the kernel again", said)


@pytest.mark.after("test_forwarded_by_module", "test_module_unloaded_and_loaded")
def test_without_module(host, put_back, find, switchboard, endpoint, arrived, table, generation, rtpengine, seen):
    """without the module the daemon refuses to start where the description says no_fallback, else it relays"""
    module = generation.module
    back = (f"rm -f {KEEP_AWAY}; systemctl stop {UNIT}; modprobe {module} && systemctl start {UNIT} && "
            f"systemctl reset-failed {UNIT}")
    with put_back(back):
        host.check_output("systemctl stop %s && timeout 5 sh -c 'until rmmod %s; do sleep 0.1; done'", UNIT, module)
        # A rule's target is loaded on demand.
        host.check_output("mkdir -p %s && echo install %s /bin/false >%s", KEEP_AWAY.rpartition("/")[0], module,
                          KEEP_AWAY)
        started = host.run("systemctl start %s", UNIT)
        state = host.check_output("systemctl show --property=ActiveState,ExecMainStatus %s", UNIT)
        log = host.run("journalctl -b -u %s -o cat -n 20", UNIT).stdout
        why = next((line.rpartition("] ")[2] for line in log.splitlines()[::-1] if generation.refusal in line), "")
        if rtpengine.no_fallback:
            refused(dict(line.split("=", 1) for line in state.splitlines()), why, seen)
        else:
            expect(started.rc == 0, "the daemon starts without the module", started.stderr.strip(), why)
            relayed(switchboard, endpoint, arrived, find, seen)


def refused(state, why, seen):
    said = f"{state['ActiveState']}, exit status {state['ExecMainStatus']}; {why or 'no word of why'}"
    seen(said)
    expect(state["ActiveState"] != "active" and state["ExecMainStatus"] == "255" and why != "",
           "not active, exit status 255, with the reason", said)


def relayed(switchboard, endpoint, arrived, find, seen):
    expect(not find("/proc/rtpengine"), "no module", "it is loaded")
    came, before = arrived(), switchboard.statistics()["totalstatistics"]
    with Call(switchboard, endpoint(), endpoint()) as call:
        health = Traffic(call.streams, report_every=0).run(SECONDS, acceptance.LINGER)
        result = call.result()
    after = switchboard.statistics()["totalstatistics"]
    acceptance.fit([result], [health], arrived() - came)
    user, kernel = (int(after[name]) - int(before[name]) for name in ("relayedpackets_user", "relayedpackets_kernel"))
    said = f"{acceptance.in_words([result])}; {user:,} packets forwarded in user space, {kernel:,} in the kernel"
    seen(said)
    lost = sum(acceptance.missing(one) for one in acceptance.directions([result]))
    expect(lost == 0 and user > 0 and kernel == 0, "a call without loss in user space", said)
