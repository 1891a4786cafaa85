"""Pack the Python standard library twice, on one thread and on all cores, and print the speed-up.

Shows a fan-out and a fan-in that are made in a loop, ``executor="sequential"`` beside threads, and what the run tells
about each task: when it ran, for how long, on which worker. Compressing and hashing release Python's global lock, and
so does reading files; that is why threads help here. Pure Python code would not get faster.

Run it with ``python examples/parallel_example.py [DIRECTORY]``. It writes the archives and ``SHA256SUMS`` into the
directory, or into a temporary one.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

from flowkit import DAG, RunResult, Task, task

SHARES = 12
LEFT_OUT = {"site-packages", "test", "tests", "idle_test"}


class Archive(NamedTuple):
    name: str
    files: int
    size: int
    packed_size: int
    sha256: str


@task
def find_files() -> list[list[Path]]:
    """Return the .py files of the standard library, without its tests, in shares of about the same size."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [path for path in library.rglob("*.py") if LEFT_OUT.isdisjoint(path.relative_to(library).parts)]
    by_size = sorted(found, key=lambda path: (path.stat().st_size, path))
    return [by_size[number::SHARES] for number in range(SHARES)]


def make_packer(number: int) -> Task[[list[list[Path]], Path], Archive]:
    """Return a task that packs one of the shares."""

    @task(name=f"pack_{number:02}")
    def pack(shares: list[list[Path]], output: Path) -> Archive:
        content = b"".join(path.read_bytes() for path in shares[number])
        packed = zlib.compress(content)
        archive = output / f"stdlib_{number:02}.z"
        archive.write_bytes(packed)
        return Archive(archive.name, len(shares[number]), len(content), len(packed), hashlib.sha256(packed).hexdigest())

    return pack


@task
def write_checksums(output: Path, *archives: Archive) -> list[Archive]:
    lines = [f"{archive.sha256}  {archive.name}\n" for archive in archives]
    (output / "SHA256SUMS").write_text("".join(lines), encoding="ascii")
    return list(archives)


packers = [make_packer(number) for number in range(SHARES)]
find_files >> packers >> write_checksums


def timeline(result: RunResult, seconds: float) -> str:
    """Return a line for each worker and task, with a bar where it ran; *seconds* are 60 columns wide."""
    runs = [
        (run.worker, run.started_at.timestamp(), run.duration, run.name)
        for run in result.tasks.values()
        if run.name.startswith("pack_") and run.worker and run.started_at
    ]
    first = min(start for _, start, _, _ in runs)
    return "\n".join(
        f"  {worker:<10}{name}  {' ' * round((start - first) / seconds * 60)}{'█' * round(duration / seconds * 60)}"
        for worker, start, duration, name in sorted(runs)
    )


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="stdlib_"))
    output.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    dag = DAG("pack", inputs={"output": output})
    one = dag.run(executor="sequential")
    many = dag.run(max_workers=cores)
    assert many["write_checksums"] == one["write_checksums"]

    archives: list[Archive] = many["write_checksums"]
    size, packed = sum(a.size for a in archives), sum(a.packed_size for a in archives)
    print(f"{sum(a.files for a in archives):,} files, {size / 1e6:.1f} MB packed to {packed / 1e6:.1f} MB")
    print(f"\none thread: {one.duration:.2f} s\n{timeline(one, one.duration)}")
    print(f"\n{cores} threads: {many.duration:.2f} s, {one.duration / many.duration:.1f} × as fast")
    print(timeline(many, one.duration))
    print(f"\nWritten to {output}: {len(archives)} archives, SHA256SUMS")


if __name__ == "__main__":
    main()
