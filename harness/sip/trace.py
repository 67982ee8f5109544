"""What a SIPp process sent and received: its message file (-trace_msg), and calls as both ends saw them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.voip import sdp
from harness.voip.sdp import Media

_BEGIN = re.compile(rb"^-{10,} [^\n]*\n\w+ message (?:(sent) \((\d+) bytes\)|received \[(\d+)\] bytes ?):\n\n", re.M)
_EXCERPT = 2


@dataclass(frozen=True)
class Message:
    """A request or a response; `start` is its first line, `method` that of its CSeq, `status` 0 for a request."""

    sent: bool
    start: str
    call_id: str
    method: str
    status: int
    body: str

    @property
    def audio(self) -> Media | None:
        """Where its session description wants audio; None where it has none. Raises SdpError."""
        medias = sdp.parse(self.body) if self.body else ()
        return next((media for media in medias if media.kind == "audio"), None)


@dataclass(frozen=True)
class Dialog:
    """A call as its two ends saw it.

    `status` and `reason` are the last answer to the INVITE that the caller got (0 and empty: none). `up`: the callee
    has the caller's ACK. `told_caller` is where the caller was told to send to, `told_callee` where the callee was;
    `callee` is where the callee said that it receives. `over`: the caller's BYE was answered with 200.
    """

    call_id: str
    status: int = 0
    reason: str = ""
    up: bool = False
    told_caller: Media | None = None
    told_callee: Media | None = None
    callee: Media | None = None
    over: bool = False

    @property
    def settled(self) -> bool:
        """Whether it was taken up or refused."""
        return self.up or self.status >= 300

    def __str__(self) -> str:
        return f"{self.status} {self.reason}" if self.status else "no answer"


def messages(data: bytes) -> list[Message]:
    """The messages of a message file; the last one is left out while it is not whole."""
    found = []
    at = 0
    while begin := _BEGIN.search(data, at):
        size = int(begin[2] or begin[3])
        if len(data) < begin.end() + size:
            break
        at = begin.end() + size
        found.append(_message(data[begin.end():at].decode(errors="replace"), sent=begin[1] is not None))
    return found


def dialogs(call_ids: Sequence[str], caller: Sequence[Message], callee: Sequence[Message]) -> list[Dialog]:
    """The calls of `call_ids` from what the process of the callers and that of the callees sent and received."""
    return [_dialog(call_id, [m for m in caller if m.call_id == call_id], [m for m in callee if m.call_id == call_id])
            for call_id in call_ids]


def excerpt(call_id: str, of: Sequence[Message]) -> list[str]:
    """The last messages of a call, a line each: `sent INVITE sip:...`, `received SIP/2.0 200 OK`."""
    return [f"{'sent' if m.sent else 'received'} {m.start}" for m in of if m.call_id == call_id][-_EXCERPT:]


def _message(text: str, *, sent: bool) -> Message:
    head, _, body = text.partition("\r\n\r\n")
    start, *lines = head.split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = re.match(r"SIP/2\.0 (\d{3})\b", start)
    return Message(sent, start, fields.get("call-id", ""), fields.get("cseq", "").rpartition(" ")[2],
                   int(status[1]) if status else 0, body)


def _dialog(call_id: str, caller: Sequence[Message], callee: Sequence[Message]) -> Dialog:
    answers = [m for m in caller if not m.sent and m.method == "INVITE" and m.status]
    last = answers[-1] if answers else None
    invite = next((m for m in callee if not m.sent and m.method == "INVITE" and not m.status), None)
    accepted = next((m for m in callee if m.sent and m.method == "INVITE" and m.status == 200), None)
    return Dialog(
        call_id, last.status if last else 0, last.start.split(" ", 2)[2] if last else "",
        any(not m.sent and m.method == "ACK" for m in callee),
        last.audio if last and last.status == 200 else None, invite.audio if invite else None,
        accepted.audio if accepted else None,
        any(not m.sent and m.method == "BYE" and m.status == 200 for m in caller))
