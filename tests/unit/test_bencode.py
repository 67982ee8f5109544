import random
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.voip.bencode import BencodeError, Incomplete, decode, decode_first, encode

VALUES = st.recursive(st.integers(-10**18, 10**18) | st.text() | st.binary(),
                      lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
REAL = encode({
    "result": "ok", "created": 1795619041, "totals": {"RTP": {"packets": 705, "bytes": 100287, "errors": 0}},
    "tags": {"A": {"medias": [{"index": 1, "streams": [{"local port": 30018, "flags": ["RTP", "filled"]}]}]}}})


def as_text(value: object) -> object:
    """As the decoder gives it back: octet strings are text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [as_text(item) for item in value]
    if isinstance(value, dict):
        return {key: as_text(item) for key, item in value.items()}
    return value


@given(VALUES)
def test_what_is_encoded_is_decoded(value):
    assert decode(encode(value)) == as_text(value)


@given(VALUES)
def test_the_decoded_encodes_to_the_same_octets(value):
    assert encode(decode(encode(value))) == encode(value)


@given(VALUES, st.binary())
def test_the_first_value_ends_where_it_ends(value, rest):
    data = encode(value)
    assert decode_first(b"cookie " + data + rest, 7) == (as_text(value), 7 + len(data))


@given(VALUES, st.data())
def test_a_beginning_is_incomplete_and_nothing_else(value, data):
    whole = encode(value)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(Incomplete):
        decode_first(whole[:cut])


@given(st.binary() | st.text("0123456789ilde:-", max_size=60).map(str.encode))
def test_any_octets_are_a_value_or_an_error(data):
    with suppress(BencodeError):
        decode(data)


def test_fuzzed_answers_are_a_value_or_an_error_in_time():
    rng = random.Random(9)
    begin = time.process_time()
    refused = 0
    for _ in range(20_000):
        data = bytearray(REAL)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at:at + rng.randrange(1, 30)]
            elif kind == 2:
                data[at:at] = rng.choice([b"l", b"d", b"i", b"e", b"9", b"4294967296:", b"-1:", b"\xff" * 9])
            else:
                data[at:at] = data[rng.randrange(len(data)):][:40]
        try:
            decode(bytes(data))
        except BencodeError:
            refused += 1
    assert 10_000 < refused < 20_000
    assert time.process_time() - begin < 20


@pytest.mark.parametrize("unit", [b"l", b"d", b"d1:a", b"i", b"1", b"-", b"le", b"de", b"i1e", b"0:", b"99999999999:"])
def test_the_largest_datagram_is_decoded_in_time_whatever_it_holds(unit):
    data = (unit * 65535)[:65535]
    begin = time.process_time()
    for text in (data, b"l" + data, b"d" + data, b"l" + data[:-1] + b"e"):
        with suppress(BencodeError):
            decode(text)
    assert time.process_time() - begin < 2


def test_bencode_is_that_of_bep_3():
    assert encode({"spam": ["a", 42], "b": -1}) == b"d1:bi-1e4:spaml1:ai42eee"


@pytest.mark.parametrize("data", [b"", b"i5", b"ie", b"i--1e", b"5:abc", b"-1:a", b"d1:a", b"di1ei2ee", b"d1:ae",
                                  b"i1eX", b"l" * 100, b"i1_0e", b"i 1e", b"i" + b"1" * 5000 + b"e"])
def test_malformed_is_told(data):
    with pytest.raises(BencodeError):
        decode(data)


@pytest.mark.parametrize("data", [b"ie", b"i--1e", b"-1:a", b"di1ei2ee", b"d1:ae", b"l" * 100, b"i1_0e", b"i 1e", b"x",
                                  b"i" + b"1" * 5000, b"1" * 5000])
def test_no_further_octets_are_waited_for_where_none_help(data):
    with pytest.raises(BencodeError) as error:
        decode_first(data)
    assert not isinstance(error.value, Incomplete)


@pytest.mark.parametrize("value", [True, 1.5, None])
def test_bencode_has_no_such_values(value):
    with pytest.raises(TypeError):
        encode(value)
