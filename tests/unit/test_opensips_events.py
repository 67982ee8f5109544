"""Events are found in what comes, however it is cut."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.opensips.events import LARGEST, Decoder, Event, of_datagram, of_notification

EXAMPLE = b'{"jsonrpc":"2.0","method":"E_SCRIPT_TEST","params":{"n":7,"caller":"alice"}}'

values = st.one_of(st.integers(-2**31, 2**31 - 1), st.text(), st.none())
objects = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0"), "method": st.text(min_size=1)},
    optional={"params": st.one_of(st.dictionaries(st.text(), values), st.lists(values))})
between = st.sampled_from([b"", b"", b"", b"\n", b" \r\n\t"])


@st.composite
def streams(draw):
    """Objects, the octets that they are, and where those are cut."""
    wanted = draw(st.lists(objects, max_size=6))
    data = b"".join(json.dumps(one, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass") + draw(between)
                    for one in wanted)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return wanted, data, cuts


def pieces(data, cuts):
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def without_surrogates(found):
    """As it arrives; values of which a name is empty have none."""
    if isinstance(found.get("params"), dict) and "" in found["params"]:
        found = {**found, "params": list(found["params"].values())}
    return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass").decode(errors="replace"))


@given(streams())
def test_every_object_is_found_wherever_the_stream_is_cut(case):
    wanted, data, cuts = case
    decoder = Decoder()
    found = [one for piece in pieces(data, cuts) for one in decoder.feed(piece)]
    assert list(map(without_surrogates, found)) == list(map(without_surrogates, wanted))
    assert decoder.malformed == 0 and not decoder.begun


@given(streams())
def test_octet_by_octet_is_no_different(case):
    wanted, data, _ = case
    decoder = Decoder()
    found = [one for number in range(len(data)) for one in decoder.feed(data[number:number + 1])]
    assert len(found) == len(wanted) and decoder.malformed == 0


@given(streams(), st.binary(min_size=1, max_size=20).filter(lambda junk: not set(junk) & set(b'{}"\\ \r\n\t')))
def test_what_is_no_object_is_counted_and_passed_over(case, junk):
    wanted, data, cuts = case
    decoder = Decoder()
    found = decoder.feed(junk) + [one for piece in pieces(data, cuts) for one in decoder.feed(piece)]
    assert len(found) == len(wanted) and decoder.malformed >= 1


@given(st.lists(st.binary(max_size=30)))
@settings(max_examples=300)
def test_no_octets_break_it(chunks):
    decoder = Decoder()
    for chunk in chunks:
        decoder.feed(chunk)


def test_an_object_that_is_no_json_is_counted_and_the_next_is_found():
    decoder = Decoder()
    assert decoder.feed(b'{"a":1}{nonsense}{"b":"}{"}{"c"') == [{"a": 1}, {"b": "}{"}]
    assert decoder.malformed == 1 and decoder.begun
    assert decoder.feed(b":2}") == [{"c": 2}] and not decoder.begun


def test_an_object_without_end_is_given_up():
    decoder = Decoder()
    piece = b'{"a":"' + b"x" * 100_000
    for _ in range(LARGEST // 100_000 + 2):
        assert decoder.feed(piece[:6]) + decoder.feed(piece[6:]) == []
    assert decoder.malformed >= 1


def test_a_large_object_in_small_pieces_takes_no_longer_than_its_size():
    data = json.dumps({"a": 'x"\\{}' * 30_000}).encode()
    decoder = Decoder()
    begin = time.process_time()
    found = [one for number in range(0, len(data), 100) for one in decoder.feed(data[number:number + 100])]
    assert len(found) == 1 and time.process_time() - begin < 3


def test_many_events_are_decoded_quickly():
    """50,000 a second is what is wanted; a tenth of it is not even on a busy machine too much to ask."""
    data = EXAMPLE * 5000
    decoder = Decoder()
    begin = time.process_time()
    events = [of_notification(found, 0.0, "tcp") for number in range(0, len(data), 65536)
              for found in decoder.feed(data[number:number + 65536])]
    assert len(events) == 5000 and time.process_time() - begin < 1


def test_an_event_says_what_happened():
    event = of_datagram(EXAMPLE, 12.5, "udp")
    assert event == Event("E_SCRIPT_TEST", {"n": 7, "caller": "alice"}, 12.5, "udp")
    assert str(event) == "E_SCRIPT_TEST(n=7, caller='alice')"
    assert event.matches({"n": 7}) and event.matches({})
    assert not event.matches({"n": "7"}) and not event.matches({"m": 7}) and not event.matches({"n": True})
    with pytest.raises(TypeError):
        event.params["n"] = 8
    by_position = of_datagram(b'{"jsonrpc":"2.0","method":"E","params":["a",null]}', 0.0, "unix")
    assert by_position.params == ("a", None) and str(by_position) == "E('a', None)"
    assert not by_position.matches({"a": 1}) and by_position.matches({})
    assert of_datagram(b'{"jsonrpc":"2.0","method":"E"}', 0.0, "unix").params == ()


@pytest.mark.parametrize("params", ['{"":"a","":"b"}', '{"n":"a","n":"b"}', '["a","b"]'])
def test_no_value_is_lost_for_its_name(params):
    octets = f'{{"jsonrpc":"2.0","method":"E","params":{params}}}'.encode()
    assert of_datagram(octets, 0.0, "udp").params == ("a", "b")
    assert Decoder().feed(octets)[0]["params"] == ["a", "b"]


@pytest.mark.parametrize("octets", [
    b"", b"E_PIKE_BLOCKED\nip::192.0.2.1\n", b"[]", b"3", b'{"jsonrpc":"1.0","method":"E"}', b'{"jsonrpc":"2.0"}',
    b'{"jsonrpc":"2.0","method":5}', b'{"jsonrpc":"2.0","method":"E","params":"x"}', EXAMPLE[:-1], EXAMPLE * 2,
    b"[" * 100_000])
def test_what_is_no_event_is_none(octets):
    assert of_datagram(octets, 0.0, "udp") is None
