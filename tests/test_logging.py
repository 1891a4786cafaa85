"""The logger: what each line says, that it is one line, and whom it leaves alone."""

import io
import json
import logging as stdlib
import re
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowkit
from flowkit import DAG, OptionError, events, task
from flowkit import logging as flowkit_logging
from flowkit.hooks import log_broken_hook
from flowkit.logging import FlowkitLogger, LogLevel, configure_logging, get_logger

LINE = re.compile(r"\d\d:\d\d:\d\d  \[(DEBUG|INFO|WARN|ERROR|SUCCESS|SYSTEM)\] (.*)\n")
ERROR = ValueError("text")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Start unconfigured, and leave nothing configured behind."""
    shared, observers = stdlib.getLogger("flowkit"), list(events.default_observers)
    before = shared.handlers[:], shared.level, shared.propagate, shared.disabled
    monkeypatch.setattr(flowkit_logging, "_current", None)
    monkeypatch.delenv("NO_COLOR", raising=False)
    yield
    shared.handlers[:], level, shared.propagate, shared.disabled = before
    shared.setLevel(level)
    events.default_observers[:] = observers


@pytest.fixture
def printed(capsys):
    """Return what was printed since the last call: text as (level, message), JSON as dicts."""

    def take(*, as_json=False):
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = captured.out.splitlines(keepends=True)
        return [
            json.loads(line, parse_constant=_refuse) if as_json else LINE.fullmatch(line).groups() for line in lines
        ]

    return take


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


class UnshowableError(Exception):
    def __str__(self):
        raise RuntimeError("no str")


# ---------------------------------------------------------------- what each method says

METHODS = [
    ("log_task_start", ("load",), "INFO", "Task started: load", "task_start", {"task_name": "load"}),
    ("log_task_success", ("load",), "SUCCESS", "Task succeeded: load", "task_success", {"task_name": "load"}),
    (
        "log_task_success", ("load", 1.5), "SUCCESS", "Task succeeded: load (1.50s)",
        "task_success", {"task_name": "load", "duration": 1.5},
    ),
    (
        "log_task_failure", ("load", ERROR), "ERROR", "Task failed: load - ValueError: text",
        "task_failure", {"task_name": "load", "error_type": "ValueError", "error_message": "text"},
    ),
    (
        "log_task_retry", ("load", 2, 3, 2.0), "WARN", "Task retry: load (attempt 2/3, delay: 2.00s)",
        "task_retry", {"task_name": "load", "attempt": 2, "max_retries": 3, "delay": 2.0},
    ),
    (
        "log_task_skip", ("load",), "SYSTEM", "Task skipped: load (condition not met)",
        "task_skip", {"task_name": "load", "reason": "condition not met"},
    ),
    (
        "log_task_skip", ("load", "no rows"), "SYSTEM", "Task skipped: load (no rows)",
        "task_skip", {"task_name": "load", "reason": "no rows"},
    ),
    (
        "log_dag_start", ("etl", 5), "INFO", "DAG started: etl (5 tasks)",
        "dag_start", {"dag_name": "etl", "total_tasks": 5},
    ),
    (
        "log_dag_progress", ("etl", 3, 5), "INFO", "DAG progress: etl (3/5 - 60.0%)",
        "dag_progress", {"dag_name": "etl", "completed": 3, "total": 5, "percentage": 60.0},
    ),
    (
        "log_dag_progress", ("etl", 0, 0), "INFO", "DAG progress: etl (0/0 - 0.0%)",
        "dag_progress", {"dag_name": "etl", "completed": 0, "total": 0, "percentage": 0.0},
    ),
    (
        "log_dag_complete", ("etl", 5), "INFO", "DAG completed: etl (5 tasks)",
        "dag_complete", {"dag_name": "etl", "total_tasks": 5, "state": "succeeded"},
    ),
    (
        "log_dag_complete", ("etl", 1, 10.5), "INFO", "DAG completed: etl (1 task) (duration: 10.50s)",
        "dag_complete", {"dag_name": "etl", "total_tasks": 1, "state": "succeeded", "duration": 10.5},
    ),
    ("log_progress", ("loading",), "INFO", "loading", "progress", {}),
    ("log_system", ("ready",), "SYSTEM", "ready", "system", {}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "args", "level", "text", "event", "fields"), METHODS)
def test_each_method_prints_its_text_and_its_json_object(printed, method, args, level, text, event, fields):
    getattr(FlowkitLogger(), method)(*args)
    assert printed() == [(level, text)]

    getattr(FlowkitLogger("nightly", json_output=True), method)(*args)
    (found,) = printed(as_json=True)
    timestamp = datetime.fromisoformat(found.pop("timestamp"))
    assert timestamp.utcoffset() == timedelta(0)
    assert abs(timestamp.timestamp() - time.time()) < 60
    assert found == {"level": level, "logger": "nightly", "message": text, "event": event, **fields}


def test_the_clock_of_a_text_line_is_local_time(capsys):
    before = time.strftime("%H:%M:%S")
    FlowkitLogger().log_system("now")
    assert before <= capsys.readouterr().out[:8] <= time.strftime("%H:%M:%S") or before > "23:59"


@pytest.mark.parametrize(
    ("percentage", "filled", "shown"),
    [(0, 0, "0.0%"), (50, 10, "50.0%"), (99.9, 19, "99.9%"), (100, 20, "100.0%"), (-5, 0, "-5.0%"), (1e9, 20, "0.0%"),
     (float("inf"), 20, "inf%"), (float("nan"), 0, "nan%")],
)  # fmt: skip
def test_the_bar_has_twenty_cells_whatever_the_percentage(printed, percentage, filled, shown):
    FlowkitLogger().log_progress("loading", percentage)
    ((_, text),) = printed()
    assert text.startswith(f"loading [{'█' * filled}{'░' * (20 - filled)}] ")
    assert text.endswith(shown)


def test_progress_in_json_has_the_percentage_and_no_bar(printed):
    FlowkitLogger(json_output=True).log_progress("loading", 50.0)
    (found,) = printed(as_json=True)
    assert (found["message"], found["percentage"]) == ("loading", 50.0)


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("DEBUG", "INFO SUCCESS SYSTEM WARN ERROR"),
        ("INFO", "INFO SUCCESS SYSTEM WARN ERROR"),
        ("SUCCESS", "INFO SUCCESS SYSTEM WARN ERROR"),
        ("SYSTEM", "INFO SUCCESS SYSTEM WARN ERROR"),
        ("WARNING", "WARN ERROR"),
        ("ERROR", "ERROR"),
    ],
)
def test_lines_below_the_level_are_left_out(printed, level, shown):
    for logger in (FlowkitLogger(level=LogLevel[level]), configure_logging(level=LogLevel[level])):
        logger.log_task_start("load")
        logger.log_task_success("load")
        logger.log_system("ready")
        logger.log_task_retry("load", 2, 3, 1)
        logger.log_task_failure("load", ERROR)
        assert [line_level for line_level, _ in printed()] == shown.split()


@pytest.mark.parametrize("level", [LogLevel.WARNING, "WARNING", "WARN"])
def test_a_level_is_a_loglevel_or_its_name_or_its_value(level):
    assert FlowkitLogger(level=level).level is LogLevel.WARNING
    assert LogLevel.WARNING.value == "WARN"


@pytest.mark.parametrize("level", ["LOUD", "info", "", 20, None, True, [], Unshowable()])
def test_a_wrong_level_is_an_error_that_names_the_right_ones(level):
    kept = configure_logging()
    for make in (FlowkitLogger, configure_logging):
        with pytest.raises(OptionError) as caught:
            make(level=level)
        for allowed in LogLevel:
            assert repr(allowed.name) in str(caught.value)
    assert get_logger() is kept


def test_the_application_can_silence_it_as_any_other_logger(printed):
    logger = configure_logging()
    stdlib.disable(stdlib.WARNING)
    try:
        logger.log_system("not heard")
        logger.log_task_failure("load", ERROR)
    finally:
        stdlib.disable(stdlib.NOTSET)
    assert [level for level, _ in printed()] == ["ERROR"]
    stdlib.getLogger("flowkit").setLevel(stdlib.CRITICAL)
    logger.log_task_failure("load", ERROR)
    assert printed() == []


# ---------------------------------------------------------------- one line, whatever it says


@given(st.text(), st.text(), st.dictionaries(st.text(min_size=1), st.text(), max_size=3))
def test_every_record_is_one_line_whatever_its_texts(name, reason, context):
    context = {key: value for key, value in context.items() if key not in ("self", "name", "reason")}
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        FlowkitLogger().log_task_skip(name, reason, **context)
        FlowkitLogger(json_output=True).log_task_skip(name, reason, **context)
        printed, sys.stdout = sys.stdout, stdout
    finally:
        sys.stdout = stdout
    text, as_json, end = printed.getvalue().split("\n")
    assert len(f"{text} ".splitlines()) == len(f"{as_json} ".splitlines()) == 1
    assert text.isprintable()
    assert end == ""
    found = json.loads(as_json)
    assert (found["task_name"], found["reason"]) == (name, reason)
    assert found["message"] == f"Task skipped: {name} ({reason})"
    for key, value in context.items():
        assert value in (found.get(key), found.get(f"ctx_{key}"))


def test_a_task_cannot_steer_the_terminal(printed):
    FlowkitLogger().log_task_start("a\nb\r\x1b[2J\u2028\u202e")
    assert printed() == [("INFO", r"Task started: a\nb\r\x1b[2J\u2028\u202e")]


def test_percent_signs_and_braces_stay_as_they_are(printed):
    FlowkitLogger().log_system("100%s {x}")
    assert printed() == [("SYSTEM", "100%s {x}")]


def test_a_line_of_text_has_a_longest_length(printed):
    FlowkitLogger().log_system("x" * 1_000_000)
    ((_, text),) = printed()
    assert text == "x" * 10_000 + "... (1000000 characters)"


@pytest.mark.parametrize("json_output", [False, True])
def test_a_narrow_encoding_gets_escapes(monkeypatch, json_output):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", newline="\n"))
    logger = FlowkitLogger(json_output=json_output)
    logger.log_task_start("größe")
    logger.log_progress("läuft", 50)
    lines = raw.getvalue().decode("ascii").splitlines()
    if json_output:
        assert [json.loads(line)["message"] for line in lines] == ["Task started: größe", "läuft"]
    else:
        assert lines[0].endswith(r"Task started: gr\xf6\xdfe")
        assert lines[1].endswith(r"l\xe4uft [##########----------] 50.0%")


# ---------------------------------------------------------------- context


def test_context_stands_behind_the_text_and_as_json_keys(printed):
    FlowkitLogger().log_task_start("load", rows=3, path="a b")
    assert printed() == [("INFO", "Task started: load rows=3 path='a b'")]
    FlowkitLogger(json_output=True).log_task_start("load", rows=3, nested={"a": [1, None, True, "ß"]})
    (found,) = printed(as_json=True)
    assert (found["rows"], found["nested"]) == (3, {"a": [1, None, True, "ß"]})


def test_colliding_context_keys_get_a_prefix_until_they_are_free(printed):
    taken = {"ctx_level": 7, "timestamp": 1, "level": 2, "logger": 3, "message": 4, "event": 5, "task_name": 6}
    FlowkitLogger("mine", json_output=True).log_task_start("load", **taken)
    (found,) = printed(as_json=True)
    del found["timestamp"]
    assert found == {
        "level": "INFO", "logger": "mine", "message": "Task started: load", "event": "task_start", "task_name": "load",
        "ctx_timestamp": 1, "ctx_level": 7, "ctx_logger": 3, "ctx_message": 4, "ctx_event": 5, "ctx_task_name": 6,
        "ctx_ctx_level": 2,
    }  # fmt: skip


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


class Hostile(dict):
    def items(self):
        raise RuntimeError("no items")

    def __repr__(self):
        return "Hostile()"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ([1, float("nan")], "[1, nan]"),
        ({float("inf"): 1}, "{inf: 1}"),
        (1 + 2j, "(1+2j)"),
        (b"\xff", r"b'\xff'"),
        ({"a": {1}}, {"a": "{1}"}),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (ERROR, "ValueError('text')"),
        (Unshowable(), "<Unshowable: its repr raised RuntimeError>"),
        ([1, Unshowable()], [1, "<Unshowable: its repr raised RuntimeError>"]),
        ({(1,): Unshowable()}, "<dict: its repr raised RuntimeError>"),
        (Hostile(a=1), "Hostile()"),
        (10**5000, "<int: its repr raised ValueError>"),
        ("\ud800\n", "\ud800\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_json_cannot_hold_is_written_as_its_repr(printed, value, written):
    FlowkitLogger(json_output=True).log_task_start("load", value=value)
    (found,) = printed(as_json=True)
    assert found["value"] == written
    FlowkitLogger().log_task_start("load", value=value)  # and as text it does not raise either
    assert len(printed()) == 1


def test_values_without_an_end_or_without_a_bottom_do_not_raise(printed):
    ring = []
    ring.append(ring)
    FlowkitLogger(json_output=True).log_task_start("load", ring=ring, well=deep(100_000), big="x" * 20_000)
    (found,) = printed(as_json=True)
    assert found["ring"] == "[[...]]"
    assert found["well"] == "<list: its repr raised RecursionError>"
    assert len(found["big"]) == 20_000  # a string is JSON's own, and is not cut


@pytest.mark.parametrize("json_output", [False, True])
def test_an_error_whose_text_raises_is_named_all_the_same(printed, json_output):
    FlowkitLogger(json_output=json_output).log_task_failure("load", UnshowableError())
    (found,) = printed(as_json=json_output)
    if json_output:
        assert found["error_type"] == "UnshowableError"
        assert found["error_message"] == "<UnshowableError: its str raised RuntimeError>"
    else:
        assert "Task failed: load - UnshowableError" in found[1]


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize(
    ("stream", "use_colors", "env", "is_colored"),
    [
        (Terminal, True, {}, True),
        (Terminal, False, {}, False),
        (Terminal, True, {"NO_COLOR": "1"}, False),
        (Terminal, True, {"NO_COLOR": ""}, False),
        (io.StringIO, True, {}, False),
    ],
)
def test_colours_only_on_a_terminal_and_never_under_no_color(monkeypatch, stream, use_colors, env, is_colored):
    logger = FlowkitLogger(use_colors=use_colors)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream())
    logger.log_task_failure("load", ERROR)
    line = sys.stdout.getvalue()
    assert ("\x1b[" in line) is is_colored
    assert LINE.fullmatch(re.sub(r"\x1b\[\d+m", "", line)).groups() == ("ERROR", "Task failed: load - ValueError: text")


def test_json_is_never_coloured(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    FlowkitLogger(json_output=True).log_system("ready")
    assert json.loads(sys.stdout.getvalue())["message"] == "ready"


# ---------------------------------------------------------------- where it writes


def test_each_line_goes_to_the_current_stdout(monkeypatch):
    logger, first, second = configure_logging(), io.StringIO(), io.StringIO()
    for stream in (first, second):
        monkeypatch.setattr(sys, "stdout", stream)
        logger.log_system("ready")
    assert LINE.fullmatch(first.getvalue())
    assert LINE.fullmatch(second.getvalue())


def test_a_program_without_a_console_prints_nothing_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    FlowkitLogger().log_system("ready")
    assert capsys.readouterr().err == ""


def test_a_stdout_that_can_only_write_is_enough(monkeypatch, capsys):
    class Sink:
        def __init__(self):
            self.write = lines.append

    lines = []
    monkeypatch.setattr(sys, "stdout", Sink())
    FlowkitLogger().log_system("ready")
    assert LINE.fullmatch("".join(lines))
    assert capsys.readouterr().err == ""


def test_a_closed_stdout_is_reported_on_stderr_and_raises_nothing(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    FlowkitLogger().log_system("ready")
    assert "I/O operation on closed file" in capsys.readouterr().err


def test_lines_of_many_threads_never_interleave(monkeypatch):
    """Every logger, text or JSON, has its turn at a stdout that is as slow and as torn as can be."""

    class Torn(io.StringIO):
        def write(self, text):
            for part in (text[:20], text[20:-1], text[-1:]):
                super().write(part)
                time.sleep(0)  # lets another thread in, if anything does

    monkeypatch.setattr(sys, "stdout", Torn())
    loggers = [FlowkitLogger("a", json_output=True), FlowkitLogger("b"), configure_logging(json_output=True)]
    start = threading.Barrier(12)

    def work(k):
        start.wait()
        for n in range(40):
            loggers[k % 3].log_task_start(f"{k}-{n}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = []
    for line in sys.stdout.getvalue().splitlines(keepends=True):
        message = json.loads(line)["message"] if line.startswith("{") else LINE.fullmatch(line)[2]
        seen.append(message.removeprefix("Task started: "))
    assert sorted(seen) == sorted(f"{k}-{n}" for k in range(12) for n in range(40))
    for k in range(12):  # and each thread's lines stay in order
        assert [name for name in seen if name.startswith(f"{k}-")] == [f"{k}-{n}" for n in range(40)]


def test_a_repr_that_waits_for_a_thread_that_logs_does_not_deadlock(printed):
    logger, other = FlowkitLogger(), FlowkitLogger("other")

    class Waiting:
        def __repr__(self):
            thread = threading.Thread(target=other.log_system, args=("meanwhile",))
            thread.start()
            thread.join(20)
            return f"finished={not thread.is_alive()}"

    logger.log_task_start("load", value=Waiting())
    assert printed() == [("SYSTEM", "meanwhile"), ("INFO", "Task started: load value=finished=True")]


# ---------------------------------------------------------------- loggers and the rest of the process


def test_loggers_do_not_disturb_each_other(printed):
    loud, quiet = FlowkitLogger("a", level="DEBUG"), FlowkitLogger("a.b", level="ERROR", json_output=True)
    same_name = FlowkitLogger("a", level="WARN")
    for logger in (loud, quiet, same_name):
        logger.log_system("ready")
    assert printed() == [("SYSTEM", "ready")]
    quiet.log_task_failure("load", ERROR)
    (found,) = printed(as_json=True)
    assert found["logger"] == "a.b"


@pytest.mark.parametrize("name", ["root", "", "app"])
def test_a_logger_never_takes_over_one_of_the_application(name, printed):
    theirs = stdlib.getLogger(name)
    before = theirs.handlers[:], theirs.level, theirs.propagate
    FlowkitLogger(name, level="ERROR").log_system("not heard")
    assert (theirs.handlers, theirs.level, theirs.propagate) == before
    assert printed() == []


def test_configuring_leaves_the_applications_loggers_alone_and_prints_nothing_twice(printed):
    root, theirs = stdlib.getLogger(), stdlib.StreamHandler(io.StringIO())
    root.addHandler(theirs)
    try:
        before = root.handlers[:], root.level, root.disabled, stdlib.lastResort, stdlib.getLoggerClass()
        logger = configure_logging()
        logger.log_system("ready")
        stdlib.getLogger("flowkit.task").info("working")
        stdlib.getLogger("app").warning("app's own")
        assert (root.handlers, root.level, root.disabled, stdlib.lastResort, stdlib.getLoggerClass()) == before
    finally:
        root.removeHandler(theirs)
    assert [message for _, message in printed()] == ["ready", "working"]
    assert theirs.stream.getvalue() == "app's own\n"


def test_a_handler_added_to_the_logger_flowkit_gets_every_record(printed):
    theirs = stdlib.StreamHandler(io.StringIO())
    theirs.setFormatter(stdlib.Formatter("%(levelname)s %(name)s %(message)s"))
    logger = configure_logging()
    stdlib.getLogger("flowkit").addHandler(theirs)
    logger.log_task_success("load", rows=3)
    assert theirs.stream.getvalue() == "SUCCESS flowkit Task succeeded: load\n"
    assert printed() == [("SUCCESS", "Task succeeded: load rows=3")]


def test_a_filter_on_its_handler_is_obeyed(printed):
    logger = configure_logging()
    (handler,) = [known for known in stdlib.getLogger("flowkit").handlers if not isinstance(known, stdlib.NullHandler)]
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    for message in ("a secret", "ready"):
        logger.log_system(message)
    assert printed() == [("SYSTEM", "ready")]


def test_configuring_again_replaces_the_logger_before(printed):
    first = configure_logging()
    second = configure_logging(level="WARN", json_output=True)
    assert get_logger() is second
    assert [known for known in events.default_observers if isinstance(known, FlowkitLogger)] == [second]
    first.log_system("still text")  # a run that began before goes on with it
    assert printed() == [("SYSTEM", "still text")]
    second.log_system("below its level")
    stdlib.getLogger("flowkit").warning("once")
    assert [(found["level"], found["message"]) for found in printed(as_json=True)] == [("WARN", "once")]


def test_configuring_wakes_a_logger_that_dictconfig_disabled(printed):
    stdlib.getLogger("flowkit").disabled = True
    configure_logging().log_system("ready")
    assert printed() == [("SYSTEM", "ready")]


def test_configuring_takes_the_place_of_the_default_logger_and_of_no_other_observer():
    default, theirs = get_logger(), [].append
    events.default_observers.append(theirs)
    assert get_logger() is default
    assert default not in events.default_observers
    logger = configure_logging()
    assert get_logger() is logger
    assert events.default_observers[-2:] == [theirs, logger]


def test_a_broken_hook_is_one_line_with_its_traceback(printed):
    def report():
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log_broken_hook("observer <x>", "It is dropped.")

    configure_logging()
    report()
    ((level, text),) = printed()
    assert level == "ERROR"
    assert text.startswith("observer <x> raised. It is dropped. exception='Traceback")
    assert "ValueError: two" in text
    configure_logging(json_output=True)
    report()
    (found,) = printed(as_json=True)
    assert found["event"] == "log"
    assert found["exception"].endswith("ValueError: two\nlines")


def test_the_repr_says_what_the_logger_was_made_with():
    shown = repr(FlowkitLogger("nightly", level="WARN", json_output=True))
    assert shown == "<FlowkitLogger 'nightly' level=WARNING json_output=True>"


def test_the_names_of_the_package_are_those_of_the_module():
    for name in flowkit_logging.__all__:
        assert getattr(flowkit, name) is getattr(flowkit_logging, name)


def test_importing_flowkit_does_not_import_logging():
    script = "import sys, flowkit; print('logging' in sys.modules, flowkit.LogLevel.INFO, 'logging' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50)
    assert answer.stdout == "False LogLevel.INFO True\n"


# ---------------------------------------------------------------- as an observer


def feed(logger, *facts, run_id="r1"):
    for kind, *values in facts:
        logger(kind(run_id, 0.0, *values))


def test_a_logger_tells_every_kind_of_event(printed):
    feed(
        FlowkitLogger(),
        (events.RunStarted, "etl", 6),
        (events.AttemptStarted, "a", 1),
        (events.AttemptFailed, "a", 1, 3, ERROR, 2.0),
        (events.AttemptStarted, "a", 2),
        (events.TaskSucceeded, "a", "", "value", 2, 2.5),
        (events.TaskRestored, "b", "restored from run 17", "value"),
        (events.TaskSkipped, "c", "when() was false"),
        (events.AttemptFailed, "d", 1, 1, ERROR, None),
        (events.TaskFailed, "d", "ValueError: text", ERROR, 1, 0.1),
        (events.TaskUpstreamFailed, "e", "upstream 'd' failed"),
        (events.TaskCancelled, "f", "task 'd' failed"),
        (events.RunFinished, "etl", "failed", 6, 10.5),
    )
    assert printed() == [
        ("INFO", "DAG started: etl (6 tasks)"),
        ("INFO", "Task started: a"),
        ("WARN", "Task retry: a (attempt 2/3, delay: 2.00s)"),
        ("SUCCESS", "Task succeeded: a (2.50s)"),
        ("INFO", "DAG progress: etl (1/6 - 16.7%)"),
        ("SUCCESS", "Task succeeded: b reason='restored from run 17'"),
        ("INFO", "DAG progress: etl (2/6 - 33.3%)"),
        ("SYSTEM", "Task skipped: c (when() was false)"),
        ("INFO", "DAG progress: etl (3/6 - 50.0%)"),
        ("ERROR", "Task failed: d - ValueError: text"),
        ("INFO", "DAG progress: etl (4/6 - 66.7%)"),
        ("WARN", "Task not run: e (upstream 'd' failed)"),
        ("INFO", "DAG progress: etl (5/6 - 83.3%)"),
        ("WARN", "Task cancelled: f (task 'd' failed)"),
        ("INFO", "DAG progress: etl (6/6 - 100.0%)"),
        ("ERROR", "DAG failed: etl (6 tasks) (duration: 10.50s)"),
    ]


@pytest.mark.parametrize(
    ("state", "level", "verb"),
    [("succeeded", "INFO", "completed"), ("failed", "ERROR", "failed"), ("cancelled", "WARN", "cancelled")],
)
def test_the_end_of_a_run_says_how_it_ended(printed, state, level, verb):
    feed(FlowkitLogger(), (events.RunFinished, "etl", state, 2, 1.0))
    assert printed() == [(level, f"DAG {verb}: etl (2 tasks) (duration: 1.00s)")]
    feed(FlowkitLogger(json_output=True), (events.RunFinished, "etl", state, 2, 1.0))
    (found,) = printed(as_json=True)
    assert (found["event"], found["state"], found["run_id"]) == ("dag_complete", state, "r1")


def test_interleaved_runs_are_counted_apart_and_forgotten(printed):
    logger = FlowkitLogger(json_output=True)
    for run_id in ("r1", "r2"):
        feed(logger, (events.RunStarted, "etl", 2), run_id=run_id)
    for run_id, name in [("r1", "a"), ("r2", "a"), ("r2", "b"), ("r1", "b")]:
        feed(logger, (events.TaskSucceeded, name, "", None, 1, 0.0), run_id=run_id)
    lines = [line for line in printed(as_json=True) if line["event"] == "dag_progress"]
    assert [(line["run_id"], line["completed"]) for line in lines] == [("r1", 1), ("r2", 1), ("r2", 2), ("r1", 2)]
    assert set(logger._runs) == {"r1", "r2"}
    for run_id in ("r1", "r2"):
        feed(logger, (events.RunFinished, "etl", "succeeded", 2, 1.0), run_id=run_id)
    assert logger._runs == {}


def test_a_task_of_a_run_whose_start_was_not_seen_has_no_progress(printed):
    feed(FlowkitLogger(), (events.TaskSkipped, "a", "no rows"))
    assert printed() == [("SYSTEM", "Task skipped: a (no rows)")]


# ---------------------------------------------------------------- with real runs


def make_dag():
    """extract >> load"""
    with DAG("etl") as dag:

        @task
        def extract():
            flowkit.current_context().log.debug("reading")
            return [1]

        @task
        def load(rows):
            return rows

        _ = extract >> load
    return dag


def test_flowkit_prints_nothing_until_configured(capsys):
    def broken(event):
        raise ValueError(event)

    make_dag().run(observers=[broken])
    get_logger()
    make_dag().run(observers=[broken])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("executor", ["thread", "sequential"])
def test_a_dag_defined_before_configuring_is_logged(printed, executor):
    dag = make_dag()
    logger = configure_logging(level=LogLevel.DEBUG, json_output=True)
    result = dag.run(executor=executor)
    lines = printed(as_json=True)
    assert [(line["event"], line["message"].partition(" (")[0]) for line in lines] == [
        ("dag_start", "DAG started: etl"),
        ("task_start", "Task started: extract"),
        ("log", "reading"),
        ("task_success", "Task succeeded: extract"),
        ("dag_progress", "DAG progress: etl"),
        ("task_start", "Task started: load"),
        ("task_success", "Task succeeded: load"),
        ("dag_progress", "DAG progress: etl"),
        ("dag_complete", "DAG completed: etl"),
    ]
    assert {line["run_id"] for line in lines} == {result.run_id}
    assert (lines[2]["level"], lines[2]["logger"], lines[2]["task_name"]) == ("DEBUG", "flowkit.task", "extract")
    assert logger._runs == {}


def test_many_runs_at_once_give_whole_lines_and_right_counts(printed):
    dag, logger = make_dag(), configure_logging(json_output=True)
    threads = [threading.Thread(target=dag.run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = {}
    for line in printed(as_json=True):
        if line["event"] == "dag_progress":
            counts.setdefault(line["run_id"], []).append(line["completed"])
    assert list(counts.values()) == [[1, 2]] * 8
    assert logger._runs == {}
