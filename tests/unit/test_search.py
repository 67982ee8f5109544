import pytest

from harness.voip.search import following


def search(most_held, first=25, most=1600):
    tried = {}
    while (number := following(tried, first, most)) is not None:
        tried[number] = number <= most_held
    return tried


@pytest.mark.parametrize("most_held", [1, 3, 24, 25, 77, 640, 1000, 1599])
def test_the_highest_that_is_held_is_found(most_held):
    tried = search(most_held)
    found = max(number for number, good in tried.items() if good)
    assert most_held - max(1, 0.15 * found) <= found <= most_held
    assert len(tried) <= 12


def test_nothing_is_held():
    assert search(0) == dict.fromkeys([25, 12, 6, 3, 1], False)


def test_it_ends_at_the_most():
    assert list(search(10_000, most=700)) == [25, 50, 100, 200, 400, 700]
    assert list(search(10_000, first=25, most=10)) == [10]


def test_one_that_failed_below_a_higher_one_that_was_held_is_passed_over():
    assert following({25: True, 50: False, 100: True}, 25, 1600) == 200
