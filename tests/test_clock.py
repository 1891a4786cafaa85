"""The machine's clock, and timers."""

import threading
import time
from functools import partial
from queue import SimpleQueue

from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.engine.clock import RealClock, Timers


def never_quiet(asleep):
    raise AssertionError("the machine's clock does not ask")


# ---------------------------------------------------------------- RealClock


def test_the_clock_is_monotonic_and_never_zero():
    clock = RealClock()
    readings = [clock.now() for _ in range(100)]
    assert readings == sorted(readings)
    assert readings[0] > 0


def test_the_epoch_and_a_reading_make_the_time_of_day():
    clock = RealClock()
    assert abs(clock.epoch() + clock.now() - time.time()) < 0.5


def test_stepping_the_wall_clock_does_not_touch_the_readings(mocker):
    clock = RealClock()
    before = clock.now()
    mocker.patch("time.time", return_value=0.0)
    assert 0 <= clock.now() - before < 5


def test_a_wait_without_a_deadline_takes_the_next_wake_up():
    clock, wake_ups = RealClock(), SimpleQueue()
    waiter = threading.Thread(target=clock.wait, args=(wake_ups, None, never_quiet))
    waiter.start()
    assert waiter.is_alive()
    wake_ups.put(None)
    waiter.join(5)
    assert not waiter.is_alive()
    assert wake_ups.empty()


def test_a_wake_up_that_came_before_is_taken_at_once():
    wake_ups = SimpleQueue()
    wake_ups.put(None)
    wake_ups.put(None)
    RealClock().wait(wake_ups, None, never_quiet)
    RealClock().wait(wake_ups, time.perf_counter() + 3600, never_quiet)
    assert wake_ups.empty()


def test_a_wait_ends_at_its_deadline():
    clock, wake_ups = RealClock(), SimpleQueue()
    clock.wait(wake_ups, clock.now() - 1, never_quiet)
    deadline = clock.now() + 0.01
    clock.wait(wake_ups, deadline, never_quiet)
    assert clock.now() >= deadline


def test_a_deadline_beyond_what_the_platform_can_wait_for_is_cut():
    """1e9 seconds would be an OverflowError in the queue; the caller looks again after a day at most."""
    waits = []

    class Queue:
        def get(self, timeout=None):
            waits.append(timeout)

    wait = partial(RealClock().wait, Queue(), time.perf_counter() + 1e9, never_quiet)
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert waits == [86_400.0]


def test_the_main_thread_looks_up_often_enough_to_notice_a_ctrl_c_that_did_not_wake_it():
    waits = []

    class Queue:
        def get(self, timeout=None):
            waits.append(timeout)

    RealClock().wait(Queue(), time.perf_counter() + 1e9, never_quiet)
    RealClock().wait(Queue(), None, never_quiet)
    assert waits == [0.1, 0.1]


def test_sleep_blocks_the_thread(mocker):
    sleep = mocker.patch("time.sleep")
    RealClock().sleep(3)
    sleep.assert_called_once_with(3)


# ---------------------------------------------------------------- Timers


def test_without_timers_there_is_no_deadline():
    assert Timers().next_deadline() is None
    assert Timers().pop_due(1e9) is None


def test_adding_says_whether_it_is_the_earliest_now():
    timers = Timers()
    assert timers.add(5.0, print) is True
    assert timers.add(7.0, print) is False
    assert timers.add(5.0, print) is False
    assert timers.add(3.0, print) is True
    assert timers.next_deadline() == 3.0


def test_an_action_is_due_at_its_deadline_and_not_before():
    timers, done = Timers(), []
    timers.add(5.0, done.append, "now")
    assert timers.pop_due(4.999) is None
    assert done == []
    timers.pop_due(5.0)()
    assert done == ["now"]
    assert timers.next_deadline() is None


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.0, 2.0, 2.5, 3.0]), max_size=12), st.floats(0, 4))
def test_due_actions_come_earliest_first_and_equal_ones_in_the_order_added(deadlines, now):
    timers, done = Timers(), []
    for n, deadline in enumerate(deadlines):
        timers.add(deadline, done.append, (deadline, n))
    while (action := timers.pop_due(now)) is not None:
        action()
    assert done == sorted((deadline, n) for n, deadline in enumerate(deadlines) if deadline <= now)
    left = [deadline for deadline in deadlines if deadline > now]
    assert timers.next_deadline() == (min(left) if left else None)


def test_actions_that_cannot_be_compared_may_share_a_deadline():
    timers = Timers()
    for _ in range(3):
        timers.add(1.0, lambda value: None, object())
    assert all(timers.pop_due(1.0) for _ in range(3))
