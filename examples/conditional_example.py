"""A weekly payment run: small batches are approved by a rule, large ones by a person.

Shows branching with ``when``, a join after the branch, ``raise Skip``, a notification with ``trigger="all_done"`` that
reads from its context how everything above it ended, and the reason of whatever did not run.

Run it with ``python examples/conditional_example.py [--ask] [DIRECTORY]``. It pays four weeks of ``data/invoices.csv``
and writes a file of transfers for each into the directory, or into a temporary one. What a person decides comes from
``data/decisions.json``, or with ``--ask`` from you.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flowkit import DAG, Skip, TaskContext, task

DATA = Path(__file__).resolve().parent / "data"
WEEKS = [14, 15, 16, 18]
LIMIT = 10_000
"""A batch up to this amount needs no person."""


class Invoice(NamedTuple):
    number: str
    supplier: str
    amount: float
    due: str


class Batch(NamedTuple):
    week: int
    invoices: list[Invoice]

    @property
    def total(self) -> float:
        return sum(invoice.amount for invoice in self.invoices)


class Approval(NamedTuple):
    batch: Batch
    by: str


class Decision(NamedTuple):
    by: str
    approved: bool
    remark: str


# ---------------------------------------------------------------- tasks


@task
def read_invoices(week: int) -> list[Invoice]:
    with (DATA / "invoices.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["week"] == str(week)]
    if not rows:
        raise Skip(f"no invoice in week {week}")
    return [Invoice(row["number"], row["supplier"], float(row["amount"]), row["due"]) for row in rows]


@task
def hold_duplicates(invoices: list[Invoice]) -> list[str]:
    """Return the numbers of invoices that came more than once: each is paid once."""
    numbers = [invoice.number for invoice in invoices]
    repeated = sorted({number for number in numbers if numbers.count(number) > 1})
    if not repeated:
        raise Skip("every invoice came once")
    return repeated


@task
def make_batch(invoices: list[Invoice], week: int) -> Batch:
    return Batch(week, list(dict.fromkeys(invoices)))


@task(when=lambda batch: batch.total <= LIMIT)
def approve_by_rule(batch: Batch) -> Approval:
    return Approval(batch, f"rule (up to {LIMIT:,})")


@task(when=lambda batch: batch.total > LIMIT)
def approve_by_hand(batch: Batch, decide: Callable[[Batch], Decision]) -> Approval:
    decision = decide(batch)
    if not decision.approved:
        raise Skip(f"{decision.by} refused: {decision.remark}")
    return Approval(batch, f"{decision.by} ({decision.remark})")


@task
def pay(output: Path, by_rule: Approval | None = None, by_hand: Approval | None = None) -> str:
    """Write the file of transfers; the branch that did not run gives None."""
    approval = by_rule or by_hand
    assert approval is not None, "pay is skipped if both branches are"
    batch, path = approval.batch, output / f"transfers_{approval.batch.week}.csv"
    by_due_date = sorted(batch.invoices, key=lambda invoice: invoice.due)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(by_due_date)
    return f"{len(batch.invoices)} invoices, {batch.total:,.2f} in all, approved by {approval.by}"


@task(trigger="all_done")
def notify(context: TaskContext, paid: str | None, held: list[str] | None) -> str:
    """Tell how the week ended, whatever happened above."""
    why_not = context.upstream["read_invoices"].reason or context.upstream["approve_by_hand"].reason
    lines = [f"Paid: {paid}." if paid else f"Nothing is paid: {why_not}."]
    if held:
        lines.append(f"Came twice, paid once: {', '.join(held)}.")
    return "\n".join(lines)


read_invoices >> [make_batch, hold_duplicates]
make_batch >> [approve_by_rule, approve_by_hand] >> pay
[pay, hold_duplicates] >> notify
notify.after(read_invoices, approve_by_hand)  # only to see how they ended


# ---------------------------------------------------------------- who decides


def decided_earlier(batch: Batch) -> Decision:
    decisions = json.loads((DATA / "decisions.json").read_text(encoding="utf-8"))
    return Decision(**decisions[str(batch.week)])


def decided_here(batch: Batch) -> Decision:
    for invoice in batch.invoices:
        print(f"  {invoice.number}  {invoice.supplier:<20} {invoice.amount:>10,.2f}  due {invoice.due}")
    answer = input(f"Pay {batch.total:,.2f} for week {batch.week}? [y/N] ")
    return Decision("you", answer.strip().lower().startswith("y"), "at the terminal")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pay four weeks of invoices.")
    parser.add_argument("output", nargs="?", type=Path, help="where the files of transfers go")
    parser.add_argument("--ask", action="store_true", help="decide yourself about large batches")
    arguments = parser.parse_args()
    output = arguments.output or Path(tempfile.mkdtemp(prefix="payments_"))
    output.mkdir(parents=True, exist_ok=True)

    dag = DAG("payments", inputs={"output": output, "decide": decided_here if arguments.ask else decided_earlier})
    print(dag.visualize())
    for week in WEEKS:
        result = dag.run({"week": week})
        print(f"\n===== week {week}\n{result.summary()}\n\n{result['notify']}")
    print(f"\nWritten to {output}: {', '.join(sorted(path.name for path in output.glob('transfers_*.csv')))}")


if __name__ == "__main__":
    main()
