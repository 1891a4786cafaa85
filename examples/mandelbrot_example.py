"""Paint a corner of the Mandelbrot set twice, on one process and on all CPUs, and print the speed-up.

Shows a mapped task: ``cut >> paint.map() >> write_png`` calls ``paint`` once for each band that ``cut`` returns,
however many that are. It computes in pure Python, where threads would wait for each other, so ``executor="process"``
puts it on processes; cutting and writing stay on threads. Bands through the middle take longest; there are more bands
than processes, and each process takes the next one when it is done, so none waits for another.

Run it with ``python examples/mandelbrot_example.py [--width PIXELS] [DIRECTORY]``. It writes ``mandelbrot.png`` into
the directory, or into a temporary one.
"""

from __future__ import annotations

import argparse
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from math import cos, log, log2, pi
from pathlib import Path

from flowkit import DAG, RunResult, task

CENTRE = complex(0.378608124, 0.098558011)
"""The middle of the picture: a small copy of the whole set, off the right edge of its main body."""
SPAN = 0.0062
"""How wide the picture is on the plane of complex numbers."""
LIMIT = 300
"""A point that has not left after so many steps counts as one of the set."""
FIRST = 18
"""After how many steps the first points of the picture leave."""
ROWS = 6
"""How many rows of pixels a band has."""
OFFSETS = (0.25, 0.75)
"""Where in a pixel samples are taken, across and down: four in all, whose mean has no jagged edges."""

Colour = tuple[int, int, int]

BLACK: Colour = (0, 0, 0)
COLOURS = 1024


def make_colour(turn: float) -> Colour:
    """Return a colour of a wheel: from pale blue over cream, gold, brown and midnight blue to pale blue again."""
    red, green, blue = (round(127.5 - 127.5 * cos(2 * pi * (turn + lead))) for lead in (-0.15, -0.05, 0.1))
    return red, green, blue


WHEEL = [make_colour(number / COLOURS) for number in range(COLOURS)]


# ---------------------------------------------------------------- one point


def escape_time(c: complex) -> float:
    """Return how many steps z → z² + c takes from 0 to leave a circle of radius 16; 0 if it stays.

    The fraction says how far out the last step led. Without it there would be an edge wherever the number changes.
    """
    z = 0j
    for step in range(LIMIT):
        z = z * z + c
        if abs(z) > 16:
            return step + 1 - log2(log2(abs(z)) / 4)
    return 0.0


def colour_of(steps: float) -> Colour:
    return WHEEL[int(COLOURS * 1.2 * log(steps / FIRST)) % COLOURS] if steps else BLACK


# ---------------------------------------------------------------- tasks


@task
def cut(width: int) -> list[range]:
    """Cut the picture, which is two thirds as high as wide, into bands of rows."""
    height = width * 2 // 3
    return [range(first, min(first + ROWS, height)) for first in range(0, height, ROWS)]


@task(executor="process")
def paint(rows: range, width: int) -> list[bytes]:
    """Return a line of bytes, red green blue red ..., for each of the rows."""
    scale = SPAN / width
    corner = CENTRE + complex(-SPAN / 2, SPAN / 3)
    lines = []
    for row in rows:
        line = bytearray()
        for column in range(width):
            points = [corner + scale * complex(column + across, -row - down) for down in OFFSETS for across in OFFSETS]
            samples = [colour_of(escape_time(point)) for point in points]
            line += bytes(sum(channel) // len(samples) for channel in zip(*samples, strict=True))
        lines.append(bytes(line))
    return lines


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file: its length, its kind, the content, and a checksum of both."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@task
def write_png(bands: list[list[bytes]], output: Path) -> Path:
    lines = [line for band in bands for line in band]
    header = struct.pack(">IIBBBBB", len(lines[0]) // 3, len(lines), 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    content = zlib.compress(b"".join(b"\0" + line for line in lines), 9)  # 0: the line as it is, no filter
    path = output / "mandelbrot.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return path


cut >> paint.map() >> write_png


# ---------------------------------------------------------------- the two runs


def sketch(bands: list[list[bytes]]) -> Iterator[str]:
    """Yield lines of text, 72 letters wide, that show the picture: the darker, the denser."""
    lines = [line for band in bands for line in band]
    step = len(lines[0]) / 3 / 72  # how many pixels a letter stands for; it is twice as high as wide
    for row in range(int(len(lines) / step / 2)):
        line = lines[int(row * step * 2)]
        pixels = [line[3 * int(column * step) :][:3] for column in range(72)]
        yield "".join("@%#*+=-:. "[sum(pixel) // 77] for pixel in pixels)


def timeline(result: RunResult, seconds: float) -> Iterator[str]:
    """Yield a line for each process with blocks for the bands that it painted; *seconds* are 60 columns wide."""
    bands: dict[str, list[tuple[float, float]]] = {}
    for band in result.tasks["paint"].items:
        if band.worker and band.started_at:
            bands.setdefault(band.worker, []).append((band.started_at.timestamp(), band.duration))
    first = min(start for painted in bands.values() for start, _ in painted)
    for worker, painted in sorted(bands.items()):
        bar = ""
        for number, (start, duration) in enumerate(sorted(painted)):
            end = round((start + duration - first) / seconds * 60)
            bar = bar.ljust(round((start - first) / seconds * 60)).ljust(end, "█▓"[number % 2])
        yield f"  {worker:<10} {len(painted):>3} bands  {bar}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Paint a corner of the Mandelbrot set on all CPUs.")
    parser.add_argument("output", nargs="?", type=Path, help="directory for mandelbrot.png (default: a temporary one)")
    parser.add_argument("--width", type=int, default=324, help="pixels across (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.width < 72:
        parser.error("--width must be at least 72")
    output = arguments.output or Path(tempfile.mkdtemp(prefix="mandelbrot_"))
    output.mkdir(parents=True, exist_ok=True)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    dag = DAG("mandelbrot", inputs={"width": arguments.width, "output": output})
    many = dag.run(max_workers={"process": cores})  # first: what starting processes takes once counts against it
    one = dag.run(max_workers={"process": 1})
    assert many == one

    print(*sketch(many["paint"]), sep="\n")
    print(f"\n1 process: {one.duration:.2f} s", *timeline(one, one.duration), sep="\n")
    print(f"\n{cores} processes: {many.duration:.2f} s, {one.duration / many.duration:.2f} × as fast")
    print(*timeline(many, one.duration), sep="\n")
    print(f"\nWritten to {many['write_png']}")


if __name__ == "__main__":
    main()
