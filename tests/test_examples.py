"""Every program in examples/ runs, ends well, writes only where it was told to, and computes what it says."""

import csv
import hashlib
import importlib.util
import json
import os
import random
import re
import sqlite3
import struct
import subprocess
import sys
import sysconfig
import zlib
from contextlib import closing
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from math import cos, log, log2, pi
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from flowkit import DAG, SequentialExecutor, Skip

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
DATA = EXAMPLES / "data"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run_example(name, directory, *arguments, stdin=""):
    """Run an example in an empty directory, with another one for temporary files, and return what it printed.

    A process that it leaves behind would hold its output open, and be a timeout here.
    """
    cwd, temporary = directory / "cwd", directory / "tmp"
    cwd.mkdir()
    temporary.mkdir()
    settings = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        cwd=cwd, env={**os.environ, **settings, "TMPDIR": str(temporary)}, input=stdin,
        capture_output=True, encoding="utf-8", timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert list(cwd.iterdir()) == []
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run an example with an output directory, once for all tests; gives what it printed and that directory."""
    known = {}

    def ran(name):
        if name not in known:
            directory = tmp_path_factory.mktemp(name)
            known[name] = run_example(name, directory, directory / "output"), directory / "output"
        return known[name]

    return ran


@pytest.fixture
def load(monkeypatch):
    """Import an example as a module."""

    def load(name):
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module", autouse=True)
def the_tree_stays_as_it_is():
    def listing():
        return {(path, path.stat().st_mtime_ns) for path in EXAMPLES.rglob("*") if path.is_file()}

    before = listing()
    yield
    assert listing() == before


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_and_says_where_its_output_is(name, ran):
    printed, output = ran(name)
    assert len(printed.splitlines()) > 15
    assert str(output) in printed.splitlines()[-1]
    assert any(output.iterdir())
    assert list((output.parent / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, []) for name in ("basic_example", "conditional_example", "mixed_example")]
    + [("mandelbrot_example", ["--width", 72])],
)
def test_without_a_directory_the_output_goes_to_a_temporary_one(name, arguments, tmp_path):
    printed = run_example(name, tmp_path, *arguments)
    (output,) = (tmp_path / "tmp").iterdir()
    assert str(output) in printed
    assert any(output.iterdir())


def test_readable_from_the_top():
    for name in NAMES:
        source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert source.startswith('"""')
        assert f"python examples/{name}.py" in source.split('"""')[1]
        assert source.endswith('\n\n\nif __name__ == "__main__":\n    main()\n')


# ---------------------------------------------------------------- basic_example


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected_sales():
    """Compute from the files, in another way than the example does: cents by month, and cents by customer."""
    prices = {row["sku"]: Decimal(str(row["price"])) for row in json.loads((DATA / "products.json").read_text())}
    names = {row["customer_id"]: row["name"] for row in read_csv(DATA / "customers.csv")}
    months, customers, seen = {}, {}, set()
    for row in read_csv(DATA / "orders.csv"):
        sku, customer, quantity = row["sku"].strip().upper(), row["customer_id"], row["quantity"]
        day = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)|(\d\d)\.(\d\d)\.(\d{4})", row["ordered_on"])
        month = day and (f"{day[1]}-{day[2]}" if day[1] else f"{day[6]}-{day[5]}")
        is_known = sku in prices and customer in names and row["order_id"] not in seen
        if is_known and month and row["ordered_on"] != "2024-02-31" and re.fullmatch("[1-9]", quantity):
            seen.add(row["order_id"])
            cents = int(prices[sku] * 100 * int(quantity))
            months[month] = months.get(month, 0) + cents
            customers[names[customer]] = customers.get(names[customer], 0) + cents
    return months, customers, len(seen)


def test_etl_totals_are_those_of_the_files(ran):
    printed, output = ran("basic_example")
    months, customers, count = expected_sales()
    with closing(sqlite3.connect(output / "shop.db")) as database:
        loaded = dict(database.execute("SELECT substr(day, 1, 7), sum(cents) FROM sale GROUP BY 1"))
    assert loaded == months
    rejected = read_csv(output / "rejected.csv")
    assert count + len(rejected) == len(read_csv(DATA / "orders.csv"))
    assert f"{count} sales, {sum(months.values()) / 100:,.2f} in all; {len(rejected)} rows rejected" in printed
    best = max(customers, key=customers.get)
    assert re.search(rf"Best customers\n-+\n{best} \(\w\w\) +{customers[best] / 100:,.2f} ", printed)
    assert (output / "report.txt").read_text(encoding="utf-8") in printed


def test_etl_keeps_what_it_rejects_with_the_reason(ran):
    _, output = ran("basic_example")
    reasons = {row["order_id"]: row["reason"] for row in read_csv(output / "rejected.csv")}
    assert reasons["A5152"] == "no day '2024-02-31'"
    assert reasons["A5120"] == "no quantity 'two'"
    assert reasons["A5073"] == "no customer 'C999'"
    assert reasons["A5102"] == "no product 'TEA-099'"
    assert list(reasons.values()).count("sent twice") == 5


def test_etl_draws_its_graph_and_sums_up_the_run(ran):
    printed, _ = ran("basic_example")
    assert printed.startswith("DAG: shop (10 tasks, 4 generations)\n")
    assert re.search(r"^shop: succeeded in .* \(10 succeeded\)$", printed, re.MULTILINE)


# ---------------------------------------------------------------- conditional_example


def paid(output):
    """Return what the files of transfers hold, by week."""
    files = {int(path.stem.removeprefix("transfers_")): path for path in output.glob("transfers_*.csv")}
    return {
        week: [(number, Decimal(amount)) for number, _, amount, _ in csv.reader(path.read_text().splitlines())]
        for week, path in files.items()
    }


def owed(week):
    rows = read_csv(DATA / "invoices.csv")
    return {(row["number"], Decimal(row["amount"])) for row in rows if row["week"] == str(week)}


def test_each_week_is_paid_once_by_the_branch_that_its_total_asks_for(ran):
    printed, output = ran("conditional_example")
    transfers = paid(output)
    assert sorted(transfers) == [14, 15]
    for week, rows in transfers.items():
        assert len(rows) == len(set(rows))
        assert set(rows) == owed(week)
    totals = [sum(amount for _, amount in owed(week)) for week in (14, 15)]
    assert totals[0] <= 10_000 < totals[1]
    assert f"Paid: {len(owed(14))} invoices, {totals[0]:,.2f} in all, approved by rule" in printed
    assert f"Paid: {len(owed(15))} invoices, {totals[1]:,.2f} in all, approved by I. Duarte" in printed


def test_the_summary_says_why_something_did_not_run(ran):
    printed, _ = ran("conditional_example")
    weeks = {int(part.split("\n", 1)[0]): part for part in printed.split("===== week ")[1:]}
    assert sorted(weeks) == [14, 15, 16, 18]
    assert re.search(r"^approve_by_hand +skipped .* when\(\) was false$", weeks[14], re.MULTILINE)
    assert re.search(r"^hold_duplicates +skipped .* every invoice came once$", weeks[14], re.MULTILINE)
    assert re.search(r"^approve_by_rule +skipped .* when\(\) was false$", weeks[15], re.MULTILINE)
    assert re.search(r"^pay +skipped .*'approve_by_rule', 'approve_by_hand'", weeks[16], re.MULTILINE)
    assert "Nothing is paid: I. Duarte refused: " in weeks[16]
    assert re.search(r"^notify +succeeded ", weeks[18], re.MULTILINE)
    assert "Nothing is paid: no invoice in week 18." in weeks[18]


def test_a_person_can_decide_at_the_terminal(tmp_path):
    printed = run_example("conditional_example", tmp_path, "--ask", tmp_path / "output", stdin="no\nyes\n")
    assert sorted(paid(tmp_path / "output")) == [14, 16]
    assert "Nothing is paid: you refused: at the terminal." in printed


# ---------------------------------------------------------------- parallel_example


def library_files(*left_out):
    library = sysconfig.get_path("stdlib")
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in left_out]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def test_archives_hold_every_byte_of_the_library(ran):
    printed, output = ran("parallel_example")
    files = list(library_files("site-packages", "test", "tests", "idle_test"))
    content = sorted(path.read_bytes() for path in files)
    sums = dict(reversed(line.split("  ")) for line in (output / "SHA256SUMS").read_text().splitlines())
    unpacked = b""
    for name, digest in sums.items():
        packed = (output / name).read_bytes()
        assert hashlib.sha256(packed).hexdigest() == digest
        unpacked += zlib.decompress(packed)
    assert len(sums) == 12
    assert len(unpacked) == sum(map(len, content))
    assert all(text in unpacked for text in content[:: len(content) // 20])
    assert printed.startswith(f"{len(files):,} files, {len(unpacked) / 1e6:.1f} MB packed to ")


def test_speed_up_is_that_of_the_printed_times(ran):
    printed, _ = ran("parallel_example")
    one = float(re.search(r"^one thread: ([\d.]+) s$", printed, re.MULTILINE)[1])
    many, factor = map(float, re.search(r" threads: ([\d.]+) s, ([\d.]+) × as fast$", printed, re.MULTILINE).groups())
    assert factor == pytest.approx(one / many, abs=0.1)
    assert len(re.findall(r"^  main +pack_\d\d  +█*$", printed, re.MULTILINE)) == 12
    assert len(re.findall(r"^  thread-\d+ +pack_\d\d  +█*$", printed, re.MULTILINE)) == 12


# ---------------------------------------------------------------- mandelbrot_example


def read_png(path):
    """Return the rows of a PNG file, each a list of (red, green, blue), after looking at every part of it."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert content[at + 8 + size : at + 12 + size] == zlib.crc32(kind + data).to_bytes(4)
        chunks.append((kind, data))
        at += 12 + size
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
    assert form == [8, 2, 0, 0, 0]  # 8 bits, red green blue, no interlacing
    lines = zlib.decompress(chunks[1][1])
    assert len(lines) == height * (1 + 3 * width)
    assert set(lines[:: 1 + 3 * width]) == {0}
    starts = range(1, len(lines), 1 + 3 * width)
    return [list(zip(*[iter(lines[start : start + 3 * width])] * 3, strict=True)) for start in starts]


def expected_pixel(x, y, width, height):
    """Compute a pixel from its place, in real numbers: the mean of the colours at four points in it."""
    colours = []
    for right, down in ((1, 1), (3, 1), (1, 3), (3, 3)):
        a = 0.378608124 + 0.0062 * ((x + right / 4) / width - 1 / 2)
        b = 0.098558011 - 0.0062 * ((y + down / 4) / width - 1 / 3)
        u = v = steps = 0
        while u * u + v * v <= 256 and steps < 300:
            u, v, steps = u * u - v * v + a, 2 * u * v + b, steps + 1
        turn = 1.2 * log((steps + 1 - log2(log2(u * u + v * v) / 8) - 1) / 18) if u * u + v * v > 256 else None
        leads = (-0.15, -0.05, 0.1)
        colours.append([0 if turn is None else 255 * (1 - cos(2 * pi * (turn + lead))) / 2 for lead in leads])
    return [sum(channel) / 4 for channel in zip(*colours, strict=True)]


def test_picture_is_the_set(ran):
    """A copy of the set is in the middle, and the corners are far outside of it."""
    _, output = ran("mandelbrot_example")
    rows = read_png(output / "mandelbrot.png")
    height, width = len(rows), len(rows[0])
    assert (width, height) == (324, 216)
    assert rows[height // 2][width // 2] == (0, 0, 0)
    assert all(max(rows[y][x]) > 32 for y in (0, -1) for x in (0, -1))
    assert 0.02 < sum(row.count((0, 0, 0)) for row in rows) / (width * height) < 0.2
    rng = random.Random(0)
    for x, y in [(rng.randrange(width), rng.randrange(height)) for _ in range(200)]:
        assert rows[y][x] == pytest.approx(expected_pixel(x, y, width, height), abs=2.5), (x, y)


def test_painting_is_timed_on_one_process_and_on_all_cpus(ran):
    printed, _ = ran("mandelbrot_example")
    one = float(re.search(r"^1 process: ([\d.]+) s$", printed, re.MULTILINE)[1])
    found = re.search(r"^(\d+) processes: ([\d.]+) s, ([\d.]+) × as fast$", printed, re.MULTILINE)
    processes, many, factor = int(found[1]), float(found[2]), float(found[3])
    assert factor == pytest.approx(one / many, rel=0.05)
    bands = [int(count) for count in re.findall(r"^  process-\d+ +(\d+) bands  [ █▓]*$", printed, re.MULTILINE)]
    assert bands[0] == 36
    assert sum(bands[1:]) == 36
    assert len(bands[1:]) <= processes


def test_colours_have_no_edge_where_the_number_of_steps_changes(load):
    escape_time = load("mandelbrot_example").escape_time
    assert [escape_time(c) for c in (0, -1, 0.25j)] == [0, 0, 0]
    times = [escape_time(complex(0.4 + number / 100_000, 0.3)) for number in range(20_000)]
    assert times[0] - times[-1] > 2
    assert max(abs(after - before) for before, after in pairwise(times)) < 0.01


# ---------------------------------------------------------------- mixed_example


def prose_of(topic):
    """Return the title of a topic and the sentences in it, without what is indented: examples and grammar."""
    title, *blocks = topics[topic].strip().split("\n\n")
    prose = "".join(block for block in blocks if not block.startswith("   "))
    sentences = [re.findall("[A-Za-z]+", part) for part in re.split(r"[.:](?=\s|$)", prose)]
    return title.splitlines()[0], [words for words in sentences if words]


def expected_ease(sentences):
    words = [word.lower() for sentence in sentences for word in sentence]
    syllables = 0
    for word in words:
        groups = re.findall("[aeiouy]+", word)
        syllables += max(1, len(groups) - bool(re.search("(?<![le])e$", word)))
    return 206.835 - 1.015 * len(words) / len(sentences) - 84.6 * syllables / len(words)


def test_pages_are_ranked_by_their_reading_ease(ran):
    printed, output = ran("mixed_example")
    prose = dict(map(prose_of, topics))
    lines = (output / "report.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r" *([-\d.]+) ± ([\d.]+) +(\d+) sentences  (.*)", line).groups() for line in lines]
    eases = [float(ease) for ease, *_ in found]
    assert eases == sorted(eases)
    ranked = {title: (float(ease), int(count)) for ease, _, count, title in found}
    expected = {title: sentences for title, sentences in prose.items() if len(sentences) >= 10}
    assert ranked.keys() == expected.keys()
    for title, (ease, count) in ranked.items():
        assert count == len(expected[title])
        assert ease == pytest.approx(expected_ease(expected[title]), abs=0.051), title
    for line in [*lines[:5], *lines[-5:]]:
        assert line in printed


def test_every_page_comes_though_some_were_turned_away(ran):
    printed, _ = ran("mixed_example")
    refused = len(list(topics)[::5])
    assert f"\n{len(topics)} pages in {len(topics) + refused} attempts; " in printed


def test_every_kind_of_worker_has_its_part(ran):
    """list_pages and fetch are coroutines, score is for processes, write_report for a thread."""
    printed, _ = ran("mixed_example")
    attempts = len(topics) + len(list(topics)[::5])
    workers = dict(re.findall(r"^  (\w+) +((?:[\w-]+ \(\d+\)(?:, )?)+)$", printed, re.MULTILINE))
    assert workers["list_pages"] == "loop (1)"
    assert workers["fetch"] == f"loop ({attempts})"
    assert re.fullmatch(r"(process-\d \(\d+\)(, )?)+", workers["score"])
    assert sum(map(int, re.findall(r"\((\d+)\)", workers["score"]))) == len(topics)
    assert workers["write_report"] == "thread-1 (1)"


# ---------------------------------------------------------------- stdlib_report


def sections_of(printed):
    """Return the lines of each table."""
    parts = [part.split("\n\n")[0].splitlines() for part in printed.split("=== ")[1:]]
    return {title: [line.split() for line in lines] for title, *lines in parts}


def test_report_counts_the_library(ran):
    printed, _ = ran("stdlib_report")
    overview = sections_of(printed)["Overview"]
    left_out = ("site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "turtledemo")
    library = Path(sysconfig.get_path("stdlib"))
    names = {path: path.relative_to(library).with_suffix("").parts for path in library_files(*left_out)}
    lines = {path: path.read_bytes().count(b"\n") for path, parts in names.items() if all(map(str.isidentifier, parts))}
    assert ["modules", f"{len(lines):,}"] in overview
    assert ["lines", f"{sum(lines.values()):,}"] in overview
    largest = max(lines, key=lines.get)
    assert sections_of(printed)["Largest modules"][1][:2] == [".".join(names[largest]), f"{lines[largest]:,}"]


def test_report_measures_imports(ran):
    printed, output = ran("stdlib_report")
    table = (output / "report.html").read_text(encoding="utf-8").split("<h2>Slowest imports</h2>")[1]
    for module in ("asyncio", "email.message", "json", "logging"):
        (milliseconds,) = re.findall(rf"<td>{module}</td><td>([\d.,]+)</td>", table)
        assert 0 < float(milliseconds.replace(",", "")) < 30_000
    assert re.search(r"^32 tasks in [\d.]+ s; ", printed, re.MULTILINE)


@pytest.fixture
def stdlib_report(load):
    return load("stdlib_report")


def test_a_module_that_cannot_be_imported_is_left_out_of_the_report_with_the_reason(stdlib_report):
    with pytest.raises(Skip, match="No module named 'no_such_module'"):
        stdlib_report.time_import("no_such_module")
    measure = stdlib_report.make_measurement("no_such_module")
    with DAG("measure", tasks=[measure], limits={"processes": 1}) as dag:
        measure >> stdlib_report.slowest_imports.with_options(trigger="all_done")
    section = dag.run({"source": stdlib_report.STDLIB})["slowest_imports"]
    assert "Left out: import_no_such_module (ModuleNotFoundError: No module named 'no_such_module')." in section.note
    assert section.rows == []


def test_import_time_counts_what_comes_along(stdlib_report):
    time = stdlib_report.time_import("email.message")
    assert time.module == "email.message"
    assert 20 < time.modules < 200  # email itself, and what message needs
    assert time.milliseconds > 0
    with pytest.raises(Skip, match="part of every start"):
        stdlib_report.time_import("sys")


TREE = {
    "shop/__init__.py": "from .cart import Cart\n",
    "shop/cart.py": "import json\nfrom shop import price\n\n\nclass Cart:\n    def total(self):\n        return 1\n",
    "shop/price.py": "from . import tax\n\n\ndef price():\n    import shop.cart\n    return (\n        shop\n    )\n",
    "shop/tax.py": "try:\n    from . import price\nexcept ImportError:\n    import json.decoder\n",
    "shop/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shop.tax\n",
    "shop/broken.py": "print 'written for Python 2'\n",
    "shop/tests/test_cart.py": "import shop.cart\n",
    "shop/not-a-module.py": "import json\n",
}


def test_report_on_other_code_finds_what_is_there(tmp_path):
    """shop -> cart -> price <-> tax: one cycle; the import in a function and the one for type checkers do not count."""
    for name, text in TREE.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    output = tmp_path / "output"
    sections = sections_of(run_example("stdlib_report", tmp_path, "--source", tmp_path / "code" / "shop", output))
    assert "Slowest imports" not in sections  # skipped: other people's code is not imported
    overview = sections["Overview"]
    assert ["modules", "6"] in overview
    assert ["functions", "2"] in overview
    assert ["imported", "names", "that", "are", "deferred", "2"] in overview
    assert sections["Largest functions"][1:] == [
        ["shop.price.price", "5", "█" * 20],
        ["shop.cart.Cart.total", "2", "█" * 8],
    ]
    assert sections["Most imported"][1][:2] == ["json", "2"]
    assert sections["Widest reach"][2][:2] == ["shop", "4"]
    assert sections["Import cycles"][2:] == [["shop.price", "→", "shop.tax", "→", "shop.price", "2"]]


def test_report_on_an_empty_directory_says_so(tmp_path):
    (tmp_path / "code").mkdir()
    with pytest.raises(AssertionError, match="no Python file in "):
        run_example("stdlib_report", tmp_path, "--source", tmp_path / "code", tmp_path / "output")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_page_is_well_formed_and_complete(ran):
    printed, output = ran("stdlib_report")
    page = (output / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert re.findall(r"<h2>(.*?)</h2>", page) == list(sections_of(printed))
    assert page.count("<tr>") > 200


# ---------------------------------------------------------------- resume_example


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_a_survey_that_was_killed_goes_on_and_gives_the_same(tmp_path, ran):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "resume_example.py"), str(tmp_path / "output")]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, encoding="utf-8") as first:
        done = []
        for line in first.stdout:
            done += re.findall(r"done      (survey \w+)", line)
            if len(done) == 4:
                first.kill()
    printed = run_example("resume_example", tmp_path, tmp_path / "output")
    restored = re.findall(r"restored  (survey \w+)", printed)
    assert set(done) <= set(restored)
    assert not set(restored) & set(re.findall(r"done      (survey \w+)", printed))
    assert "survey" in re.search(r"  (.*): never finished", printed)[1]
    whole, output = ran("resume_example")
    assert "restored" not in whole
    assert (tmp_path / "output" / "packages.tsv").read_text() == (output / "packages.tsv").read_text()


# ---------------------------------------------------------------- workflow_example


def test_a_workflow_that_is_started_again_takes_everything_from_its_store(tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        printed = run_example("workflow_example", tmp_path / str(number), tmp_path / "output")
        runs = [(int(run), int(kept)) for run, kept in re.findall(r"(\d+) were run, (\d+) taken", printed)]
        assert [run for run, _ in runs] == ([runs[1][1], 0] if number == 0 else [0, 0])
    assert (tmp_path / "output" / "imports.mmd").read_text("utf-8").count("-->") > 200


def test_an_import_brings_along_the_lines_of_all_that_it_imports(load):
    example = load("workflow_example")
    workflow = example.build({})
    SequentialExecutor().execute(workflow)
    stdlib = Path(json.__file__).parent
    lines = {name: len((stdlib / f"{name}.py").read_bytes().splitlines()) for name in ("decoder", "scanner", "encoder")}
    assert workflow.get_task_result("json.scanner") == {"json.scanner": lines["scanner"]}
    assert workflow.get_task_result("json").keys() == {"json", *(f"json.{name}" for name in lines)}
    assert workflow.get_task_result("json")["json.decoder"] == lines["decoder"]
