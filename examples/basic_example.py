"""A small ETL: three files in, a clean SQLite database and a sales report out.

Shows ``@task``, wiring with ``>>``, fan-out and fan-in, inputs, retries, the picture of a graph and the summary of a
run. The files in ``data/`` have what real ones have: orders sent twice, unknown customers, days that do not exist.

Run it with ``python examples/basic_example.py [DIRECTORY]``. It writes ``shop.db``, ``rejected.csv`` and ``report.txt``
into the directory, or into a temporary one.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

from flowkit import DAG, task

DATA = Path(__file__).resolve().parent / "data"


class Order(NamedTuple):
    id: str
    customer: str
    sku: str
    quantity: int
    day: date


class Customer(NamedTuple):
    id: str
    name: str
    country: str


class Product(NamedTuple):
    sku: str
    name: str
    category: str
    cents: int


class Sale(NamedTuple):
    """An order with what the other files know about it."""

    order: Order
    customer: Customer
    product: Product

    @property
    def cents(self) -> int:
        return self.order.quantity * self.product.cents


class Checked(NamedTuple):
    sales: list[Sale]
    rejected: list[dict[str, str]]


# ---------------------------------------------------------------- extract


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{column: value.strip() for column, value in row.items()} for row in csv.DictReader(file)]


@task(retries=2, delay=0.1, retry_on=OSError)
def extract_orders(source: Path) -> list[dict[str, str]]:
    return read_csv(source / "orders.csv")


@task(retries=2, delay=0.1, retry_on=OSError)
def extract_customers(source: Path) -> dict[str, Customer]:
    rows = read_csv(source / "customers.csv")
    return {row["customer_id"]: Customer(row["customer_id"], row["name"], row["country"].upper()) for row in rows}


@task(retries=2, delay=0.1, retry_on=OSError)
def extract_products(source: Path) -> dict[str, Product]:
    rows = json.loads((source / "products.json").read_text(encoding="utf-8"))
    return {row["sku"]: Product(row["sku"], row["name"], row["category"], round(row["price"] * 100)) for row in rows}


# ---------------------------------------------------------------- clean and join


def read_day(text: str) -> date:
    """Return the day that *text* names, as 2024-03-14 or as 14.03.2024."""
    try:
        return datetime.strptime(text, "%d.%m.%Y" if "." in text else "%Y-%m-%d").date()
    except ValueError:
        raise ValueError(f"no day {text!r}") from None


def read_order(row: dict[str, str]) -> Order:
    """Return *row* as an order; a ValueError says what is wrong with it."""
    quantity = row["quantity"]
    if not quantity.isdecimal() or int(quantity) < 1:
        raise ValueError(f"no quantity {quantity!r}")
    return Order(row["order_id"], row["customer_id"], row["sku"].upper(), int(quantity), read_day(row["ordered_on"]))


@task
def join(orders: list[dict[str, str]], customers: dict[str, Customer], products: dict[str, Product]) -> Checked:
    """Join the orders that can be used, and keep the others with the reason."""
    sales: dict[str, Sale] = {}
    rejected: list[dict[str, str]] = []
    for row in orders:
        try:
            order = read_order(row)
            if order.id in sales:
                raise ValueError("sent twice")
            if order.customer not in customers:
                raise ValueError(f"no customer {order.customer!r}")
            if order.sku not in products:
                raise ValueError(f"no product {order.sku!r}")
        except ValueError as error:
            rejected.append({**row, "reason": str(error)})
        else:
            sales[order.id] = Sale(order, customers[order.customer], products[order.sku])
    return Checked(list(sales.values()), rejected)


# ---------------------------------------------------------------- aggregate


@task
def sum_months(checked: Checked) -> Counter[str]:
    months: Counter[str] = Counter()
    for sale in checked.sales:
        months[f"{sale.order.day:%Y-%m}"] += sale.cents
    return months


@task
def sum_categories(checked: Checked) -> Counter[str]:
    categories: Counter[str] = Counter()
    for sale in checked.sales:
        categories[sale.product.category] += sale.cents
    return categories


@task
def sum_customers(checked: Checked) -> Counter[str]:
    customers: Counter[str] = Counter()
    for sale in checked.sales:
        customers[f"{sale.customer.name} ({sale.customer.country})"] += sale.cents
    return customers


# ---------------------------------------------------------------- load


@task
def load_database(checked: Checked, output: Path) -> int:
    """Write the sales into a new ``shop.db`` and return how many it has."""
    path = output / "shop.db"
    path.unlink(missing_ok=True)
    rows = [(s.order.id, s.order.day.isoformat(), s.customer.id, s.product.sku, s.cents) for s in checked.sales]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE sale (id TEXT PRIMARY KEY, day TEXT, customer TEXT, sku TEXT, cents INTEGER)")
        database.executemany("INSERT INTO sale VALUES (?, ?, ?, ?, ?)", rows)
        (count,) = database.execute("SELECT count(*) FROM sale").fetchone()
    return int(count)


@task
def write_rejected(checked: Checked, output: Path) -> Counter[str]:
    """Write the rows that were left out to ``rejected.csv``, and count the reasons."""
    with (output / "rejected.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["order_id", "customer_id", "sku", "quantity", "ordered_on", "reason"])
        writer.writeheader()
        writer.writerows(checked.rejected)
    return Counter(row["reason"] for row in checked.rejected)


def table(title: str, amounts: list[tuple[str, int]]) -> list[str]:
    most = max(cents for _, cents in amounts)
    lines = [f"{name:<24} {cents / 100:>10,.2f}  {'█' * round(30 * cents / most)}" for name, cents in amounts]
    return ["", title, "-" * len(title), *lines]


@task
def report(
    months: Counter[str],
    categories: Counter[str],
    customers: Counter[str],
    loaded: int,
    rejected: Counter[str],
    output: Path,
) -> str:
    """Write ``report.txt`` and return its text."""
    lines = [f"{loaded} sales, {months.total() / 100:,.2f} in all; {rejected.total()} rows rejected"]
    lines += table("By month", sorted(months.items()))
    lines += table("By category", categories.most_common())
    lines += table("Best customers", customers.most_common(8))
    lines += ["", "Rejected", "--------", *(f"{count:>3} × {reason}" for reason, count in rejected.most_common())]
    text = "\n".join(lines)
    (output / "report.txt").write_text(text + "\n", encoding="utf-8")
    return text


[extract_orders, extract_customers, extract_products] >> join
join >> [sum_months, sum_categories, sum_customers, load_database, write_rejected] >> report


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="shop_"))
    output.mkdir(parents=True, exist_ok=True)
    dag = DAG("shop")
    print(dag.visualize())
    result = dag.run({"source": DATA, "output": output})
    print(f"\n{result.summary()}\n\n{result['report']}\n")
    print(f"Written to {output}: shop.db, rejected.csv, report.txt")


if __name__ == "__main__":
    main()
