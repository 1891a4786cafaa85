"""Fetch the Python reference from a slow server, and find out which of its pages are the hardest to read.

Shows one run that uses everything at once: coroutines wait for the server, many at a time; processes count syllables
and do statistics, which is pure Python; a thread writes the report. ``list_pages >> fetch.map() >> score.map()`` has as
many items as there are pages. The server is part of the program. It takes its time, and turns every fifth page away at
first, which retries take care of; ``limits`` keeps the program from asking for all pages at once.

Run it with ``python examples/mixed_example.py [DIRECTORY]``. It writes ``report.txt`` into the directory, or into a
temporary one.
"""

from __future__ import annotations

import asyncio
import html
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data.topics import topics
from statistics import stdev
from typing import ClassVar, NamedTuple

from flowkit import DAG, RunResult, Skip, task

LATENCY = 0.05
"""Seconds that the server waits before it answers."""
FEWEST = 10
"""Pages with fewer sentences have no score."""
SAMPLES = 1000
"""How many times the sentences of a page are drawn from to see how sure its score is."""


class Page(NamedTuple):
    name: str
    content: str


class Score(NamedTuple):
    """How easy a page is to read: 100 is a book for children, 30 one for scholars; and how sure that is."""

    ease: float
    error: float
    sentences: int
    title: str


# ---------------------------------------------------------------- fetch


async def get(port: int, path: str) -> str:
    """Return what the server has at *path*.

    Raises:
        ConnectionError: The answer was not 200 OK.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    status = head.partition("\r\n")[0].partition(" ")[2]
    if status != "200 OK":
        raise ConnectionError(status)
    return body


@task
async def list_pages(port: int) -> list[str]:
    return re.findall(r'href="/([^"]+)"', await get(port, "/"))


@task(uses="connections", retries=3, delay=0.1, retry_on=ConnectionError, timeout=10)
async def fetch(name: str, port: int) -> Page:
    return Page(name, await get(port, f"/{name}"))


# ---------------------------------------------------------------- score


class Reader(HTMLParser):
    """Collects the title and the prose of a page; examples and grammar are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.text = {"title": "", "p": ""}
        self.tag = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tag = tag

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""

    def handle_data(self, data: str) -> None:
        if self.tag in self.text:
            self.text[self.tag] += data


def count_syllables(word: str) -> int:
    """Return about how many syllables *word* has: one for each group of vowels, but for an e that is not spoken."""
    letters = word.lower()
    vowels = [letter in "aeiouy" for letter in letters]
    groups = sum(is_vowel and not before for before, is_vowel in zip([False, *vowels], vowels, strict=False))
    is_silent = letters.endswith("e") and not letters.endswith(("le", "ee"))
    return max(1, groups - is_silent)


def reading_ease(sentences: list[tuple[int, int]]) -> float:
    """Return Flesch's reading ease of sentences with so many words and syllables each; long ones make it low."""
    words, syllables = map(sum, zip(*sentences, strict=True))
    return 206.835 - 1.015 * words / len(sentences) - 84.6 * syllables / words


@task(executor="process")
def score(page: Page) -> Score:
    """Return the page's reading ease, and how far those of chance choices from its sentences are apart."""
    reader = Reader()
    reader.feed(page.content)
    reader.close()
    sentences = [re.findall("[A-Za-z]+", sentence) for sentence in re.split(r"[.:](?=\s|$)", reader.text["p"])]
    counts = [(len(words), sum(map(count_syllables, words))) for words in sentences if words]
    if len(counts) < FEWEST:
        raise Skip(f"only {len(counts)} sentences")
    rng = random.Random(page.name)
    samples = [reading_ease(rng.choices(counts, k=len(counts))) for _ in range(SAMPLES)]
    return Score(round(reading_ease(counts), 1), round(stdev(samples), 1), len(counts), reader.text["title"])


# ---------------------------------------------------------------- write


@task
def write_report(scores: Sequence[Score | None], output: Path) -> Path:
    """Write the pages to ``report.txt``, the hardest first; those that were skipped are None here."""
    ranking = sorted(filter(None, scores))
    lines = [f"{ease:>6.1f} ± {error:<4} {count:>5} sentences  {title}\n" for ease, error, count, title in ranking]
    path = output / "report.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


list_pages >> fetch.map() >> score.map() >> write_report


# ---------------------------------------------------------------- the server


def render_page(name: str) -> str:
    """Return the page of a topic: its title, then paragraphs of prose and blocks of code."""
    title, *blocks = topics[name].strip().split("\n\n")
    body = [f"<pre>{html.escape(b)}</pre>" if b.startswith("   ") else f"<p>{html.escape(b)}</p>" for b in blocks]
    return "\n".join([f"<title>{html.escape(title.splitlines()[0])}</title>", *body])


class Handler(BaseHTTPRequestHandler):
    """Serves the topics of Python's ``help()``, slowly.

    Attributes:
        turned_away: Pages for which the next answer is 503.
    """

    turned_away: ClassVar[set[str]] = set(list(topics)[::5])

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        time.sleep(LATENCY)
        if name in self.turned_away:
            self.turned_away.remove(name)
            self.send_error(503)
            return
        page = render_page(name) if name else "\n".join(f'<a href="/{topic}">{topic}</a>' for topic in topics)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 64


@contextmanager
def run_server() -> Iterator[int]:
    """Serve on a port that is free until the end of the block; gives the port."""
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05])
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# ---------------------------------------------------------------- the run


def where_it_ran(result: RunResult) -> Iterator[str]:
    """Yield a line for each task: on which workers, and how many attempts it took there."""
    for name, run in result.tasks.items():
        attempts: Counter[str] = Counter()
        for each in run.items or [run]:
            attempts[str(each.worker)] += each.attempts
        yield f"  {name:<13} " + ", ".join(f"{worker} ({count})" for worker, count in sorted(attempts.items()))


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="reading_"))
    output.mkdir(parents=True, exist_ok=True)
    dag = DAG("reading", max_workers={"process": 2}, limits={"connections": 20})
    print(dag.visualize(), end="\n\n")
    with run_server() as port:
        result = dag.run({"port": port, "output": output})
    print(result.summary(), end="\n\n")
    print("Workers, with the attempts that each made:", *where_it_ran(result), sep="\n")

    pages = result.tasks["fetch"].items
    attempts = sum(page.attempts for page in pages)
    skipped = sum(page.state == "skipped" for page in result.tasks["score"].items)
    print(f"\n{len(pages)} pages in {attempts} attempts; {skipped} have fewer than {FEWEST} sentences.")
    print(f"One at a time, the waiting alone would take {attempts * LATENCY:.1f} s.")
    lines = result["write_report"].read_text(encoding="utf-8").splitlines()
    print("\nHardest to read:", *lines[:5], "Easiest:", *lines[-5:], sep="\n")
    print(f"\nWritten to {result['write_report']}")


if __name__ == "__main__":
    main()
