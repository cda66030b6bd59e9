"""A workflow written as Python: nodes are functions, edges are the calls between them.

python -m qflow run examples/client/orders.py 'lines=["tea;2;3.50","pot;1;24.00"]' --watch
python -m qflow run examples/client/orders.py 'lines=["tea;2;3.50"]' --local
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

import qflow

FREE_SHIPPING_FROM = Decimal(20)


@dataclass
class Line:
    """One line of an order."""

    article: str
    count: int
    price: Decimal


@dataclass
class Invoice:
    """What the customer gets."""

    total: Decimal
    note: str


@qflow.node
def parse(line: str) -> Line:
    """Read `article;count;price`."""
    article, count, price = line.split(";")
    return Line(article, int(count), Decimal(price))


@qflow.node
def amount(count: list[int], price: list[Decimal]) -> Decimal:
    """Add up what the lines cost."""
    return sum((n * each for n, each in zip(count, price, strict=True)), start=Decimal(0))


@qflow.node(retry=qflow.Retry(max_retries=2), timeout=timedelta(seconds=10))
def shipping(total: Decimal) -> Decimal:
    """Say what sending it costs."""
    return Decimal(0) if total >= FREE_SHIPPING_FROM else Decimal("4.90")


@qflow.node
def invoice(goods: Decimal, sending: Decimal) -> Invoice:
    """Put the invoice together."""
    return Invoice(goods + sending, "free shipping" if sending == 0 else "plus shipping")


@qflow.workflow
def order(lines: list[str]) -> Invoice:
    """Turn the lines of an order into an invoice."""
    parsed = parse.map(lines)
    goods = amount(parsed.count, parsed.price)  # type: ignore[attr-defined,arg-type]  # of each line
    return invoice(goods, shipping(goods))
