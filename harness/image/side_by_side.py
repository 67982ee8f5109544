"""Two long steps at the same time: a build has two cores to use, and most of its tools use one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from harness.deadline import Cancellable, Deadline

_First = TypeVar("_First")
_Second = TypeVar("_Second")


def side_by_side(first: Callable[[Deadline], _First], second: Callable[[Deadline], _Second],
                 deadline: Deadline) -> tuple[_First, _Second]:
    """Run both, `second` in a thread, each with a deadline of its own; return both results.

    When one fails, or the user interrupts, the other's commands are ended, and the first error is raised when both
    are over: nothing runs on behind an error.
    """
    limit = Cancellable(deadline.remaining)
    results: list[_Second] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(second(limit))
        except BaseException as error:
            errors.append(error)
            limit.cancelled.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        result = first(limit)
        while thread.is_alive():
            thread.join(0.1)
    except BaseException as error:
        errors.append(error)
        limit.cancelled.set()
        while thread.is_alive():
            thread.join(0.1)
    if errors:
        raise errors[0]
    return result, results[0]
