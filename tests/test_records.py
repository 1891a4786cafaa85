"""What a damaged state file holds is believed where its checksums are right, and is never taken for something else.

The first part asks the bytes alone. The second damages real files and their journals: each value is exact then, or
missing with a warning, and the damaged file is kept.
"""

import json
import random
import warnings
import zlib
from pathlib import Path

import pytest
from disk_models import CODES, Death, DyingDisk, FailingDisk, NoSyncDisk, quick_folder, record
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowkit import StateError, StateVersionError
from flowkit.state import jsonfile, records
from flowkit.state.journal import HEADS, deletion, head_of, replay
from flowkit.state.manager import StateManager
from flowkit.state.records import CACHE, parse, read_journal, render, seal, unseal

FILE = "/somewhere/state.json"


@pytest.fixture
def tmp_path(tmp_path):
    with quick_folder(tmp_path) as folder:
        yield folder


keys = st.text(max_size=12) | st.sampled_from(['a"b', "a\\", 'x": {', "}", "},", "\n", "\u2028", "\ud800", '","crc":"'])
values = st.integers() | st.text(max_size=8) | st.none()
bodies = st.dictionaries(st.text(max_size=5), values, min_size=1, max_size=3).map(json.dumps)
names = st.just(CACHE) | st.just(HEADS) | st.tuples(st.just("runs"), keys, st.sampled_from(jsonfile.PARTS))
trees = st.dictionaries(names, st.dictionaries(keys, bodies, min_size=1, max_size=4), max_size=5)


def sealed(tree):
    """Return the sections with the keys and bodies of *tree*."""
    return {
        section: {key: seal(section, key, body) for key, body in entries.items()} for section, entries in tree.items()
    }


def flips(data, number, seed=0):
    """Yield *data* with one bit turned over, *number* times or for each bit; those of the end are among them."""
    places = list(range(len(data) * 8))
    last, others = places[-40:], places[:-40]
    for place in last + random.Random(seed).sample(others, min(number - len(last), len(others))):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        yield place, bytes(damaged)


# ---------------------------------------------------------------- entries


@settings(deadline=None)
@given(names, keys, bodies)
def test_an_entry_gives_back_its_key_and_body(section, key, body):
    entry = seal(section, key, body)
    assert b"\n" not in entry
    assert list(json.loads(b"{" + entry + b"}")) == [key]
    found = unseal(section, entry)
    assert found is not None
    assert found[0] == key
    assert json.loads(found[1]) == json.loads(body)


@settings(deadline=None)
@given(st.lists(names, min_size=2, max_size=2, unique=True), keys, bodies)
def test_an_entry_of_one_section_is_none_of_another(sections, key, body):
    assert unseal(sections[1], seal(sections[0], key, body)) is None


def test_an_entry_with_any_bit_turned_over_is_none():
    entry = seal(CACHE, "answer", '{"value":"forty-two","timestamp":1.5}')
    for _, damaged in flips(entry, len(entry) * 8):
        assert unseal(CACHE, damaged) is None


def test_a_part_of_an_entry_is_none():
    entry = seal(CACHE, "answer", '{"value":"forty-two","timestamp":1.5}')
    for end in range(len(entry)):
        assert unseal(CACHE, entry[:end]) is None
        assert unseal(CACHE, entry[end + 1 :]) is None


# ---------------------------------------------------------------- snapshots


@settings(max_examples=50, deadline=None)
@given(trees)
@example({("runs", '}\n"x": {', "tasks"): {'"': '{"a": 1}'}, CACHE: {"}": '{"}": "{"}'}})
def test_a_snapshot_is_json_and_gives_back_its_sections(tree):
    sections = sealed(tree)
    data = render(sections)
    read = json.loads(data)
    assert read["version"] == records.VERSION
    for section, entries in tree.items():
        branch = read
        for name in section:
            branch = branch[name]
        assert {key: body | {"crc": ""} for key, body in branch.items()} == {
            key: json.loads(body) | {"crc": ""} for key, body in entries.items()
        }
    found = parse(data, FILE)
    assert (found.sections, found.damage) == (sections, "")


def test_no_two_snapshots_begin_alike():
    heads = {render({}).partition(b"\n")[0] for _ in range(20)}
    assert len(heads) == 20


@settings(max_examples=50, deadline=None)
@given(trees, st.data())
def test_what_stands_in_a_damaged_snapshot_is_what_was_written(tree, data):
    """Some bytes are overwritten, taken out or doubled."""
    sections = sealed(tree)
    damaged = render(sections)
    start = data.draw(st.integers(0, len(damaged) - 1))
    end = data.draw(st.integers(start, min(len(damaged), start + 40)))
    middle = data.draw(st.sampled_from([b"", b"\0" * (end - start), damaged[start:end] * 2]))
    damaged = damaged[:start] + middle + damaged[end:]
    found = parse(damaged, FILE)
    for section, entries in found.sections.items():
        assert entries.items() <= sections[section].items()
    assert found.damage or found.sections == sections


ENTRY = b'"k": {"a":1,"crc":"00000000"}\n'


@pytest.mark.parametrize("data", [
    b"x", b"\0" * 4096, b"\xff\xfe", b"SQLite format 3\0" + bytes(100), b"PK\3\4" + bytes(50), b"{", b'{"version": 1,',
    b"}" * 100, b'"a": {\n' * 100, b"\n" * 100, b"[" * 200_000, b"[" * 200_000 + b'": {\n', b"[1]: {\n" + ENTRY,
    b"{}: {\n" + ENTRY, b'\xff": {\n', b'"a": {\n' + ENTRY, b'\n"crc":"00000000"}\n',
    b'{"version": 2\n"crc":"00000000"}', b'nothing\n"crc":"%08x"}\n' % zlib.crc32(b"nothing"),
], ids=range(19))  # fmt: skip
def test_garbage_holds_nothing(data):
    """It is set aside, or refused by name; nothing else happens."""
    try:
        found = parse(data, FILE)
    except StateVersionError:
        return
    assert found.damage
    assert not found.sections


PARTS = [
    b'"a": {', b"}", b"},", b"\n", b'"}', b'"crc":"00000000"}', b"[1]", b"{", b": {", b"\xff", b"\0", b'"version": 1',
    b'"cache": {}', b"null", ENTRY,
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12))
def test_garbage_that_looks_like_a_snapshot_holds_nothing(parts):
    try:
        found = parse(b"".join(parts), FILE)
    except StateVersionError:
        return
    assert not found.sections.get(CACHE)


@pytest.mark.parametrize("data", [
    b"[]", b"3", b"null", b'"text"', b"{}", b'{"name": "package", "version": "1.0.0"}', b'{"version": 1}',
    b'{"version": 1, "cache": []}', b'{"version": 2, "cache": {}}', b'{"version": "2.0", "cache": {}}',
    b'{"cache": {}}', b'{"version": null, "cache": {}}',
    b'{"version": 1, "cache": {"lint": 5}}',
    b'{"version": 1, "cache": {"lint": {"hash": "x"}}}',
])  # fmt: skip
def test_the_json_of_another_program_is_refused_and_not_touched(tmp_path, data):
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(StateVersionError, match=r"state\.json") as caught:
        StateManager(path)
    assert caught.value.supported == "1"
    assert path.read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("seals", [True, False])
def test_a_snapshot_of_a_newer_version_is_refused_and_not_touched(tmp_path, seals):
    """Its checksum may be another one, too."""
    path = tmp_path / "state.json"
    data = render(sealed({CACHE: {"k": '{"value":1,"timestamp":1.0,"ttl":null,"metadata":{}}'}}))
    data = data.replace(b'"version": 1', b'"version": 2')
    if seals:
        text = data[: data.rindex(b"\n", 0, -1)]
        data = b'%b\n"crc":"%08x"}\n' % (text, zlib.crc32(text))
    path.write_bytes(data)
    with pytest.raises(StateVersionError) as caught:
        StateManager(path)
    assert (caught.value.found, caught.value.supported) == ("2", "1")
    assert path.read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("indent", [None, 2])
def test_a_cache_written_by_hand_is_read_and_can_be_used_like_any_other(tmp_path, indent):
    path = tmp_path / "state.json"
    cache = {f"k{number}": {"value": number, "timestamp": 1000.0} for number in range(20)}
    path.write_text(json.dumps({"version": 1, "cache": cache}, indent=indent))
    manager = StateManager(path)
    assert manager.get_all() == {f"k{number}": number for number in range(20)}
    assert manager.read_scope("etl").tasks == {}
    manager.set("k0", "changed")
    manager.open_scope("etl", "run").close("succeeded", 1.0, 1.0)
    assert StateManager(path).get_all() == {f"k{number}": number for number in range(20)} | {"k0": "changed"}


def test_a_state_that_was_formatted_anew_is_never_read_as_one_without_runs(tmp_path):
    """An editor has written the same JSON with other spaces: everything is there, or there is a warning."""
    path = tmp_path / "state.json"
    reference(path)
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = everything(StateManager(path, _disk=NoSyncDisk()))
    assert told or found == EVERYTHING


# ---------------------------------------------------------------- journals


def test_a_journal_gives_back_its_lines_and_none_for_a_damaged_one():
    sections = [CACHE, ("runs", "etl", "tasks")]
    entries = [seal(sections[number % 2], f"k{number}", f'{{"value":{number}}}') for number in range(4)]
    lines = [records.journal_line(entry) for entry in entries]
    expected = [(sections[number % 2], f"k{number}", entries[number]) for number in range(4)]
    assert list(read_journal(b"".join(lines), sections)) == expected
    assert list(read_journal(b"".join(lines)[:-1], sections)) == expected[:3]
    assert list(read_journal(b"".join([lines[0], b"?\n", *lines[1:]]), sections)) == [expected[0], None, *expected[1:]]
    assert list(read_journal(b"".join(lines), sections[:1])) == [expected[0], None, expected[2], None]


def test_a_damaged_line_of_a_journal_takes_older_values_with_it():
    """It may have held a newer value of any of them."""
    entry = {key: seal(CACHE, key, f'{{"value":"{key}"}}') for key in "abcd"}
    lines = [head_of("", "0" * 12), entry["b"], b"damaged", entry["c"]]
    sections = {CACHE: {"a": entry["a"], "d": entry["d"]}}
    told = replay(b"".join(map(records.journal_line, lines)), "", [CACHE], sections, replaces=True)
    assert "1 of its lines" in told
    assert sections == {CACHE: {"c": entry["c"]}}


def test_a_journal_takes_keys_away_as_well():
    entry = {key: seal(CACHE, key, f'{{"value":"{key}"}}') for key in "ab"}
    lines = [head_of("", "0" * 12), deletion(CACHE, "a"), entry["b"], deletion(CACHE, "b"), deletion(CACHE, "never")]
    sections = {CACHE: {"a": entry["a"]}}
    assert not replay(b"".join(map(records.journal_line, lines)), "", [CACHE], sections, replaces=True)
    assert sections == {CACHE: {}}


# ---------------------------------------------------------------- damaged files

some_and_all = pytest.mark.parametrize("most", [300, pytest.param(10**9, marks=pytest.mark.soak)])

VALUES = {"a": [1, 2.5, None], "b": "text", "c": ("tuple", b"bytes"), "é": {"x": {1, 2}}, "d": 10**30, "e": ""}
TASKS = {"fetch": 1, "load": 2, "end": 5}
EVERYTHING = (VALUES, {**TASKS, ("each", 0): 3, ("each", 1): 4}, {"c1", "c2"})
"""The cache, the numbers of the records of tasks and items, and the codes."""


def reference(path):
    """Make a state file at *path* that holds EVERYTHING; return its bytes."""
    manager = StateManager(path, _disk=NoSyncDisk())
    for key, value in VALUES.items():
        manager.set(key, value)
    fill(manager).close("succeeded", 1.0, 1.0)
    return Path(path).read_bytes()


def fill(manager):
    """Return a scope that has the records of EVERYTHING."""
    scope = manager.open_scope("etl", "run")
    scope.add_code("c1", CODES["c1"])
    scope.append("fetch", record(1))
    scope.append("load", record(2))
    scope.add_code("c2", CODES["c2"])
    scope.append("each", record(3, "c2"), 0)
    scope.append("each", record(4, "c2"), 1)
    scope.append("end", record(5))
    return scope


def everything(manager):
    """Return what there is; each record must be exact."""
    view = manager.read_scope("etl")
    found = dict(view.tasks)
    found.update({("each", item): one for item, one in view.items.get("each", {}).items()})
    for one in found.values():
        assert one == record(one.number, one.code)
    assert all(CODES[code] == parts for code, parts in view.codes.items())
    return manager.get_all(), {name: one.number for name, one in found.items()}, set(view.codes)


def read_damaged(folder, damaged, expected=EVERYTHING):
    """Lay out the files *damaged*, by name, in *folder*, and read them.

    What is found must be part of *expected*, or there is a StateError. If anything is missing there is a warning, the
    damaged files are kept, and a second look finds the same without a warning.

    Returns:
        What is found, None after an error; and whether there was a warning.
    """
    folder.mkdir()
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    path = folder / "state.json"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = everything(StateManager(path, _disk=NoSyncDisk()))
        except StateError:
            assert {file.name: file.read_bytes() for file in folder.iterdir()} == damaged
            return None, True
    for part, whole in zip(found[:2], expected[:2], strict=True):
        for key, value in part.items():
            assert key in whole
            assert (value, type(value)) == (whole[key], type(whole[key]))
    assert found[2] <= expected[2]
    assert all(warning.category is RuntimeWarning for warning in told)
    assert told or found == expected, "something is missing without a warning"
    return found, bool(told)


def check_mended(folder, damaged, found):
    """Check that *damaged* files were kept, and that *found* is what the state now has without another word."""
    assert everything(StateManager(folder / "state.json", _disk=NoSyncDisk())) == found
    kept = {file.read_bytes() for file in folder.glob("*.corrupt-*")}
    assert kept
    assert kept <= set(damaged.values())


@pytest.mark.parametrize("most", [1_000, pytest.param(10**9, marks=pytest.mark.soak)])
def test_each_bit_turned_over_in_a_state_costs_an_entry_or_a_section_at_most(tmp_path, most):
    data = reference(tmp_path / "state.json")
    starts = {number for number, line in enumerate(data.split(b"\n")) if line.rstrip(b",").endswith(b'"}')}
    for number, (place, damaged) in enumerate(flips(data, most)):
        found, was_told = read_damaged(tmp_path / str(number), {"state.json": damaged})
        if found is None or not was_told:
            assert found is not None or place // 8 == data.index(b"1"), "only the version may look like another one"
            continue
        check_mended(tmp_path / str(number), {"state.json": damaged}, found)
        line = data[: place // 8].count(b"\n")
        lost = sum(len(whole) - len(part) for whole, part in zip(EVERYTHING, found, strict=True))
        if line in starts and damaged[place // 8] != ord("\n") and data[place // 8] != ord("\n"):
            assert lost <= 1, f"bit {place}, in {data.splitlines()[line]!r}, cost {lost} entries"


def test_a_state_cut_at_each_byte_keeps_the_whole_entries_before_it(tmp_path):
    data = reference(tmp_path / "state.json")
    for end in range(len(data)):
        found, was_told = read_damaged(tmp_path / str(end), {"state.json": data[:end]})
        assert was_told == (end < len(data) - 1)
        assert found is not None
        whole = sum(line.rstrip(b",").endswith(b'"}') for line in data[:end].split(b"\n")[:-1])
        assert sum(map(len, found)) >= min(whole, sum(map(len, EVERYTHING)))
        if was_told:
            check_mended(tmp_path / str(end), {"state.json": data[:end]}, found)


@pytest.fixture
def files_with_journal(tmp_path, monkeypatch):
    """Return the files of a state, by name, with a journal; and what the cache was after each line of that."""
    path = tmp_path / "state.json"
    manager = StateManager(path, _disk=NoSyncDisk())
    for key, value in {**VALUES, "b": "old", "gone": 1, "e": "old"}.items():
        manager.set(key, value)
    fill(manager).close("succeeded", 1.0, 1.0)
    monkeypatch.setattr(jsonfile, "_SMALL", 0)
    caches = [manager.get_all()]
    for key, value in (("b", "text"), ("new", 1), ("e", "")):
        manager.set(key, value)
        caches.append(manager.get_all())
    for key in ("gone", "new"):
        manager.delete(key)
        caches.append(manager.get_all())
    assert caches[-1] == VALUES
    return {name: (tmp_path / name).read_bytes() for name in ("state.json", "state.json.journal")}, caches


@some_and_all
def test_each_bit_turned_over_in_a_journal_makes_no_older_value_come_back(tmp_path, files_with_journal, most):
    """What the journal had replaced or deleted is not believed any more, even if nothing newer can be read."""
    files, _ = files_with_journal
    for number, (_, damaged) in enumerate(flips(files["state.json.journal"], most)):
        damaged = {**files, "state.json.journal": damaged}
        found, was_told = read_damaged(tmp_path / str(number), damaged)
        if was_told:
            check_mended(tmp_path / str(number), damaged, found)


@some_and_all
def test_each_bit_turned_over_in_a_state_with_a_journal_makes_no_other_value(tmp_path, files_with_journal, most):
    files, _ = files_with_journal
    for number, (_, damaged) in enumerate(flips(files["state.json"], most)):
        damaged = {**files, "state.json": damaged}
        found, was_told = read_damaged(tmp_path / str(number), damaged)
        if was_told and found is not None:
            check_mended(tmp_path / str(number), damaged, found)


def test_a_journal_cut_at_each_byte_is_one_whose_last_write_was_not_finished(tmp_path, files_with_journal):
    """No warning: that is what a killed process leaves. The next value is not added to half a line."""
    files, caches = files_with_journal
    journal = files["state.json.journal"]
    for end in range(len(journal) + 1):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "state.json").write_bytes(files["state.json"])
        (folder / "state.json.journal").write_bytes(journal[:end])
        manager = StateManager(folder / "state.json", _disk=NoSyncDisk())
        expected = caches[max(0, journal[:end].count(b"\n") - 1)]
        assert manager.get_all() == expected
        for number in range(2):
            manager.set("next", number)
        found = everything(StateManager(folder / "state.json", _disk=NoSyncDisk()))
        assert found == (expected | {"next": 1}, *EVERYTHING[1:])


@pytest.fixture
def files_of_a_killed_run(tmp_path):
    """Return the files of a state, by name, with the journal of a run that was killed."""
    path = tmp_path / "state.json"
    manager = StateManager(path, _disk=NoSyncDisk())
    for key, value in VALUES.items():
        manager.set(key, value)
    scope = manager.open_scope("etl", "before")
    for task, number in (("fetch", 91), ("load", 92), ("old", 93)):
        scope.append(task, record(number))
    scope.close("succeeded", 1.0, 1.0)
    scope = fill(manager)
    scope._lock.release()
    scope._journal.close()
    (journal,) = tmp_path.glob("state.json.*.journal")
    return {name: (tmp_path / name).read_bytes() for name in ("state.json", journal.name)}, journal.name


@some_and_all
def test_each_bit_turned_over_in_the_journal_of_a_killed_run_makes_no_older_result_come_back(
    tmp_path, files_of_a_killed_run, most
):
    """The results of before that are replaced in the journal are missing then; the cache is untouched."""
    files, name = files_of_a_killed_run
    expected = (VALUES, {**EVERYTHING[1], "old": 93}, EVERYTHING[2])
    for number, (_, damaged) in enumerate(flips(files[name], most)):
        folder = tmp_path / str(number)
        found, was_told = read_damaged(folder, {**files, name: damaged}, expected)
        assert found[0] == VALUES
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if was_told else "error")
            StateManager(folder / "state.json", _disk=NoSyncDisk()).open_scope("etl", "next").close("failed", 1.0, 1.0)
        again = everything(StateManager(folder / "state.json", _disk=NoSyncDisk()))
        assert again[:2] == found[:2]
        assert {file.read_bytes() for file in folder.glob("*.corrupt-*")} == ({damaged} if was_told else set())


def test_the_journal_of_a_killed_run_cut_at_each_byte_keeps_the_records_before_it(tmp_path, files_of_a_killed_run):
    files, name = files_of_a_killed_run
    before = {"fetch": 91, "load": 92, "old": 93}
    order = ["", "code", "fetch", "load", "code", ("each", 0), ("each", 1), "end"]
    for end in range(len(files[name]) + 1):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "state.json").write_bytes(files["state.json"])
        (folder / name).write_bytes(files[name][:end])
        stored = order[: files[name][:end].count(b"\n")]
        expected = before | {task: number for task, number in EVERYTHING[1].items() if task in stored}
        path = folder / "state.json"
        assert everything(StateManager(path, _disk=NoSyncDisk()))[:2] == (VALUES, expected)
        scope = StateManager(path, _disk=NoSyncDisk()).open_scope("etl", "next")
        scope.append("next", record(50))
        scope.close("succeeded", 1.0, 1.0)
        json.loads(path.read_bytes())
        assert everything(StateManager(path, _disk=NoSyncDisk()))[:2] == (VALUES, expected | {"next": 50})
        assert sorted(file.name for file in folder.iterdir()) == ["state.json"]


@pytest.mark.parametrize(
    "data", [b"\n", b"\n\n\n", b"garbage\nof\nlines\n", b"\xff" * 100 + b"\n", b"{}\n{}\n", b"\0\n" * 100]
)
@pytest.mark.parametrize("of", ["state.json", "state.json.journal", "run"])
def test_garbage_in_place_of_a_file_loses_no_more_than_that(tmp_path, files_of_a_killed_run, data, of):
    files, name = files_of_a_killed_run
    expected = (VALUES, {**EVERYTHING[1], "old": 93}, EVERYTHING[2])
    found, was_told = read_damaged(tmp_path / "x", {**files, name if of == "run" else of: data}, expected)
    assert was_told
    if of != "state.json":
        assert found[1 if of == "state.json.journal" else 0] == expected[1 if of == "state.json.journal" else 0]


@pytest.mark.parametrize("data", [b"", b"x", bytes(1000)])
def test_a_journal_without_a_whole_line_is_one_that_was_never_begun(tmp_path, files_of_a_killed_run, data):
    files, name = files_of_a_killed_run
    damaged = {**files, name: data, "state.json.journal": data}
    found, was_told = read_damaged(tmp_path / "x", damaged, (VALUES, {"fetch": 91, "load": 92, "old": 93}, set()))
    assert not was_told
    assert found[0] == VALUES


# ---------------------------------------------------------------- mending

DAMAGES = ["state.json", "state.json.journal"]


@pytest.mark.parametrize("of", DAMAGES)
@pytest.mark.parametrize("dies", [True, False])
def test_mending_can_end_at_each_operation(tmp_path, files_with_journal, of, dies):
    """The process dies, or the disk refuses something: what could be read before can be read then, nothing older."""
    files, _ = files_with_journal
    lines = files[of].splitlines(keepends=True)
    place = 3 if of == "state.json" else 1
    lines[place] = lines[place].replace(b'"value":', b'"value": ', 1)
    damaged = {**files, of: b"".join(lines)}
    expected, was_told = read_damaged(tmp_path / "expected", damaged)
    assert was_told
    assert any(expected)
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in damaged.items():
            (folder / name).write_bytes(data)
        path = folder / "state.json"
        disk = DyingDisk(number, 0.5) if dies else FailingDisk(number, 28, lasts=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                found = everything(StateManager(path, _disk=disk))
                assert found == expected
            except Death:
                pass
            assert everything(StateManager(path, _disk=NoSyncDisk())) == expected, f"after operation {number}"
        assert damaged[of] in [file.read_bytes() for file in folder.iterdir()]


def test_a_damaged_file_is_never_kept_over_another(tmp_path):
    """Damaged twice, even in the same second, it is kept twice."""
    path = tmp_path / "state.json"
    for number in range(5):
        path.write_bytes(b"garbage %d" % number)
        with pytest.warns(RuntimeWarning, match="is damaged"):
            StateManager(path, _disk=NoSyncDisk())
    kept = {file.read_bytes() for file in tmp_path.glob("*.corrupt-*")}
    assert kept == {b"garbage %d" % number for number in range(5)}


def test_the_warning_says_what_is_kept_and_where_the_damaged_file_is(tmp_path):
    path = tmp_path / "state.json"
    data = reference(path)
    path.write_bytes(data.replace(b'"text"', b'"test"'))
    with pytest.warns(RuntimeWarning) as told:
        StateManager(path, _disk=NoSyncDisk())
    (aside,) = tmp_path.glob("*.corrupt-*")
    kept = sum(map(len, EVERYTHING)) - 1
    assert str(path) in str(told[0].message)
    assert str(aside) in str(told[0].message)
    assert f"Entries kept: {kept}." in str(told[0].message)


def test_a_record_of_another_shape_is_as_one_that_is_not_there(tmp_path):
    """Its checksum is right: another version of flowkit has written it."""
    section = ("runs", "etl", "tasks")
    entry = records.seal(section, "a", '{"id":1,"state":"succeeded","code":""}')
    (tmp_path / "state.json").write_bytes(records.render({section: {"a": entry}}))
    assert StateManager(tmp_path / "state.json").read_scope("etl").tasks == {}
