"""A small shop's data, the same on every machine: customers, products, orders, items, web events, targets.

    write_samples(directory)   CSV files, one JSON Lines file, one workbook
    postgres_script()          the same four tables as SQL

Standard library only. All persons are made of common given names and surnames, all addresses end in example.com, .net or
.org. The tables fit together: every reference exists, an order's total is the sum of its items, `updated_at` is never
before `created_at` and never in the future of `AS_OF`.
"""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

__all__ = ["AS_OF", "TABLES", "postgres_script", "tables", "write_samples"]

AS_OF: Final = datetime(2025, 6, 30, 18, 0, 0)  # noqa: DTZ001  local shop time, as such systems store it
_START: Final = datetime(2023, 7, 1, 8, 0, 0)  # noqa: DTZ001
_SEED: Final = 20250630

CUSTOMERS, PRODUCTS, ORDERS, ITEMS, EVENTS = 500, 120, 5_000, 15_000, 3_000

TABLES: Final[dict[str, dict[str, str]]] = {
    "customers": {
        "customer_id": "integer PRIMARY KEY", "name": "text NOT NULL", "email": "text NOT NULL", "phone": "text",
        "country": "char(2) NOT NULL", "city": "text NOT NULL", "postal_code": "text", "segment": "text NOT NULL",
        "newsletter": "boolean NOT NULL", "created_at": "timestamp NOT NULL", "updated_at": "timestamp NOT NULL",
    },
    "products": {
        "product_id": "integer PRIMARY KEY", "sku": "text NOT NULL UNIQUE", "name": "text NOT NULL",
        "category": "text NOT NULL", "price": "numeric(10,2) NOT NULL", "weight_kg": "numeric(8,3)",
        "stock": "integer NOT NULL", "discontinued": "boolean NOT NULL", "updated_at": "timestamp NOT NULL",
    },
    "orders": {
        "order_id": "integer PRIMARY KEY", "customer_id": "integer NOT NULL REFERENCES customers",
        "status": "text NOT NULL", "channel": "text NOT NULL", "currency": "char(3) NOT NULL",
        "total": "numeric(12,2) NOT NULL", "discount": "numeric(12,2)", "coupon": "text", "ordered_on": "date NOT NULL",
        "shipped_at": "timestamp", "created_at": "timestamp NOT NULL", "updated_at": "timestamp NOT NULL",
    },
    "order_items": {
        "order_id": "integer NOT NULL REFERENCES orders", "line": "integer NOT NULL",
        "product_id": "integer NOT NULL REFERENCES products", "quantity": "integer NOT NULL",
        "unit_price": "numeric(10,2) NOT NULL", "amount": "numeric(12,2) NOT NULL", "note": "text",
    },
}  # fmt: skip
"""Table → column → PostgreSQL type, in the order in which they can be filled."""

_GIVEN = (
    "Anna", "Ben", "Carla", "David", "Elif", "Farid", "Grace", "Hana", "Ivan", "Jana", "Kenji", "Lucía", "Mateo", "Nadia",
    "Omar", "Petra", "Quentin", "Rosa", "Søren", "Tomás", "Uma", "Valérie", "Wayan", "Xin", "Yusuf", "Zoë", "Björn", "Dewi",
)  # fmt: skip
_FAMILY = (
    "Andersen", "Berger", "Costa", "Dubois", "Eriksson", "Fischer", "García", "Haddad", "Ito", "Jovanović", "Kowalski",
    "Lestari", "Müller", "Nguyen", "O'Connor", "Pérez", "Rossi", "Santoso", "Tanaka", "Ünal", "Varga", "Wang", "Yılmaz",
    "Ångström",
)  # fmt: skip
_PLACES = (
    ("DE", "München", "80331", "+49 89"), ("DE", "Köln", "50667", "+49 221"), ("DE", "Dresden", "01067", "+49 351"),
    ("FR", "Orléans", "45000", "+33 2"), ("ES", "Málaga", "29001", "+34 952"), ("ID", "Bandung", "40111", "+62 22"),
    ("ID", "Surabaya", "60174", "+62 31"), ("JP", "京都", "600-8216", "+81 75"), ("TR", "İzmir", "35210", "+90 232"),
    ("US", "Boston", "02108", "+1 617"), ("PL", "Kraków", "30-001", "+48 12"), ("SE", "Malmö", "211 20", "+46 40"),
)  # fmt: skip
_GOODS = {
    "kitchen": ("Teapot", "Espresso cup", "Chef's knife", "Cutting board", "Rice cooker", "Whisk", "Crème brûlée set"),
    "garden": ("Watering can", "Pruning shears", "Seed tray", "Rake", "Lantern", "Hammock"),
    "office": ("Notebook", "Fountain pen", "Desk lamp", "Paper clips, 100 pcs", 'Monitor stand 27"', "Folder"),
    "outdoor": ("Tent", "Sleeping bag", "Headlamp", "Water bottle", "Trekking poles", "Camping stove"),
    "toys": ("Puzzle", "Wooden train", "Kite", "Building blocks", "Plush duck 🦆", "Card game"),
}
_SHADES = ("", " blue", " red", " green", " grey", " XL", " mini", " classic")
_NOTES = ("gift wrap", "fragile, please", 'says "thanks"', "leave at the door\nring twice", "ohne Rechnung")

Row = tuple[Any, ...]


@lru_cache(maxsize=1)
def tables() -> dict[str, list[Row]]:
    """Return the rows of all tables as Python values (None = NULL). Callers must not change the result."""
    rng = random.Random(_SEED)  # noqa: S311  sample data, no secret
    customers = [_customer(rng, number) for number in range(1, CUSTOMERS + 1)]
    products = list(_products(rng))
    orders, items = _orders(rng, customers, products)
    return {"customers": customers, "products": products, "orders": orders, "order_items": items}


def write_samples(directory: Path) -> list[Path]:
    """Write the sample files into `directory` (made if absent) and return their paths. Existing files are replaced.

    The same rows every time, wherever it runs. Raises `OSError`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, columns in TABLES.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_field(value) for value in row] for row in tables()[name])
        written.append(directory / f"{name}.csv")
        written[-1].write_text(text.getvalue(), encoding="utf-8", newline="")
    written.append(directory / "web_events.jsonl")
    lines = (json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n" for event in _events())
    written[-1].write_text("".join(lines), encoding="utf-8", newline="")
    written.append(directory / "targets.xlsx")
    written[-1].write_bytes(_workbook("Targets", _targets()))
    return written


def postgres_script(schema: str = "hfagent_demo") -> str:
    """Return SQL that makes `schema` anew with the four tables, filled: plain statements, in one transaction.

    An existing schema of that name is removed first, with everything in it.
    """
    quoted = '"' + schema.replace('"', '""') + '"'
    parts = ["BEGIN;", f"DROP SCHEMA IF EXISTS {quoted} CASCADE;", f"CREATE SCHEMA {quoted};"]
    for name, columns in TABLES.items():
        lines = [f'  "{column}" {_qualify(type_, quoted)}' for column, type_ in columns.items()]
        if name == "order_items":
            lines.append("  PRIMARY KEY (order_id, line)")
        parts.append(f"CREATE TABLE {quoted}.{name} (\n" + ",\n".join(lines) + "\n);")
        rows = tables()[name]
        for start in range(0, len(rows), 1000):
            values = ",\n".join("(" + ",".join(map(_sql, row)) + ")" for row in rows[start : start + 1000])
            parts.append(f"INSERT INTO {quoted}.{name} VALUES\n{values};")
    parts += [f"CREATE INDEX ON {quoted}.{name} (updated_at);" for name in ("customers", "products", "orders")]
    return "\n".join([*parts, "COMMIT;", ""])


# --- rows ---


def _customer(rng: random.Random, number: int) -> Row:
    given, family = rng.choice(_GIVEN), rng.choice(_FAMILY)
    country, city, postal, dial = rng.choice(_PLACES)
    created = _moment(rng, _START, AS_OF - timedelta(days=30))
    updated = _moment(rng, created, AS_OF) if rng.random() < 0.4 else created
    plain = "".join(c for c in f"{given}.{family}".lower() if c.isascii() and (c.isalpha() or c == "."))
    email = f"{plain}.{number}@example.{rng.choice(('com', 'net', 'org'))}"
    phone = f"{dial} 555 {rng.randrange(10_000):04d}" if rng.random() < 0.8 else None
    segment = rng.choices(("consumer", "business", "public"), (70, 25, 5))[0]
    return (
        number, f"{given} {family}", email, phone, country, city, postal if rng.random() < 0.95 else None, segment,
        rng.random() < 0.35, created, updated,
    )  # fmt: skip


def _products(rng: random.Random) -> Iterator[Row]:
    kinds = [(category, good) for category, goods in _GOODS.items() for good in goods]
    for number in range(1, PRODUCTS + 1):
        category, good = kinds[(number - 1) % len(kinds)]
        shade = _SHADES[(number - 1) // len(kinds) % len(_SHADES)]
        price = Decimal(rng.randrange(199, 24_999)) / 100
        weight = Decimal(rng.randrange(20, 9_000)) / 1000 if rng.random() < 0.9 else None
        updated = _moment(rng, _START, AS_OF)
        yield (
            number, f"{number:05d}-{category[:2].upper()}", good + shade, category, price, weight, rng.randrange(0, 400),
            rng.random() < 0.06, updated,
        )  # fmt: skip


def _orders(rng: random.Random, customers: Sequence[Row], products: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    lines_of = [1] * ORDERS
    for _ in range(ITEMS - ORDERS):
        lines_of[rng.randrange(ORDERS)] += 1
    orders: list[Row] = []
    items: list[Row] = []
    weights = [1 / (1 + i % 37) for i in range(len(customers))]  # a few buy often, many rarely
    buyers = rng.choices(customers, weights, k=ORDERS)
    drafts = sorted(((_moment(rng, buyer[9], AS_OF), buyer) for buyer in buyers), key=lambda d: (d[0], d[1][0]))
    for number, ((created, buyer), lines) in enumerate(zip(drafts, lines_of, strict=True), start=1):
        total = Decimal(0)
        for line, product in enumerate(rng.sample(products, lines), start=1):
            quantity = rng.choices((1, 2, 3, 5, 10), (60, 22, 10, 6, 2))[0]
            amount = product[4] * quantity
            note = rng.choice(_NOTES) if rng.random() < 0.04 else None
            items.append((number, line, product[0], quantity, product[4], amount, note))
            total += amount
        orders.append(_order(rng, number, created, buyer, total))
    return orders, items


def _order(rng: random.Random, number: int, created: datetime, buyer: Row, total: Decimal) -> Row:
    age = (AS_OF - created).days
    status = (
        rng.choices(("shipped", "cancelled", "returned"), (90, 6, 4))[0] if age > 5 else rng.choice(("new", "paid"))
    )
    shipped = min(created + timedelta(hours=rng.randrange(6, 96)), AS_OF) if status in ("shipped", "returned") else None
    updated = _moment(rng, shipped or created, AS_OF) if rng.random() < 0.2 else (shipped or created)
    coupon = rng.choice(("SPRING25", "WELCOME10", "0042")) if rng.random() < 0.15 else None
    discount = (total / 10).quantize(Decimal("0.01")) if coupon else None
    channel = rng.choices(("web", "app", "store"), (55, 30, 15))[0]
    return (
        number, buyer[0], status, channel, "EUR", total, discount, coupon, created.date(), shipped, created, updated,
    )  # fmt: skip


def _events() -> Iterator[dict[str, Any]]:
    """Visits of the shop's site: nested, with keys that only some events have, one UTC instant each."""
    rng = random.Random(_SEED + 1)  # noqa: S311  sample data
    now = AS_OF - timedelta(days=14)
    for number in range(1, EVENTS + 1):
        now += timedelta(seconds=rng.randrange(20, 700))
        kind = rng.choices(("view", "search", "cart", "purchase"), (62, 20, 12, 6))[0]
        event: dict[str, Any] = {
            "event_id": f"e{number:07d}",
            "at": now.isoformat() + "Z",
            "type": kind,
            "session": f"{rng.getrandbits(48):012x}",
            "customer_id": rng.randrange(1, CUSTOMERS + 1) if rng.random() < 0.6 else None,
            "device": {"os": rng.choice(("iOS", "Android", "Linux", "Windows")), "mobile": rng.random() < 0.6},
        }
        if kind in ("view", "cart"):
            event["product_id"] = rng.randrange(1, PRODUCTS + 1)
        if kind == "search":
            event["query"] = rng.choice(("teapot", "crème brûlée", "tent 2 persons", "🦆", "lamp"))
        if kind == "purchase":
            event["order_id"] = rng.randrange(ORDERS - 200, ORDERS + 1)
            event["amount"] = rng.randrange(500, 90_000) / 100
        yield event


def _targets() -> list[list[Any]]:
    """Sales targets per category and quarter."""
    rng = random.Random(_SEED + 2)  # noqa: S311  sample data
    rows: list[list[Any]] = [["category", "quarter", "starts_on", "revenue_target", "orders_target", "approved"]]
    for year in (2024, 2025):
        for quarter in range(1, 5):
            for category in _GOODS:
                starts = date(year, 3 * quarter - 2, 1)
                rows.append([
                    category, f"{year}-Q{quarter}", starts, rng.randrange(20, 120) * 500 + 0.5, rng.randrange(80, 400),
                    year < 2025 or quarter < 4,
                ])  # fmt: skip
    return rows


def _moment(rng: random.Random, after: datetime, before: datetime) -> datetime:
    seconds = int((before - after).total_seconds())
    return (
        after + timedelta(seconds=rng.randrange(seconds + 1), microseconds=rng.randrange(1000) * 1000)
        if seconds > 1
        else after
    )


# --- forms ---


def _field(value: Any) -> str:
    """A value as a CSV field."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat(" ") if isinstance(value, datetime) else str(value)


def _sql(value: Any) -> str:
    """A value as an SQL literal."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return str(value)
    text = value.isoformat(" ") if isinstance(value, datetime) else str(value)
    return "'" + text.replace("'", "''") + "'"


def _qualify(type_: str, schema: str) -> str:
    return type_.replace("REFERENCES ", f"REFERENCES {schema}.")


def _workbook(sheet: str, rows: Iterable[Sequence[Any]]) -> bytes:
    """The smallest workbook that spreadsheet programs open: one sheet, texts inline, one style for dates."""
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = "".join(_xml_cell(f"{chr(65 + i)}{number}", value) for i, value in enumerate(row))
        lines.append(f'<row r="{number}">{cells}</row>')
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{kind}.styles+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        f'<sheet name="{escape(sheet)}" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId2" Type="{office}/styles" Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{main}"><fonts count="1"><font/></fonts><fills count="2">'
        '<fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill></fills>'
        '<borders count="1"><border/></borders><cellStyleXfs count="1"><xf/></cellStyleXfs>'
        '<cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="14" applyNumberFormat="1"/></cellXfs>'
        '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{"".join(lines)}</sheetData></worksheet>',
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            entry = zipfile.ZipInfo(
                name, (2025, 6, 30, 18, 0, 0)
            )  # a fixed time: nothing in it depends on when it was made
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n' + text)
    return out.getvalue()


def _xml_cell(place: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f'<c r="{place}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, date):
        return f'<c r="{place}" s="1"><v>{(value - date(1899, 12, 30)).days}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{place}"><v>{value}</v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'
