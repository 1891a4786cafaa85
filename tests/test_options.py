"""The options of a task: every range, and the texts for what is outside of it."""

import math

import pytest

from flowkit import OptionError, Task, task
from flowkit.options import TaskOptions
from flowkit.states import TRIGGERS


def test_no_option_given_means_the_defaults():
    options = TaskOptions("task 'load'")
    assert options.as_keywords() == {
        "retries": 0, "delay": 1.0, "backoff": 2.0, "jitter": 0.1, "max_delay": 60.0, "retry_on": Exception,
        "timeout": None, "when": None, "trigger": "none_failed", "executor": None, "uses": None,
        "persist": True, "version": None, "on_success": None, "on_failure": None, "on_retry": None, "callbacks": (),
        "on_status_change": None,
    }  # fmt: skip


def test_options_given_back_as_keywords_make_equal_options():
    given = {"retries": 3, "timeout": 2.5, "uses": "api", "when": bool, "on_retry": print}
    options = TaskOptions("a", **given)
    assert TaskOptions("b", **options.as_keywords()).as_keywords() == options.as_keywords()
    assert options.as_keywords().items() >= given.items()


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="retires"):
        task(retires=3)(len)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "30", True, 1.1e9])
def test_timeout_must_be_a_finite_time_above_zero(value):
    with pytest.raises(OptionError, match=r"timeout=.* must be a finite number above 0"):
        Task("load", len, timeout=value)


@pytest.mark.parametrize("option", ["when", "on_success", "on_failure", "on_retry"])
def test_conditions_and_callbacks_must_be_callable(option):
    with pytest.raises(OptionError, match=f"{option}='yes' must be callable, not str"):
        Task("load", len, **{option: "yes"})
    assert getattr(Task("load", len, **{option: len}).options, option) is len


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_every_trigger_rule_can_be_given(trigger):
    assert Task("load", len, trigger=trigger).trigger == trigger


@pytest.mark.parametrize("trigger", ["all_succeeded", "", None, 3])
def test_another_trigger_is_refused_with_all_that_there_are(trigger):
    with pytest.raises(OptionError, match="'none_failed', 'all_success', 'one_success', 'all_done'"):
        Task("load", len, trigger=trigger)


def test_a_trigger_that_cannot_be_looked_up_is_refused_too():
    with pytest.raises(OptionError, match="trigger="):
        Task("load", len, trigger=["all_done"])


@pytest.mark.parametrize("executor", ["threads", "", 3])
def test_another_executor_is_refused_with_those_that_there_are(executor):
    with pytest.raises(OptionError, match=r"executor=.* must be one of 'thread'"):
        Task("load", len, executor=executor)


@pytest.mark.parametrize("uses", ["", 3, True, ["api"]])
def test_uses_must_be_the_name_of_a_limit(uses):
    with pytest.raises(OptionError, match=r"uses=.* must name a limit"):
        Task("load", len, uses=uses)


def test_the_text_names_the_task_and_where_it_was_made():
    with pytest.raises(OptionError) as caught:
        Task("load", len, timeout=-1)
    assert str(caught.value).startswith(f"task 'load' ({__file__}:")


def test_tasks_without_options_share_them():
    assert Task("a", len).options is Task("b", len).options


@pytest.mark.parametrize("option", ["on_success", "on_failure", "on_retry"])
def test_a_task_with_any_callback_is_known_to_have_one(option):
    assert TaskOptions("a", **{option: print}).has_callbacks
    assert not TaskOptions("a", when=bool).has_callbacks
