"""Benchmarks: flowkit beside a plain loop and beside what one would write or install instead.

    python -m tests.benchmarks [ROW ...] [--quick]

from the root of the checkout. Every row prints Markdown tables. Figures of one table were taken in one run,
turn by turn, and are medians, so the ratios between them mean more than the figures.

A row is a module with ``run(quick: bool) -> list[Table]``, named in ``ROWS`` of ``__main__``.
"""
