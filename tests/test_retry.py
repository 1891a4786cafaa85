"""Retry policies: whether there is another attempt, and how long it waits. None of these tests sleeps."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowkit import GiveUp, OptionError, RetryAfter
from flowkit.retry import RetryPolicy, check_count, check_seconds

seconds = st.one_of(st.just(0.0), st.floats(1e-6, 1e9))
"""Durations a person would write; below a microsecond floats lose the product before it is capped."""
policies = st.builds(
    RetryPolicy,
    retries=st.integers(0, 10_000),
    delay=seconds,
    backoff=st.one_of(st.just(0.0), st.floats(0.01, 1e9)),
    jitter=st.floats(0, 10),
    max_delay=seconds,
)


def unjittered(policy, attempt):
    """The wait before *attempt* as DESIGN has it, in exact arithmetic."""
    wait = Fraction(policy.delay) * Fraction(policy.backoff) ** (attempt - 2)
    return float(min(Fraction(policy.max_delay), wait))


# ---------------------------------------------------------------- the wait


def test_the_wait_grows_by_the_backoff_with_each_attempt():
    policy = RetryPolicy(retries=4, delay=1, backoff=2, jitter=0)
    assert [policy.delay_before(n, random.Random(0)) for n in range(1, 6)] == [0, 1, 2, 4, 8]


def test_the_first_attempt_never_waits():
    assert RetryPolicy(delay=100, jitter=1).delay_before(1, random.Random(0)) == 0.0


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_are_counted_from_one(attempt):
    with pytest.raises(ValueError, match=f"attempt={attempt}"):
        RetryPolicy().delay_before(attempt, random.Random(0))


@settings(deadline=None)
@given(policies, st.integers(2, 40), st.integers())
@example(RetryPolicy(delay=1e-6, backoff=1e9, max_delay=1e9, jitter=10), 40, 0)
def test_no_wait_is_negative_or_beyond_the_cap_or_shortened_by_jitter(policy, attempt, seed):
    wait = policy.delay_before(attempt, random.Random(seed))
    least = unjittered(policy, attempt)
    assert wait >= 0
    assert wait <= policy.max_delay * (1 + policy.jitter) * (1 + 1e-12)
    assert wait >= least * (1 - 1e-12)
    assert wait <= least * (1 + policy.jitter) * (1 + 1e-12)


@settings(deadline=None)
@given(policies, st.integers(2, 40))
def test_without_jitter_the_wait_is_exactly_the_formula(policy, attempt):
    exact = RetryPolicy(delay=policy.delay, backoff=policy.backoff, max_delay=policy.max_delay, jitter=0)
    wait = exact.delay_before(attempt, random.Random(0))
    assert math.isclose(wait, unjittered(exact, attempt), rel_tol=1e-12)


@settings(deadline=None)
@given(policies, st.integers(2, 40), st.integers())
def test_the_same_seed_gives_the_same_wait(policy, attempt, seed):
    first, second = (policy.delay_before(attempt, random.Random(seed)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("attempt", [1102, 10**6, 10**9])
def test_a_power_beyond_every_float_is_capped(attempt):
    for delay, expected in ((1, 60.0), (0, 0.0)):
        policy = RetryPolicy(delay=delay, backoff=2.0, max_delay=60, jitter=0)
        assert policy.delay_before(attempt, random.Random(0)) == expected


def test_a_backoff_below_one_shortens_the_wait_down_to_nothing():
    policy = RetryPolicy(delay=8, backoff=0.5, jitter=0)
    assert [policy.delay_before(n, random.Random(0)) for n in (2, 3, 4)] == [8, 4, 2]
    assert policy.delay_before(10**6, random.Random(0)) == 0.0


def test_jitter_spreads_the_waits():
    policy = RetryPolicy(delay=10, backoff=1, jitter=0.5)
    rng = random.Random(1)
    waits = [policy.delay_before(2, rng) for _ in range(100)]
    assert all(10 <= wait <= 15 for wait in waits)
    assert max(waits) - min(waits) > 3


def test_retry_after_replaces_the_wait_even_beyond_the_cap():
    policy = RetryPolicy(retries=1, delay=1, max_delay=2)
    assert policy.wait_after(1, RetryAfter(12), random.Random(0)) == 12.0
    assert policy.wait_after(1, ValueError(), random.Random(0)) <= 1.1


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "3", True, None, 2e9])
def test_retry_after_refuses_what_no_clock_can_wait_for(value):
    with pytest.raises(OptionError, match="RetryAfter"):
        RetryAfter(value)


def test_retry_after_says_how_long_or_what_it_was_told():
    assert str(RetryAfter(12)) == "retry after 12 s"
    assert str(RetryAfter(12, "429 Too Many Requests")) == "429 Too Many Requests"


# ---------------------------------------------------------------- again or not


def test_any_exception_is_retried_by_default_but_not_what_ends_the_program():
    policy = RetryPolicy()
    assert policy.is_retryable(ValueError())
    assert not policy.is_retryable(KeyboardInterrupt())
    assert not policy.is_retryable(SystemExit())


@pytest.mark.parametrize("retry_on", [
    OSError, (KeyError, OSError), lambda error: isinstance(error, OSError), lambda error: not error.args,
])  # fmt: skip
def test_retry_on_is_a_class_a_tuple_or_a_predicate(retry_on):
    policy = RetryPolicy(retry_on=retry_on)
    assert policy.is_retryable(ConnectionError())
    assert not policy.is_retryable(ValueError("no"))


def test_only_a_class_can_name_what_ends_the_program():
    """A predicate is asked about errors, and not about an exit or a Ctrl-C."""
    assert not RetryPolicy(retry_on=lambda error: True).is_retryable(SystemExit())
    assert not RetryPolicy(retry_on=lambda error: True).is_retryable(KeyboardInterrupt())
    assert RetryPolicy(retry_on=(KeyError, SystemExit)).is_retryable(SystemExit())


def test_an_empty_tuple_retries_nothing():
    assert not RetryPolicy(retry_on=()).is_retryable(ValueError())


def test_give_up_is_never_retried_and_retry_after_always():
    for retry_on in (Exception, KeyError, (), lambda error: True, lambda error: False):
        policy = RetryPolicy(retry_on=retry_on)
        assert policy.is_retryable(RetryAfter(1))
        assert not policy.is_retryable(GiveUp("no"))


def test_a_predicate_that_raises_counts_as_no_and_is_logged(caplog):
    def broken(error):
        raise RuntimeError("the predicate itself")

    assert not RetryPolicy(retry_on=broken).is_retryable(ValueError("the task's own"))
    (record,) = caplog.records
    assert record.name == "flowkit"
    assert "broken" in record.getMessage()
    assert "ValueError: the task's own" in record.getMessage()
    assert "the predicate itself" in record.exc_text


@pytest.mark.parametrize("retry_on", ["OSError", 3, None, (OSError, "KeyError"), int, [OSError]])
def test_any_other_retry_on_is_refused(retry_on):
    with pytest.raises(OptionError, match="retry_on="):
        RetryPolicy(retry_on=retry_on)


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize("retries", [-1, 1.5, math.nan, "3", True, None, 10**10])
def test_retries_must_be_a_count(retries):
    with pytest.raises(OptionError, match=r"task 'load': retries=.* must be an integer from 0"):
        RetryPolicy(retries=retries, where="task 'load'")


@pytest.mark.parametrize("option", ["delay", "backoff", "jitter", "max_delay"])
@pytest.mark.parametrize("value", [
    -1, -0.001, math.nan, math.inf, -math.inf, "1", True, None, 1.1e9, pytest.param(10**400, id="huge"),
])  # fmt: skip
def test_durations_and_factors_must_be_finite_and_not_negative(option, value):
    with pytest.raises(OptionError, match=rf"{option}=.* must be a finite number from 0 to 1e\+09"):
        RetryPolicy(**{option: value})


def test_the_ends_of_the_ranges_are_good():
    assert check_seconds("x", "delay", 0) == 0.0
    assert check_seconds("x", "delay", 10**9) == 1e9
    assert check_count("x", "retries", 0, 0, 5) == 0
    assert check_count("x", "retries", 5, 0, 5) == 5
    with pytest.raises(OptionError, match="above 0"):
        check_seconds("x", "timeout", 0, above_zero=True)
