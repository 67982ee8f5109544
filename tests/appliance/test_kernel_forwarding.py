"""Forwarding in the kernel."""

import pytest

from harness.plugin import expect

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_ten_calls", "test_rule_to_module")]


def test_forwarded_by_module(conversation, table, seen):
    """once the endpoints are learned every packet is forwarded in the kernel, by the module's own count"""
    expect(conversation.learned is not None, "every stream in the module's table", "some are not")
    sent, forwarded = conversation.sent, conversation.forwarded
    said = f"{sum(forwarded.values()):,} of {sum(sent.values()):,} packets to {len(sent)} ports"
    seen(f"{said}, {conversation.learned:.1f} s after the first one")
    expect(conversation.by_module == sum(sent.values()), f"{sum(sent.values()):,} packets, as many as were sent",
           f"{conversation.by_module:,} by the module's own count")
    wrong = [port for port in sent if forwarded[port] != sent[port]]
    expect(not wrong, f"{sum(sent.values()):,} packets, as many as were sent to each port",
           f"{said}; not all of port {', '.join(map(str, wrong[:5]))}" + (", ..." if wrong[5:] else ""))


def test_forwarded_by_daemon(conversation, table, seen):
    """once the endpoints are learned every packet is forwarded in the kernel, by the daemon's count"""
    kernel, user = (conversation.totals[f"relayedpackets_{path}"] for path in ("kernel", "user"))
    said = f"{kernel:,} packets in the kernel, {user:,} in user space"
    seen(said)
    wanted = sum(conversation.sent.values())
    expect(kernel >= wanted, f"{wanted:,} packets or more in the kernel", said)
