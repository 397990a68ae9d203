"""`python -m scripts.sync_scale --orders 200000`: what reading a Smartpay of that size takes, against bare clients.

Into the database that DATABASE_URL names, which has to be empty; a new SQLite file without it. Says at which rate the
sandbox serves pages to a client that throws them away, at which `sync_orders` mirrors them and in how much memory, a
full reading again, and how fast pages are written beside rows that are only inserted (executemany, on PostgreSQL COPY).
The last line says the shares once more as JSON, for `make bench`. With --latency, each answer waits so many seconds, as
across a network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tests.environment  # noqa: F401  every other setting
from tests.sandbox import ROOT, Sandbox

PAGE = 100
SUMS = {"order": {"captured", "refunded", "reserved"}, "payment": {"refunded", "reserved", "external"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=10_000)
    parser.add_argument("--written", type=int, default=10_000, help="orders to write without reading")
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, Sandbox(orders=options.orders) as sandbox:
        os.environ.setdefault("DATABASE_URL", f"sqlite:///{Path(home) / 'scale.sqlite3'}")
        os.environ |= {
            "STATE_DIR": home,
            "SMARTPAY_API_URL": sandbox.url,
            "SMARTPAY_SECRET_KEY": sandbox.secret_key,
            "DJANGO_SETTINGS_MODULE": "dashboard.settings",
            "PYTHONUNBUFFERED": "1",
        }
        if options.latency:
            sandbox.fault("slow", method=None, path="", seconds=options.latency, times=None)
        bare = read_bare(sandbox)
        subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], cwd=ROOT, check=True)
        told = {}
        for arguments in (["sync_orders"], ["sync_orders", "--full"]):
            seconds, objects, memory = synced(arguments)
            rate = objects / seconds
            told[" ".join(arguments)] = rate / bare
            told["memory"] = max(memory)
            print(
                f"{' '.join(arguments)}: {objects:,} objects in {seconds:.0f} s, {rate:,.0f}/s, "
                f"{rate / bare:.0%} of the bare client; memory {memory} MB at each tenth"
            )
        if options.written:
            told["written"] = write(sandbox, options.written)
        print(json.dumps(told))


def pages(sandbox: Sandbox, name: str) -> Iterator[list[dict[str, Any]]]:
    token = ""
    while True:
        query = {"maxResults": PAGE, "expand": "all"} | ({"pageToken": token} if token else {})
        page = sandbox.api("GET", f"/{name}", params=query).json()
        yield page["data"]
        if not (token := page.get("nextPageToken", "")):
            return


def read_bare(sandbox: Sandbox) -> float:
    began, seen = time.monotonic(), 0
    for name in ("checkout-sessions", "orders", "refunds"):
        seen += sum(len(page) for page in pages(sandbox, name))
    seconds = time.monotonic() - began
    print(f"bare client: {seen:,} objects in {seconds:.0f} s, {seen / seconds:,.0f}/s")
    return seen / seconds


def synced(arguments: list[str]) -> tuple[float, int, list[int]]:
    """Seconds, objects read, and the resident memory in MB at each tenth of the pages; the highest comes last."""
    began = time.monotonic()
    seen: dict[str, int] = {}
    process = subprocess.Popen(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    samples: list[tuple[int, int]] = []
    for line in process.stdout or ():
        name, _pages, count = line.split()[:3]
        if count.startswith("seen="):
            seen[name] = int(count.removeprefix("seen="))
            samples.append(resident(process.pid))
    if process.wait():
        raise SystemExit(process.returncode)
    seconds = time.monotonic() - began
    memory = [now for now, _most in samples[:: max(1, len(samples) // 10)]] + [samples[-1][1]]
    return seconds, sum(seen.values()), memory


def resident(pid: int) -> tuple[int, int]:
    """Memory of a process in MB: now, and at most."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except FileNotFoundError:
        return 0, 0
    now, most = (int(lines.get(name, "0").split()[0]) // 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def write(sandbox: Sandbox, orders: int) -> float:
    """Which share of the rate of bare inserting the mirror writes at."""
    import django

    django.setup()
    from django.db import connection, transaction

    from refunds import clock, mirror, smartpay
    from refunds.models import Fragment, Order, Payment, SmartpayRefund

    def emptied() -> None:
        for model in (SmartpayRefund, Payment, Order, Fragment):
            model._default_manager.all()._raw_delete("default")

    read: list[list[smartpay.CheckoutSession]] = []
    for listed in pages(sandbox, "checkout-sessions"):
        read.append([smartpay.CheckoutSession.parse(session) for session in listed])
        if len(read) * PAGE >= orders:
            break
    emptied()
    began, count = time.monotonic(), 0
    for page in read:
        sessions = {session.order.id: session for session in page if session.order}
        with transaction.atomic():
            mirror.record_orders(
                [session.order for session in sessions.values() if session.order],
                read_at=clock.now(),
                sessions=sessions,
            )
        count += len(sessions)
    mirrored = count / (time.monotonic() - began)
    rows = {}
    with connection.cursor() as cursor:
        for model in (Order, Payment):
            columns = [str(field.column) for field in model._meta.concrete_fields if not field.generated]
            names = ", ".join(map(connection.ops.quote_name, columns))
            sums = SUMS[model._meta.model_name or ""]  # begin at 0; the triggers move them
            cursor.execute(f"SELECT {names} FROM {model._meta.db_table} ORDER BY 1")  # noqa: S608
            values = [
                [0 if column in sums else cell for column, cell in zip(columns, row, strict=True)]
                for row in cursor.fetchall()
            ]
            rows[model] = names, columns, values
        emptied()
        began = time.monotonic()
        with transaction.atomic():
            for model, (names, columns, values) in rows.items():
                table = model._meta.db_table
                if connection.vendor == "postgresql":
                    from psycopg.types.json import Jsonb

                    with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                        for row in values:
                            copy.write_row([Jsonb(cell) if isinstance(cell, list) else cell for cell in row])
                else:
                    marks = ", ".join(["%s"] * len(columns))
                    cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)  # noqa: S608
        raw = count / (time.monotonic() - began)
    print(
        f"writing {count:,} orders with their payments: {mirrored:,.0f}/s by the page, {raw:,.0f}/s raw, "
        f"{mirrored / raw:.1%}"
    )
    return mirrored / raw


if __name__ == "__main__":
    main()
