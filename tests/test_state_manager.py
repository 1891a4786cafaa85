"""StateManager: values by key with a time to live, in memory and in one JSON file."""

import dataclasses
import json
import math
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flowkit import (
    OptionError,
    SQLiteStateStore,
    StateError,
    StateManager,
    StateSerializationError,
    StateVersionError,
    StateWriteError,
)

START = 1_700_000_000.0
LARGE = "x" * 70_000
"""One value of it, and the file is no longer written whole for each change."""


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path):
    """Return what makes a manager with some options, in memory or in a file."""
    path = None if request.param == "memory" else tmp_path / "state.json"
    return lambda **options: StateManager(path, **options)


@pytest.fixture
def state(make):
    return make()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


class Clock:
    """What ``time.time()`` gives; it stands still."""

    now = START

    def __call__(self):
        return self.now


@pytest.fixture
def clock(mocker):
    stopped = Clock()
    mocker.patch("time.time", stopped)
    return stopped


@dataclasses.dataclass
class Unregistered:
    x: int


# ---------------------------------------------------------------- making one


def test_without_a_path_it_is_in_memory():
    assert StateManager().storage_path is None


@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_is_a_path(kind, path):
    assert StateManager(kind(path)).storage_path == path
    assert isinstance(StateManager(kind(path)).storage_path, Path)


def test_path_and_default_ttl_can_be_given_by_name(path):
    state = StateManager(storage_path=path, default_ttl=5)
    assert (state.storage_path, state.default_ttl) == (path, 5)


def test_path_and_default_ttl_can_be_given_by_position(path):
    state = StateManager(path, 5)
    assert (state.storage_path, state.default_ttl) == (path, 5)


def test_there_is_no_default_ttl_unless_it_is_given():
    assert StateManager().default_ttl is None


def test_a_relative_path_is_resolved_once(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    state = StateManager("state.json")
    (path.parent / "elsewhere").mkdir()
    monkeypatch.chdir(path.parent / "elsewhere")
    state.set("a", 1)
    assert state.storage_path == path
    assert path.exists()


@pytest.mark.parametrize("bad", ["", 3, b"", "a\0b", ["state.json"]], ids=repr)
def test_what_is_no_path_is_refused(bad):
    with pytest.raises(OptionError, match="StateManager: the path"):
        StateManager(bad)


@pytest.mark.parametrize("bad", ["5", True, math.nan, [1]], ids=repr)
def test_a_default_ttl_that_is_no_number_is_refused(bad):
    with pytest.raises(OptionError, match=r"default_ttl=.* must be a number of seconds, or None"):
        StateManager(default_ttl=bad)


# ---------------------------------------------------------------- set, get, has, delete, clear, get_all


def test_get_gives_what_was_set(state):
    state.set("a", [1, 2])
    assert state.get("a") == [1, 2]


def test_set_replaces(state):
    state.set("a", 1)
    state.set("a", 2)
    assert state.get("a") == 2


def test_set_takes_its_arguments_by_position(state, clock):
    state.set("a", 1, 5, {"by": "me"})
    assert state.get_metadata("a") == {"by": "me", "timestamp": START, "ttl": 5, "age": 0}


def test_set_takes_its_arguments_by_name(state, clock):
    state.set(key="a", value=1, ttl=5, metadata={"by": "me"})
    assert state.get_metadata("a") == {"by": "me", "timestamp": START, "ttl": 5, "age": 0}


def test_get_of_what_is_not_there_is_none(state):
    assert state.get("a") is None


def test_get_of_what_is_not_there_is_the_default(state):
    assert state.get("a", default=7) == 7
    assert state.get("a", 8) == 8


def test_get_of_a_stored_none_is_none_whatever_the_default(state):
    state.set("a", None)
    assert state.get("a", default=7) is None


def test_has_says_whether_there_is_a_value(state):
    state.set("a", 1)
    assert state.has("a") is True
    assert state.has("b") is False


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}], ids=repr)
def test_has_is_true_for_values_that_are_not(state, value):
    state.set("a", value)
    assert state.has("a")
    assert state.get("a", default="other") == value


def test_delete_forgets(state):
    state.set("a", 1)
    state.delete("a")
    assert not state.has("a")


def test_delete_leaves_the_others(state):
    state.set("a", 1)
    state.set("b", 2)
    state.delete("a")
    assert state.get_all() == {"b": 2}


def test_delete_says_whether_it_was_there(state):
    state.set("a", None)
    assert state.delete("a") is True
    assert state.delete("a") is False


def test_delete_of_what_never_was_is_false(state):
    assert state.delete("a") is False


def test_clear_forgets_everything(state):
    state.set("a", 1)
    state.set("b", 2)
    state.clear()
    assert state.get_all() == {}


def test_clear_of_nothing_is_fine(state):
    state.clear()
    assert state.get_all() == {}


def test_values_can_be_set_after_clear(state):
    state.set("a", 1)
    state.clear()
    state.set("a", 2)
    assert state.get_all() == {"a": 2}


def test_get_all_gives_every_value_by_its_key(state):
    state.set("a", 1)
    state.set("b", None)
    assert state.get_all() == {"a": 1, "b": None}


def test_get_all_of_nothing_is_empty(state):
    assert state.get_all() == {}


def test_get_all_gives_a_dict_of_ones_own(state):
    state.set("a", 1)
    state.get_all()["b"] = 2
    assert state.get_all() == {"a": 1}


def test_in_memory_a_value_is_kept_as_it_is():
    value, state = [object()], StateManager()
    state.set("a", value)
    assert state.get("a") is value


def test_from_a_file_comes_a_copy(path):
    value, state = [1], StateManager(path)
    state.set("a", value)
    value.append(2)
    state.get("a").append(3)
    assert state.get("a") == [1]


# ---------------------------------------------------------------- keys


def test_the_empty_string_is_a_key(state):
    state.set("", 1)
    assert state.get("") == 1
    assert state.has("")
    assert state.get_all() == {"": 1}
    assert state.delete("")


@pytest.mark.parametrize(
    "key", [" ", "a/b", "$tuple", "crc", '"', "\\", "\n", "\0", "é", "💥", "\ud800", "\u2028", "k" * 10_000, "cache"],
    ids=ascii,
)  # fmt: skip
def test_any_string_is_a_key(make, key):
    make().set(key, 1)
    state = make()
    state.set(key, 2)
    assert state.get(key) == 2
    assert state.get_all() == {key: 2}
    assert state.delete(key) is True


@pytest.mark.parametrize("method", ["set", "get", "has", "delete", "get_metadata"])
@pytest.mark.parametrize("bad", [1, None, b"a", ("a",)], ids=repr)
def test_what_is_no_string_is_no_key(state, method, bad):
    with pytest.raises(OptionError, match=r"key .* must be a string, not "):
        getattr(state, method)(bad, *(["value"] if method == "set" else []))


# ---------------------------------------------------------------- metadata


def test_metadata_has_timestamp_ttl_and_age(state, clock):
    state.set("a", 1, ttl=60)
    clock.now += 7
    assert state.get_metadata("a") == {"timestamp": START, "ttl": 60, "age": 7}


def test_metadata_has_what_was_set_with_it(state):
    state.set("a", 1, metadata={"source": "api", "rows": (1, 2)})
    found = state.get_metadata("a")
    assert (found["source"], found["rows"]) == ("api", (1, 2))


@pytest.mark.parametrize("name", ["timestamp", "ttl", "age"])
def test_the_real_timestamp_ttl_and_age_win(state, clock, name):
    state.set("a", 1, ttl=60, metadata={name: "mine"})
    assert state.get_metadata("a") == {"timestamp": START, "ttl": 60, "age": 0}


def test_metadata_of_what_is_not_there_is_none(state):
    assert state.get_metadata("a") is None


def test_metadata_without_a_ttl_has_the_ttl_none(state):
    state.set("a", 1)
    assert state.get_metadata("a")["ttl"] is None


def test_metadata_has_the_default_ttl(make):
    state = make(default_ttl=30)
    state.set("a", 1)
    assert state.get_metadata("a")["ttl"] == 30


def test_metadata_is_a_dict_of_ones_own(state):
    mine = {"by": "me"}
    state.set("a", 1, metadata=mine)
    mine["by"] = "you"
    state.get_metadata("a")["by"] = "them"
    assert state.get_metadata("a")["by"] == "me"


def test_set_replaces_the_metadata_too(state):
    state.set("a", 1, metadata={"by": "me"})
    state.set("a", 1)
    assert "by" not in state.get_metadata("a")


@pytest.mark.parametrize("bad", [5, "text", [1]], ids=repr)
def test_metadata_that_is_no_mapping_is_refused(state, bad):
    with pytest.raises(OptionError, match=r"metadata=.* must be a mapping"):
        state.set("a", 1, metadata=bad)
    assert not state.has("a")


# ---------------------------------------------------------------- time to live


def test_an_entry_is_valid_while_its_age_is_within_its_ttl(state, clock):
    state.set("a", 1, ttl=10)
    clock.now = START + 10
    assert state.get("a") == 1


def test_an_entry_is_not_valid_when_its_age_is_beyond_its_ttl(state, clock):
    state.set("a", 1, ttl=10)
    clock.now = math.nextafter(START + 10, math.inf)
    assert not state.has("a")


def test_a_ttl_may_be_a_fraction(state, clock):
    state.set("a", 1, ttl=0.5)
    clock.now = START + 0.5
    assert state.has("a")
    clock.now = START + 0.75
    assert not state.has("a")


def test_a_ttl_of_zero_holds_until_the_clocks_next_tick(state, clock):
    state.set("a", 1, ttl=0)
    assert state.has("a")
    clock.now = math.nextafter(START, math.inf)
    assert not state.has("a")


def test_a_negative_ttl_expires_at_once(state, clock):
    state.set("a", 1, ttl=-1)
    assert not state.has("a")


def test_a_negative_ttl_has_expired_even_if_the_clock_steps_back(state, clock):
    state.set("a", 1, ttl=-1)
    clock.now -= 3600
    assert not state.has("a")


def test_without_a_ttl_an_entry_is_valid_for_ever(state, clock):
    state.set("a", 1)
    clock.now += 1e9
    assert state.has("a")


def test_the_default_ttl_is_that_of_entries_without_one(make, clock):
    state = make(default_ttl=10)
    state.set("a", 1)
    clock.now += 11
    assert not state.has("a")


@pytest.mark.parametrize("ttl", [20, 3, 0, -1])
def test_a_ttl_overrides_the_default_ttl(make, clock, ttl):
    state = make(default_ttl=10)
    state.set("a", 1, ttl=ttl)
    assert state.has("a") == (ttl >= 0)
    clock.now += 15
    assert state.has("a") == (ttl == 20)


def test_an_endless_ttl_overrides_the_default_ttl(make, clock):
    state = make(default_ttl=10)
    state.set("a", 1, ttl=math.inf)
    clock.now += 1e9
    assert state.has("a")


def test_an_endless_default_ttl_is_none(make, clock):
    state = make(default_ttl=math.inf)
    state.set("a", 1)
    clock.now += 1e9
    assert state.has("a")


def test_set_begins_the_time_anew(state, clock):
    state.set("a", 1, ttl=10)
    clock.now += 8
    state.set("a", 2, ttl=10)
    clock.now += 8
    assert state.get("a") == 2


@pytest.mark.parametrize("bad", ["5", True, math.nan, [1]], ids=repr)
def test_a_ttl_that_is_no_number_is_refused(state, bad):
    with pytest.raises(OptionError, match=r"ttl=.* must be a number of seconds, or None"):
        state.set("a", 1, ttl=bad)
    assert not state.has("a")


@pytest.fixture
def expired(state, clock):
    """A state in which the entry "old" has expired and "new" has not."""
    state.set("old", 1, ttl=10)
    state.set("new", 2, ttl=100)
    clock.now += 50
    return state


def test_of_what_has_expired_get_gives_the_default(expired):
    assert expired.get("old", default="none") == "none"


def test_of_what_has_expired_get_without_a_default_gives_none(expired):
    assert expired.get("old") is None


def test_what_has_expired_is_not_there(expired):
    assert expired.has("old") is False


def test_what_has_expired_is_not_in_get_all(expired):
    assert expired.get_all() == {"new": 2}


def test_what_has_expired_has_no_metadata(expired):
    assert expired.get_metadata("old") is None


def test_what_has_expired_can_be_set_again(expired):
    expired.set("old", 3)
    assert expired.get("old") == 3


def test_invalidate_expired_gives_the_keys(expired):
    assert expired.invalidate_expired() == ["old"]


def test_invalidate_expired_forgets_what_has_expired(expired):
    expired.invalidate_expired()
    assert expired.invalidate_expired() == []
    assert expired.delete("old") is False


def test_invalidate_expired_leaves_what_has_not(expired):
    expired.set("for ever", 3)
    expired.invalidate_expired()
    assert expired.get_all() == {"new": 2, "for ever": 3}


def test_invalidate_expired_gives_every_key(state, clock):
    for number in range(20):
        state.set(f"k{number}", number, ttl=number)
    clock.now += 9.5
    assert sorted(state.invalidate_expired()) == sorted(f"k{number}" for number in range(10))
    assert set(state.get_all()) == {f"k{number}" for number in range(10, 20)}


def test_invalidate_expired_of_nothing_is_an_empty_list(state):
    assert state.invalidate_expired() == []


def test_the_time_to_live_goes_on_in_another_manager(path, clock):
    StateManager(path).set("a", 1, ttl=10)
    clock.now += 10
    assert StateManager(path).has("a")
    clock.now += 1
    assert not StateManager(path).has("a")


# ---------------------------------------------------------------- repr


def test_repr_shows_the_name_of_the_file(path):
    assert "state.json" in repr(StateManager(path))


def test_repr_shows_no_folder(path):
    assert str(path.parent) not in repr(StateManager(path))


def test_repr_shows_that_it_is_in_memory():
    assert "in-memory" in repr(StateManager())


def test_repr_shows_how_many_items_are_cached(state):
    assert "cached_items=0" in repr(state)
    state.set("a", 1)
    state.set("b", 2)
    assert "cached_items=2" in repr(state)


def test_repr_makes_no_file(path):
    repr(StateManager(path))
    assert not path.exists()


def test_repr_needs_no_class_of_what_is_stored(path):
    state = StateManager(path)
    state.trust(__name__)
    state.set("a", Unregistered(1))
    assert "cached_items=1" in repr(StateManager(path))


# ---------------------------------------------------------------- the file


def test_no_file_is_made_before_the_first_write(path):
    state = StateManager(path)
    state.get("a")
    state.has("a")
    state.get_all()
    state.get_metadata("a")
    state.delete("a")
    state.clear()
    state.invalidate_expired()
    assert list(path.parent.iterdir()) == []


def test_no_folder_is_made_before_the_first_write(tmp_path):
    StateManager(tmp_path / "a" / "state.json").get("a")
    assert not (tmp_path / "a").exists()


def test_the_first_write_makes_the_folders(tmp_path):
    path = tmp_path / "a" / "b" / "state.json"
    StateManager(path).set("a", 1)
    assert StateManager(path).get("a") == 1


def test_after_a_set_there_is_one_file_of_good_json(path):
    StateManager(path).set("a", 1)
    assert os.listdir(path.parent) == ["state.json"]
    json.loads(path.read_text("utf-8"))


def test_the_file_has_a_version(path):
    StateManager(path).set("a", 1)
    assert "version" in json.loads(path.read_text("utf-8"))


def test_the_file_says_in_iso_when_it_was_saved(path):
    StateManager(path).set("a", 1)
    saved_at = datetime.fromisoformat(json.loads(path.read_text("utf-8"))["saved_at"])
    assert abs(datetime.now(UTC) - saved_at) < timedelta(minutes=1)


def test_the_file_has_value_timestamp_ttl_and_metadata_of_each_key(path, clock):
    state = StateManager(path)
    state.set("a", {"x": [1, None]}, ttl=60, metadata={"by": "me"})
    state.set("b", 2.5)
    cache = json.loads(path.read_text("utf-8"))["cache"]
    names = ("value", "timestamp", "ttl", "metadata")
    assert {key: tuple(entry[name] for name in names) for key, entry in cache.items()} == {
        "a": ({"x": [1, None]}, START, 60, {"by": "me"}),
        "b": (2.5, START, None, {}),
    }


def test_a_file_made_by_hand_can_be_read(path):
    entry = {"value": [1], "timestamp": START, "ttl": None, "metadata": {}}
    path.write_text(json.dumps({"version": 1, "saved_at": "2026-01-01T00:00:00", "cache": {"a": entry}}), "utf-8")
    assert StateManager(path).get("a") == [1]


def test_what_has_expired_goes_from_the_file_with_invalidate_expired(path, clock):
    state = StateManager(path)
    state.set("old", 1, ttl=10)
    clock.now += 50
    assert "old" in json.loads(path.read_text("utf-8"))["cache"]
    state.invalidate_expired()
    assert "old" not in json.loads(path.read_text("utf-8"))["cache"]


# ---------------------------------------------------------------- more than one manager of a file


def test_a_second_manager_sees_the_values(path):
    StateManager(path).set("a", 1, metadata={"by": "me"})
    second = StateManager(path)
    assert second.get("a") == 1
    assert second.get_metadata("a")["by"] == "me"


def test_a_second_manager_sees_what_is_set_after_it_was_made(path):
    first, second = StateManager(path), StateManager(path)
    first.set("a", 1)
    assert second.get("a") == 1
    first.set("a", 2)
    assert second.get("a") == 2


def test_a_delete_persists(path):
    state = StateManager(path)
    state.set("a", 1)
    state.set("b", 2)
    state.delete("a")
    assert StateManager(path).get_all() == {"b": 2}


def test_a_delete_is_seen_by_a_second_manager(path):
    first, second = StateManager(path), StateManager(path)
    first.set("a", 1)
    assert second.delete("a") is True
    assert not first.has("a")


def test_clear_persists(path):
    state = StateManager(path)
    state.set("a", 1)
    state.clear()
    assert StateManager(path).get_all() == {}


def test_two_managers_lose_nothing_of_each_other(path):
    first, second = StateManager(path), StateManager(path)
    for number in range(20):
        (first, second)[number % 2].set(f"k{number}", number)
    assert first.get_all() == second.get_all() == {f"k{number}": number for number in range(20)}


@pytest.mark.parametrize("change", ["set", "delete", "clear"])
def test_a_change_of_a_large_file_is_seen_by_a_second_manager(path, change):
    first, second = StateManager(path), StateManager(path)
    first.set("large", LARGE)
    first.set("a", 1)
    assert second.get_all() == {"large": LARGE, "a": 1}
    if change == "set":
        first.set("a", 2)
    elif change == "delete":
        first.delete("a")
    else:
        first.clear()
    expected = {"set": {"large": LARGE, "a": 2}, "delete": {"large": LARGE}, "clear": {}}[change]
    assert second.get_all() == StateManager(path).get_all() == expected


def test_threads_lose_nothing_of_each_other(make):
    state, begin = make(), threading.Barrier(8)

    def work(number):
        begin.wait(5)
        for turn in range(10):
            state.set(f"{number}.{turn}", turn)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert state.get_all() == {f"{number}.{turn}": turn for number in range(8) for turn in range(10)}


def test_processes_lose_nothing_of_each_other(path, script):
    code = """
        import sys
        from flowkit import StateManager
        state = StateManager({path!r})
        for turn in range(25):
            state.set(f"{number}.{{turn}}", turn)
        print("done")
    """
    running = [script(code.format(path=str(path), number=number), limit=30) for number in range(3)]
    assert [(each.finish().returncode, each.err) for each in running] == [(0, "")] * 3
    assert StateManager(path).get_all() == {f"{number}.{turn}": turn for number in range(3) for turn in range(25)}


# ---------------------------------------------------------------- what comes back


def told(value):
    """Return what two values differ in if they are not the same; as text 0.0 and -0.0, or 1 and True, do."""
    return type(value), value, hex(value) if type(value) is int else str(value)


@pytest.mark.parametrize(
    "value",
    [(1, (2,)), {1, 2}, frozenset({"a"}), b"\x00\xff", {1: "a", None: "b"}, {"$tuple": [1]}, -0.0, math.inf, 10**5000,
     datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), timedelta(1, 2, 3), Path("a/b"), 1 + 2j, "\ud800", {"a": [(1,)]}],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_come_back_with_their_types(make, value):
    make().set("a", value, metadata={"also": value})
    state = make()
    if state.storage_path is None:
        state.set("a", value, metadata={"also": value})
    found = [state.get("a"), state.get_all()["a"], state.get_metadata("a")["also"]]
    assert [told(each) for each in found] == [told(value)] * 3


def test_what_a_file_cannot_keep_is_refused_by_name(path):
    with pytest.raises(StateSerializationError, match=r"\['rows'\]\[1\].*lock"):
        StateManager(path).set("a", {"rows": [1, threading.Lock()]})


def test_what_is_refused_leaves_the_value_before(path):
    state = StateManager(path)
    state.set("a", 1)
    with pytest.raises(StateSerializationError):
        state.set("a", threading.Lock())
    with pytest.raises(StateSerializationError):
        state.set("a", 2, metadata={"lock": threading.Lock()})
    assert state.get("a") == StateManager(path).get("a") == 1


def test_a_class_is_refused_unless_its_module_is_trusted(path):
    state = StateManager(path)
    with pytest.raises(StateSerializationError, match="Unregistered of test_state_manager is not registered"):
        state.set("a", Unregistered(1))
    state.trust(__name__)
    state.set("a", Unregistered(1))
    assert state.get("a") == Unregistered(1)


def test_what_another_manager_cannot_read_hides_nothing_else(path, clock):
    """Somebody who trusts fewer classes still finds the rest, and can throw away what has expired."""
    state = StateManager(path)
    state.trust(__name__)
    state.set("strange", Unregistered(1), ttl=10)
    state.set("a", 1)
    second = StateManager(path)
    assert second.get("a") == 1
    clock.now += 50
    assert second.invalidate_expired() == ["strange"]


# ---------------------------------------------------------------- damage


@pytest.fixture
def intact(path):
    """The bytes of a file with the entries a, b and c."""
    state = StateManager(path)
    for key in "abc":
        state.set(key, f"value of {key}")
    return path.read_bytes()


def damaged(path, data, kept):
    """Give *path* the content *data*, which must not keep a manager from being made; return the manager."""
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning) as warned:
        state = StateManager(path)
    (warning,) = warned
    text = str(warning.message)
    asides = [name for name in os.listdir(path.parent) if name not in (path.name, f"{path.name}.lock")]
    assert [(path.parent / name).read_bytes() for name in asides] == [data]
    assert f"{path} is damaged" in text
    assert asides[0] in text
    assert state.get_all() == kept
    assert StateManager(path).get_all() == kept
    return state


VALUES = {key: f"value of {key}" for key in "abc"}


def test_a_truncated_file_keeps_what_can_be_read(path, intact):
    cut = intact.index(b'"c": {') + 10
    damaged(path, intact[:cut], {"a": "value of a", "b": "value of b"})


def test_a_flipped_byte_costs_only_its_entry(path, intact):
    damaged(path, intact.replace(b"value of b", b"value of B"), {"a": "value of a", "c": "value of c"})


def test_a_lost_line_costs_only_its_entry(path, intact):
    lines = intact.split(b"\n")
    damaged(path, b"\n".join(line for line in lines if b"value of b" not in line), {"a": VALUES["a"], "c": VALUES["c"]})


def test_of_an_empty_file_nothing_is_kept(path):
    damaged(path, b"", {})


@pytest.mark.parametrize("data", [b"{", b"not JSON", b"\x00" * 100, b"\xff\xfe\xfd", b'{"version": 1,'], ids=repr)
def test_of_garbage_nothing_is_kept(path, data):
    damaged(path, data, {})


def test_a_mended_file_can_be_written_to(path, intact):
    state = damaged(path, intact[:-5], VALUES)
    state.set("d", 4)
    assert StateManager(path).get_all() == VALUES | {"d": 4}


def test_a_file_cut_anywhere_never_keeps_a_manager_from_being_made(path, intact):
    for cut in range(0, len(intact) - 1, 7):
        for name in os.listdir(path.parent):
            (path.parent / name).unlink()
        path.write_bytes(intact[:cut])
        with pytest.warns(RuntimeWarning, match="is damaged"):
            state = StateManager(path)
        found = state.get_all()
        assert found == {key: VALUES[key] for key in found}


def test_a_damaged_file_that_a_manager_already_reads_is_mended_too(path, intact):
    state = StateManager(path)
    path.write_bytes(intact[: intact.index(b'"c": {') + 10])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert state.get_all() == {"a": "value of a", "b": "value of b"}


@pytest.mark.parametrize(
    "text", ['{"name": "package", "version": "1.2.3"}', "[1, 2]", "5", '{"version": 99, "cache": {}}', "{}"]
)
def test_another_programs_file_is_refused_and_left_alone(path, text):
    path.write_text(text, "utf-8")
    with pytest.raises(StateVersionError):
        StateManager(path)
    assert path.read_text("utf-8") == text
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_in_place_of_the_file_is_an_error_with_its_path(path):
    path.mkdir()
    with pytest.raises(StateWriteError, match=str(path)):
        StateManager(path)


def test_a_file_in_place_of_the_folder_is_an_error_with_its_path(tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    path = tmp_path / "file" / "state.json"
    with pytest.raises(StateError, match=str(path)):
        StateManager(path).set("a", 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name here")
@pytest.mark.parametrize("make", [StateManager, SQLiteStateStore])
def test_a_pipe_or_device_is_refused_and_left_alone(make, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="no regular file"):
        make(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_database_is_refused_and_left_alone(tmp_path):
    with SQLiteStateStore(tmp_path / "state.db") as store:
        store.set("k", 1)
        with pytest.raises(StateVersionError, match="no state that this store can read"):
            StateManager(tmp_path / "state.db")
        assert store.get("k") == 1


@pytest.mark.parametrize("make", [StateManager, SQLiteStateStore])
def test_runs_are_cleared_by_a_name(make, tmp_path):
    with pytest.raises(OptionError, match="must be the name of a DAG or workflow"):
        make(tmp_path / "state").clear_runs(object())


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_who_may_read_the_file_stays_as_it_was_made(tmp_path):
    state = StateManager(tmp_path / "state.json")
    state.set("k", 1)
    os.chmod(tmp_path / "state.json", 0o640)
    state.set("k", 2)
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o640
