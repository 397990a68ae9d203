"""django-oscar's dashboard over equal orders: its list, and the searches of orders that it can answer, beside ours.

It has a Python of its own below .state/bench, installed once at the versions of shop/requirements.txt. Where that
cannot be done, what was measured the last time is told, with its date.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

from scripts.bench import databases
from scripts.bench.pages import (
    FLOOR,
    LISTS,
    PEER_ROUNDS,
    ROUNDS,
    SEARCHES,
    TOO_LONG,
    WARM_UP,
    Page,
    Table,
    Visitor,
    measure,
)
from scripts.bench.site import HOME, PYTHON, ROOT, Part, environment, served, started, wait_until_up
from scripts.bench.site import run as output
from scripts.postgres import free_port

# The field that its form has for it. Mails, kana, parts of a name and two words it can't look for.
ANSWERED = {
    "list, first page": "",
    "common family name": "name",
    "given name": "name",
    "rare family name": "name",
    "beginning of an order ID": "order_number",
    "no hit": "name",
}
THEIRS = "oscar: "
FASTER = 30  # than its searches; the list has no bar
REQUIREMENTS = ROOT / "scripts" / "bench" / "shop" / "requirements.txt"
MADE_OF = (*databases.MADE_OF, "scripts/bench/shop")
LAST = HOME / "oscar.json"
HEAD = f"""## django-oscar

{{size:,}} orders; all pages in turns, ours {ROUNDS} times and its own, as the admin's, in the first
{PEER_ROUNDS} of them. The bar: its searches take ≥ {FASTER} × ours. Where the last column tells less, an empty view
would miss it too.

| | page | rows, ours / oscar | ours, median / p95 ms | oscar, median / p95 ms | oscar ÷ ours | oscar ÷ empty view |
|---|---|---|---|---|---|---|"""


def run() -> Part:
    if python := installed():
        part = measured(python)
        told = {"on": f"{datetime.now(tz=UTC):%Y-%m-%d}", "text": part.text, "missed": part.missed}
        LAST.write_text(json.dumps(told))
        return part
    if not LAST.exists():
        return Part("## django-oscar\n\nCould not be installed.\n", ["django-oscar was never measured"])
    told = json.loads(LAST.read_text())
    note = f"django-oscar could not be installed for this run: what follows was measured on {told['on']}."
    return Part(told["text"].replace("\n", f"\n\n**{note}**\n", 1), told["missed"])


def installed() -> Path | None:
    """Its Python; None where the packages are not to be had."""
    home, uv = HOME / "oscar", str(Path(PYTHON).with_name("uv"))
    python, stamp = home / "bin" / "python", home / "requirements.txt"
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    for command in (
        [uv, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", PYTHON, str(home)],
        [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(REQUIREMENTS)],
    ):
        if subprocess.run(command, check=False, cwd=ROOT).returncode:
            return None
    stamp.write_text(REQUIREMENTS.read_text())
    return python


def measured(python: Path) -> Part:
    size, missed = max(databases.SIZES), list[str]()
    lines = [HEAD.format(size=size)]
    for engine in databases.ENGINES:
        with databases.server() as server:
            table = compared(server, engine, size, python)
        for name in ANSWERED:
            ours, theirs = table[name], table[THEIRS + name]
            faster = theirs.median / ours.median
            rows = f"{max(ours.rows, 0)} / {max(theirs.rows, 0)}"
            floor = theirs.median / table[FLOOR].median
            lines.append(f"| {engine} | {name} | {rows} | {ours} | {theirs} | {faster:.0f} | {floor:.0f} |")
            print(lines[-1], flush=True)
            if name in SEARCHES and faster < FASTER:
                missed.append(f"{engine}, {size:,}: oscar / ours, {name}: {faster:.2f}, at least {FASTER}")
    return Part("\n".join([*lines, ""]), missed)


def compared(server: str, engine: str, size: int, python: Path) -> Table:
    ours = databases.orders(server, engine, size)
    source = databases.orders(server, "SQLite", size).removeprefix("sqlite:///")
    fill = [str(python), "-m", "scripts.bench.shop.fill", source]
    shop = databases.data_set(
        server, engine, f"oscar-{size}", MADE_OF, lambda url: output(fill, shop_environment(url))
    )
    session = output(fill, shop_environment(shop)).strip()
    visitor, table = Visitor(environment(ours)), Table()
    with served(environment(ours)) as site, shop_served(python, shop) as oscar:
        pages = [visitor.page(FLOOR, f"{site}/bench/floor/")]
        for name, box in ANSWERED.items():
            pages.append((visitor.list if name in LISTS else visitor.search)(site, name))
            query = urlencode({box: SEARCHES[name].format(**visitor.door)}) if box else ""
            address = f"{oscar}/dashboard/orders/?{query}"
            pages.append(Page(THEIRS + name, address, {"sessionid": session}, PEER_ROUNDS))
        # Each of our connections remembers its statements; the shop's remember none.
        own = [page for page in pages if not page.name.startswith(THEIRS)]
        measure([replace(page, rounds=WARM_UP) for page in own], Table(), warm_up=False)
        measure(pages, table)
    return table


@contextmanager
def shop_served(python: Path, url: str) -> Iterator[str]:
    """As many processes and threads as our own."""
    port = free_port()
    command = [
        str(python),
        "-m",
        "gunicorn",
        "django.core.wsgi:get_wsgi_application()",
        "--no-control-socket",
    ]
    command += ["--worker-class", "gthread", "--workers", "2", "--threads", "8", "--log-level", "warning"]
    command += ["--bind", f"127.0.0.1:{port}", "--timeout", str(10 * TOO_LONG)]
    with started(command, shop_environment(url)) as process:
        wait_until_up(process, f"http://127.0.0.1:{port}/static/")
        yield f"http://127.0.0.1:{port}"


def shop_environment(url: str) -> dict[str, str]:
    return environment(url, DJANGO_SETTINGS_MODULE="scripts.bench.shop.settings")
