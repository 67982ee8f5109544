import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.voip.rtp import CLOCK
from harness.voip.stats import Received

SOURCE = b"\x02\x00\x9c\x40\x7f\x00\x00\x01" + bytes(8)
TICK = 20_000_000
BEGIN = 1_795_619_041 * 10**9


def fed(numbers, first=0, transit=lambda index: 0):
    """A receiver of packets of these numbers, in this order; `transit` is ns from sending to arrival."""
    seen = Received()
    for index, number in enumerate(numbers):
        sent, timestamp = BEGIN + number * TICK, (first + number) * 160 & 0xFFFFFFFF
        seen.packet((first + number) & 0xFFFF, timestamp, sent + transit(index), sent, SOURCE, 0)
    return seen


def test_a_stream_without_faults():
    seen = fed(range(1000))
    assert (seen.packets, seen.expected, seen.lost, seen.duplicates, seen.reordered) == (1000, 1000, 0, 0, 0)
    assert seen.jitter == seen.jitter_max == seen.jitter_mean == 0
    assert seen.longest_gap == TICK and len(seen.latencies) == 1000 and set(seen.latencies) == {0}
    assert seen.sources == {SOURCE: 1} and seen.tos == {0}


@pytest.mark.parametrize(("numbers", "lost", "duplicates", "reordered"), [
    ([0, 1, 2, 3], 0, 0, 0),
    ([0, 1, 3], 1, 0, 0),
    ([0, 1, 3, 2], 0, 0, 1),
    ([0, 1, 1, 2], 0, 1, 0),
    ([0, 1, 3, 3, 2, 2], 0, 2, 1),
    ([1, 0, 2], 0, 0, 1),
    ([3, 0, 4], 2, 0, 1),
    ([0, 50, 1], 48, 0, 1),
])
def test_each_fault_is_counted_as_itself(numbers, lost, duplicates, reordered):
    seen = fed(numbers)
    assert (seen.lost, seen.duplicates, seen.reordered) == (lost, duplicates, reordered)
    assert seen.unique == len(set(numbers)) and seen.packets == len(numbers)


@given(st.integers(0, 65535), st.data())
def test_counts_agree_with_counting_by_hand(first, data):
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    sent = list(range(400))
    kept = [number for number in sent if rng.random() > 0.1]
    kept += [number for number in kept if rng.random() < 0.05]
    numbers = sorted(kept, key=lambda number: number + rng.random() * rng.choice([0, 0, 20]))
    seen = fed(numbers, first)
    highest, duplicates, reordered, had = -1, 0, 0, set()
    for number in numbers:
        duplicates += number in had
        reordered += number < highest and number not in had
        had.add(number)
        highest = max(highest, number)
    assert (seen.duplicates, seen.reordered) == (duplicates, reordered)
    assert seen.expected == max(numbers) - min(numbers) + 1
    assert seen.lost == seen.expected - len(had)
    assert seen.cumulative_lost == seen.expected - len(numbers)


def test_sequence_numbers_and_timestamps_wrap():
    seen = fed(range(200_000), first=65500)
    assert (seen.expected, seen.lost, seen.restarts, seen.jitter_max) == (200_000, 0, 0, 0)
    assert seen.highest == 65500 + 199_999


def rfc_3550_a_8(transits):
    """Appendix A.8's integer arithmetic, of transit times in timestamp units."""
    jitter = 0
    for before, after in pairwise(transits):
        jitter += abs(after - before) - ((jitter + 8) >> 4)
    return jitter >> 4


@given(st.lists(st.integers(0, 400), min_size=2, max_size=300))
def test_jitter_is_that_of_a_8(transits):
    seen = fed(range(len(transits)), transit=lambda index: transits[index] * 10**9 // CLOCK)
    assert seen.jitter == pytest.approx(rfc_3550_a_8(transits), abs=2)


def test_jitter_of_alternating_delays_goes_to_their_difference():
    seen = fed(range(1000), transit=lambda index: (index % 2) * 5_000_000)
    assert seen.jitter == pytest.approx(40, rel=0.01)
    assert seen.jitter_max == seen.jitter and 39 < seen.jitter_mean < 40
    assert set(seen.latencies) == {0, 5_000_000}


def test_a_source_that_begins_anew_far_away_goes_on_being_counted():
    seen = fed([0, 1, 3, *range(20_000, 20_010)])
    assert seen.restarts == 1 and seen.strays == 0
    assert (seen.packets, seen.expected, seen.lost) == (13, 14, 1)


def test_one_packet_from_far_away_is_a_stray_and_no_loss():
    seen = fed([0, 1, 20_000, 2, 3])
    assert (seen.strays, seen.restarts, seen.expected, seen.lost) == (1, 0, 4, 0)


def test_sources_and_tos_that_change_are_told():
    seen = Received()
    other = SOURCE[:3] + b"\x41" + SOURCE[4:]
    for number, (source, tos) in enumerate([(SOURCE, 0), (other, 184), (SOURCE, 184)]):
        seen.packet(number, number * 160, BEGIN + number * TICK, 0, bytearray(source), tos)
    assert seen.sources == {SOURCE: 2, other: 1} and seen.tos == {0, 184}
    assert list(seen.latencies) == []


def test_the_longest_gap_and_when():
    seen = fed([0, 1, 2, 52, 53])
    assert seen.longest_gap == 50 * TICK and seen.gap_begin == BEGIN + 2 * TICK
    assert seen.lost == 49 and seen.loss_bursts == 1


@pytest.mark.parametrize(("numbers", "bursts"), [([0, 1], 0), ([0, 2], 1), ([0, 2, 4], 2), ([0, 3, 9], 2)])
def test_bursts_of_loss(numbers, bursts):
    assert fed(numbers).loss_bursts == bursts


def test_the_fraction_lost_is_since_the_last_report():
    seen = fed([0, 2, 4, 6])
    assert seen.fraction_lost() == 256 * 3 // 7
    assert seen.fraction_lost() == 0
    for number in range(7, 11):
        seen.packet(number, number * 160, BEGIN + number * TICK, 0, SOURCE, 0)
    assert seen.fraction_lost() == 0
    assert fed([0, 0, 0]).fraction_lost() == 0
