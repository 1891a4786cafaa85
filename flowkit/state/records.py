"""How entries stand in a file: one line of plain JSON each, with a checksum of its own.

Knows bytes. Does not know files, or what an entry means.

An entry is ``"key": {..., "crc": "89abcdef"}``: the CRC-32 of the section that it belongs to and all that stands before
it in the entry, so that what has strayed to another section is not believed. A journal has an entry in braces on each
line. A snapshot is one JSON object, whose sections hold an entry a line, and whose last member
is the checksum of everything before::

    {"version": 1, "saved_at": "2026-01-31T23:59:59+00:00", "save": "0123456789ab",
    "cache": {
    "answer": {"value":42,"timestamp":1769900399.1,"ttl":null,"metadata":{},"crc":"89abcdef"}
    },
    "runs": {
    "etl": {
    "tasks": {
    "fetch": {"id":1,...,"crc":"01234567"}
    }
    }
    },
    "crc":"76543210"}

Entries are kept as these bytes, so a snapshot is written without encoding anything again.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from functools import cache
from zlib import crc32

from ..exceptions import StateVersionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    Section = tuple[str, ...]
    Sections = dict[Section, dict[str, bytes]]

VERSION = 1
CACHE: Section = ("cache",)
SAVED: Section = ("saved",)
"""Records of tasks that were written by hand, by workflow and task."""
_SEAL = re.compile(rb',"crc":"([0-9a-f]{8})"\}')
_SEAL_SIZE = 18
_read_json = json.JSONDecoder().raw_decode
_write_string = json.encoder.encode_basestring


def seal(section: Section, key: str, body: str) -> bytes:
    """Return the entry of *key* in *section*; *body* is the text of a JSON object with at least one member."""
    text = f"{quoted(key)}: {body[:-1]}".encode()
    return b'%b,"crc":"%08x"}' % (text, crc32(text, _seed(section)))


@cache
def _seed(section: Section) -> int:
    return crc32(json.dumps(section).encode())


def quoted(key: str) -> str:
    """Return *key* as a JSON string that is good UTF-8, whatever is in it."""
    text = _write_string(key)
    return text if key.isprintable() else json.dumps(key)


def unseal(section: Section, entry: bytes) -> tuple[str, str] | None:
    """Return key and body of *entry* of *section*, the body without its checksum; None if it is damaged."""
    match = _SEAL.fullmatch(entry, len(entry) - _SEAL_SIZE) if len(entry) > _SEAL_SIZE else None
    if match is None or int(match[1], 16) != crc32(entry[:-_SEAL_SIZE], _seed(section)):
        return None
    text = entry[:-_SEAL_SIZE].decode()
    key, end = _read_json(text)
    return str(key), text[end + 2 :] + "}"


def key_of(entry: bytes) -> str:
    """Return the key of *entry*, which is not damaged."""
    key: str = _read_json(entry[:-_SEAL_SIZE].decode())[0]
    return key


def journal_line(entry: bytes) -> bytes:
    """Return the line of a journal that holds *entry*."""
    return b"{%b}\n" % entry


def read_journal(data: bytes, sections: Sequence[Section]) -> Iterator[tuple[Section, str, bytes] | None]:
    """Yield section, key and entry of each line of a journal that holds entries of *sections*.

    None stands for a damaged line; a last one that is cut off is left out. One with another end was not cut off.
    """
    *lines, rest = data.split(b"\n")
    for line in lines:
        yield _read_line(line, sections)
    last = _read_line(rest[:-1], sections)
    if last is not None:
        yield last


def _read_line(line: bytes, sections: Sequence[Section]) -> tuple[Section, str, bytes] | None:
    entry = line[1:-1] if line[:1] + line[-1:] == b"{}" else b""
    return next(((s, found[0], entry) for s in sections if (found := unseal(s, entry)) is not None), None)


# ---------------------------------------------------------------- snapshots


def render(sections: Sections) -> bytes:
    """Return *sections* as a snapshot, whose first line is unlike that of any other."""
    saved_at = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [f'{{"version": {VERSION}, "saved_at": "{saved_at}", "save": "{os.urandom(6).hex()}",'.encode()]
    tree: dict[str, Any] = {"cache": {}, "runs": {}}
    for path, entries in sections.items():
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch.update(entries)
    for name, branch in tree.items():
        lines.append(f"{quoted(name)}: {{".encode())
        lines += _lines(branch)
        lines.append(b"},")
    text = b"\n".join(lines)
    return b'%b\n"crc":"%08x"}\n' % (text, crc32(text))


def _lines(branch: dict[str, Any]) -> Iterator[bytes]:
    for number, (name, below) in enumerate(branch.items(), 1):
        comma = b"," if number < len(branch) else b""
        if isinstance(below, bytes):
            yield below + comma
        else:
            yield f"{quoted(name)}: {{".encode()
            yield from _lines(below)
            yield b"}" + comma


_END = re.compile(rb'\n"crc":"([0-9a-f]{8})"\}\n?')


class Snapshot:
    """What a snapshot holds.

    Attributes:
        sections: The entries that can be trusted.
        damage: What is wrong with the file; empty if nothing is.
    """

    __slots__ = ("damage", "sections")

    def __init__(self, sections: Sections, damage: str) -> None:
        self.sections = sections
        self.damage = damage


def parse(data: bytes, path: str) -> Snapshot:
    """Read a snapshot; from a damaged one, the entries whose own checksum is right.

    Raises:
        StateVersionError: It is of another version, or no state at all.
    """
    if data.startswith(b"SQLite format 3\0"):
        raise StateVersionError(path, "none", str(VERSION))
    end = _END.search(data, max(0, len(data) - 32))
    is_whole = end is not None and end.end() == len(data) and int(end[1], 16) == crc32(data[: end.start()])
    if is_whole and data.startswith(b'{"version": %d, ' % VERSION):
        return Snapshot(_read_sections(data, is_whole=True), "")
    found = _loads(data)
    if isinstance(found, dict) and not _is_ours(found, is_sealed=end is not None):
        raise StateVersionError(path, repr(found.get("version", "none")), str(VERSION))
    if found is not _NOTHING and not isinstance(found, dict):
        raise StateVersionError(path, "none", str(VERSION))
    if isinstance(found, dict) and end is None and "save" not in found:
        return Snapshot({CACHE: {k: seal(CACHE, k, json.dumps(_completed(e))) for k, e in found["cache"].items()}}, "")
    damage = "it is empty" if not data else "its checksum does not fit what is in it"
    return Snapshot(_read_sections(data, is_whole=False), damage)


def _read_sections(data: bytes, *, is_whole: bool) -> Sections:
    """Collect entries line by line; the lines around them say which section they are in."""
    sections: Sections = {}
    path: list[str] = []
    for raw in data.split(b"\n"):
        line = raw.rstrip(b",")
        if line == b"}":
            del path[-1:]
        elif line.endswith(b": {"):
            path.append(str(_loads(line[:-3])))
        elif line.endswith(b'"}') and path:
            if is_whole:
                sections.setdefault(tuple(path), {})[key_of(line)] = line
            elif (found := unseal(tuple(path), line)) is not None:
                sections.setdefault(tuple(path), {})[found[0]] = line
    return sections


def _loads(data: bytes) -> Any:
    """Return what the JSON *data* stands for; _NOTHING if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return _NOTHING


_NOTHING = object()


def _is_ours(found: dict[str, Any], *, is_sealed: bool) -> bool:
    """Return whether *found* is a state of this version, damaged perhaps, or a cache without checksums.

    The latter are made by hand, or by the first flowkit.
    """
    version = found.get("version")
    if is_sealed or "save" in found:
        return not (isinstance(version, int) and version > VERSION)
    cache = found.get("cache")
    is_known = version in (VERSION, str(VERSION), f"{VERSION}.0") and found.keys() <= {"version", "saved_at", "cache"}
    return is_known and isinstance(cache, dict) and all(map(_is_cached, cache.values()))


def _is_cached(entry: Any) -> bool:
    if not isinstance(entry, dict) or "value" not in entry or not isinstance(entry.get("metadata") or {}, dict):
        return False
    return isinstance(entry.get("timestamp"), (int, float)) and isinstance(entry.get("ttl") or 0, (int, float))


def _completed(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "value": entry["value"],
        "timestamp": float(entry["timestamp"]),
        "ttl": entry.get("ttl"),
        "metadata": entry.get("metadata") or {},
    }
