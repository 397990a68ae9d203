"""A scan goes on where it was killed, is the same when it is repeated, and is patient with a Smartpay that is not."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import models
from hypothesis import HealthCheck, given, settings, strategies

from dashboard.models import User
from refunds import mirror, scanning, services, smartpay
from refunds.models import Evidence, Fragment, Order, Payment, Refund, SmartpayRefund, SyncCursor
from tests.sandbox import ROOT, Sandbox
from tests.test_mirror import CREATED, ledger_row, order_of, payment_of, refund_of, session_of

pytestmark = pytest.mark.django_db

MODELS: list[type[models.Model]] = [Order, Fragment, Payment, SmartpayRefund]


def picture() -> list[list[dict[str, Any]]]:
    """All that the mirror holds, but for when it was read."""
    rows = [[dict(row) for row in model._default_manager.order_by("pk").values()] for model in MODELS]
    for row in (row for table in rows for row in table):
        row.pop("read_at", None)  # fragments have none
    return rows


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the scan paused; nothing really sleeps."""
    taken: list[float] = []
    monkeypatch.setattr(scanning.time, "sleep", taken.append)  # type: ignore[attr-defined]
    return taken


def observed(seen: smartpay.Refund, *, read_at: datetime, kind: str) -> None:
    assert kind in {Evidence.Kind.LIST, Evidence.Kind.READ}
    mirror.record_refund(seen, read_at=read_at)


def sync(client: smartpay.Client, **options: Any) -> list[str]:
    lines: list[str] = []
    scanning.sync(client, observe=observed, progress=lines.append, **options)
    return lines


def pages(lines: list[str]) -> dict[str, int]:
    """How many pages of each list were read."""
    return {line.split()[0]: int(line.split()[1].removeprefix("pages=")) for line in lines}


# --- Over real HTTP -----------------------------------------------------------------------------------------


def test_sync_orders_mirrors_everything_and_twice_is_once(sandbox: Sandbox) -> None:
    output = StringIO()
    call_command("sync_orders", stdout=output)

    first = picture()
    assert (
        output.getvalue().splitlines()[0].startswith("checkout-sessions pages=1 seen=100 changed=100 rate=")
    )
    assert (Order.objects.count(), Payment.objects.count() > 200, SmartpayRefund.objects.count() > 40) == (
        300,
        True,
        True,
    )
    assert Order.objects.exclude(name_folded="").count() > 200
    assert Order.objects.exclude(token_id="").filter(name_folded="").exists()
    for payment in Payment.objects.all():
        refunds = payment.smartpay_refunds.exclude(status="failed")
        assert payment.external == sum(refund.amount for refund in refunds)
    for options in ({}, {"full": True}):
        call_command("sync_orders", stdout=output, **options)
        assert picture() == first
    assert set(SyncCursor.objects.values_list("pk", "page_token", "scan_started_at")) == {
        ("checkout-sessions", "", None),
        ("orders", "", None),
        ("refunds", "", None),
    }
    assert (
        SyncCursor.objects.filter(last_read_at__gt=datetime.now(tz=UTC) - timedelta(minutes=1)).count() == 3
    )


class Killed(BaseException):
    """The process dies here."""


def dying(*, at: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes functions that record die at so many of their calls, taken together: written, and not committed."""
    written = [0]

    def made(record: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any, **options: Any) -> Any:
            answer = record(*arguments, **options)
            written[0] += 1
            if written[0] == at:
                raise Killed
            return answer

        return recorded

    return made


# 15 pages of sessions, 15 of orders, 3 of refunds, each of which is written in two steps. On SQLite, pages that were
# read while others were written are written together, and die together.
@pytest.mark.parametrize(
    ("page", "done"), [(1, 0), (15, 14), (16, 15), (30, 29), (31, 30), (32, 30), (33, 31)]
)
def test_a_scan_killed_at_a_page_goes_on_where_it_was_committed_and_ends_alike(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, page: int, done: int
) -> None:
    sandbox.switch(max_results_limit=20)
    client = smartpay.client()
    dies = dying(at=page)
    monkeypatch.setattr(mirror, "record_orders", dies(mirror.record_orders))
    monkeypatch.setattr(mirror, "record_refunds", dies(mirror.record_refunds))
    read: list[str] = []
    with pytest.raises(Killed):
        scanning.sync(client, observe=services.observe_refund, progress=read.append)
    assert done - scanning.PAGES_AHEAD < len(read) <= done
    resumed = sync(client)
    assert sum(pages(resumed).values()) == 33 - len(read) + len(read) // 15  # a list that was done is swept
    disturbed = picture()

    for model in (SmartpayRefund, Payment, Order, Fragment, SyncCursor):
        model.objects.all().delete()
    scanning.sync(client, observe=services.observe_refund)
    assert disturbed == picture()


class Processes:
    """Commands of manage.py, each in a process of its own, on databases in files."""

    def __init__(self, home: Path, sandbox: Sandbox) -> None:
        self.home, self.sandbox = home, sandbox
        for database in ("killed", "whole"):
            self.lines(database, "migrate", "--verbosity", "0")

    def start(self, database: str, *command: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "DATABASE_URL": f"sqlite:///{self.home / database}",
            "SMARTPAY_API_URL": self.sandbox.url,
            "SMARTPAY_SECRET_KEY": self.sandbox.secret_key,
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    def lines(self, database: str, *command: str) -> list[str]:
        output, _none = self.start(database, *command).communicate(timeout=60)
        return output.splitlines()

    def kill(self, after: int, seconds: float, *command: str) -> None:
        """SIGKILL to whoever mirrors, so many lines of progress and seconds after its start."""
        with self.start("killed", "sync_orders", *command) as process:
            assert process.stdout is not None
            for _line in zip(range(after), process.stdout, strict=False):
                pass
            time.sleep(seconds)
            process.kill()

    def mirror(self, database: str) -> list[str]:
        """All that it holds, but for when it was read."""
        models = ("refunds.order", "refunds.payment", "refunds.smartpayrefund")
        dump = self.lines(database, "dumpdata", *models, "--indent", "1")
        return [line for line in dump if '"read_at"' not in line]


@pytest.mark.sqlite  # processes of their own need a file of their own
def test_a_process_killed_in_the_middle_goes_on_at_its_page(tmp_path: Path) -> None:
    with Sandbox(orders=300) as sandbox:
        sandbox.switch(max_results_limit=20)
        processes = Processes(tmp_path, sandbox)
        processes.kill(19, 0)  # 15 pages of sessions, 4 of orders
        resumed = processes.lines("killed", "sync_orders")
        whole = processes.lines("whole", "sync_orders")
        assert pages(whole)["orders"] == 15
        assert 0 < pages(resumed)["orders"] <= 11
        assert processes.mirror("killed") == processes.mirror("whole")
        assert len(processes.mirror("whole")) > 5000


@pytest.mark.sqlite  # processes of their own need a file of their own
def test_the_mirror_equals_smartpay_whenever_its_process_was_killed(tmp_path: Path) -> None:
    """SYNC_KILLS deaths (3) at random moments; `make kills-sync` takes 20."""
    seed = int(os.environ.get("SYNC_SEED", random.randrange(10**6)))
    fate = random.Random(seed)
    with Sandbox(orders=300) as sandbox:
        sandbox.switch(max_results_limit=20)
        processes = Processes(tmp_path, sandbox)
        for _death in range(int(os.environ.get("SYNC_KILLS", "3"))):
            processes.kill(fate.randrange(33), fate.uniform(0, 0.1), *fate.choice([[], ["--full"]]))
        processes.lines("killed", "sync_orders")
        processes.lines("whole", "sync_orders")
        assert processes.mirror("killed") == processes.mirror("whole"), f"SYNC_SEED={seed}"
        listed = {
            name: {one["id"]: one for page in listing(sandbox, name) for one in page}
            for name in ("orders", "refunds")
        }
        shown = json.loads(
            "\n".join(processes.lines("killed", "dumpdata", "refunds.order", "refunds.smartpayrefund"))
        )
        kept = {row["fields"].get("order_id") or row["pk"]: row["fields"] for row in shown}
        assert kept.keys() == listed["orders"].keys() | listed["refunds"].keys()
        for one_id, one in (listed["orders"] | listed["refunds"]).items():
            assert (kept[one_id]["amount"], kept[one_id]["status"]) == (one["amount"], one["status"])


def listing(sandbox: Sandbox, name: str) -> Iterator[list[dict[str, Any]]]:
    token = ""
    while True:
        page = sandbox.api("GET", f"/{name}", params={"pageToken": token} if token else {}).json()
        yield page["data"]
        if not (token := page.get("nextPageToken", "")):
            return


@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        ({"mode": "rate_limited", "seconds": 7, "times": 2}, [7, 7]),
        ({"mode": "rate_limited", "seconds": 9000, "times": 1}, [60]),
        ({"mode": "error", "status": 500, "times": 2}, [1, 2]),
        ({"mode": "garbage", "times": 1}, [1]),
        ({"mode": "truncated", "times": 1}, [1]),
    ],
)
def test_a_page_that_misbehaves_is_read_again(
    sandbox: Sandbox, naps: list[float], fault: dict[str, Any], waited: list[float]
) -> None:
    sandbox.fault(method="GET", path="/v1/orders", **fault)
    sync(smartpay.client())
    assert Order.objects.count() == 300
    assert naps == waited


def test_a_smartpay_that_stays_broken_is_given_up_and_gone_on_with_later(
    sandbox: Sandbox, naps: list[float]
) -> None:
    sandbox.fault("error", method="GET", path="/v1/orders", status=500, times=None)
    with pytest.raises(CommandError, match="AMBIGUOUS HTTP 500"):
        call_command("sync_orders", stdout=StringIO())
    assert naps == [1, 2, 4, 8, 16]
    sandbox.clear_faults()
    assert pages(sync(smartpay.client())) == {"checkout-sessions": 1, "orders": 3, "refunds": 1}


@pytest.mark.parametrize("mode", ["unauthorized", "forbidden"])
def test_a_smartpay_that_refuses_us_is_not_asked_again(
    sandbox: Sandbox, naps: list[float], mode: str
) -> None:
    sandbox.fault(mode, method="GET", path="/v1/orders", times=None)
    with pytest.raises(smartpay.NotAccepted):
        sync(smartpay.client())
    assert naps == []


# --- Lists made by hand -------------------------------------------------------------------------------------


class Lists:
    """Smartpay's lists, `size` objects a page; the token of a page is where it begins."""

    def __init__(self, **lists: list[Any]) -> None:
        self.lists = {"sessions": [], "orders": [], "refunds": []} | lists
        self.size = 2
        self.unlisted: list[Any] = []  # what is there and in no list
        self.read: list[tuple[str, str]] = []
        self.expired: list[str] = []  # tokens that are refused, once each
        self.refusal: smartpay.SmartpayError = smartpay.Refused("token", http_status=400)
        self.unreadable: set[str] = set()  # ids of what is listed in another form
        self.broken: tuple[str, str] | None = None  # the list and the token that are answered with 503

    def _page(self, name: str, token: str) -> smartpay.Page[Any]:
        self.read.append((name, token))
        if (name, token) == self.broken:
            raise smartpay.Unclear("broken", http_status=503)
        if token in self.expired:
            self.expired.remove(token)
            raise self.refusal
        items, at = self.lists[name], int(token or 0)
        more = str(at + self.size) if at + self.size < len(items) else ""
        page = items[at : at + self.size]
        return smartpay.Page(
            items=tuple(one for one in page if one.id not in self.unreadable),
            next_token=more,
            unreadable=tuple(one.id for one in page if one.id in self.unreadable),
        )

    def list_checkout_sessions(self, token: str) -> smartpay.Page[Any]:
        return self._page("sessions", token)

    def list_orders(self, token: str) -> smartpay.Page[Any]:
        return self._page("orders", token)

    def list_refunds(self, token: str) -> smartpay.Page[Any]:
        return self._page("refunds", token)

    def get_order(self, order_id: str) -> smartpay.Order:
        return self._get("orders", order_id)

    def get_refund(self, refund_id: str) -> smartpay.Refund:
        return self._get("refunds", refund_id)

    def _get(self, name: str, wanted: str) -> Any:
        self.read.append(("one", wanted))
        for one in (*self.lists[name], *self.unlisted):
            if one.id == wanted:
                return one
        raise smartpay.NotFound("none", http_status=404)

    def tokens(self, name: str = "orders") -> list[str]:
        """The tokens under which this list was read since the last call."""
        read = [token for listed, token in self.read if listed == name]
        self.read = [entry for entry in self.read if entry[0] != name]
        return read


def orders(*numbers: int, **values: Any) -> list[smartpay.Order]:
    return [order_of(f"order_test_{n}", created_at=CREATED + timedelta(minutes=n), **values) for n in numbers]


def test_after_a_full_scan_only_the_newest_pages_are_read() -> None:
    client: Any = Lists(orders=orders(*range(9, 0, -1)))
    sync(client)
    assert client.tokens() == ["", "2", "4", "6", "8"]
    scanned = SyncCursor.objects.get(pk="orders")
    sync(client)
    assert client.tokens() == [""]
    client.lists["orders"] = orders(12, 11, 10, *range(9, 0, -1))
    sync(client)
    assert client.tokens() == ["", "2", "4"]  # up to the first page without news
    assert Order.objects.count() == 12
    swept = SyncCursor.objects.get(pk="orders")
    assert swept.last_read_at is not None
    assert scanned.last_read_at is not None
    assert swept.last_read_at > scanned.last_read_at
    assert (
        swept.last_started_at,
        swept.last_finished_at,
        swept.page_token,
        swept.scan_started_at,
        swept.seen,
    ) == (scanned.last_started_at, scanned.last_finished_at, "", None, 9)
    sync(client, full=True)
    assert len(client.tokens()) == 6


def refunds(*numbers: int) -> list[smartpay.Refund]:
    return [refund_of(f"refund_test_{n}", created_at=CREATED + timedelta(minutes=n)) for n in numbers]


@pytest.mark.parametrize(
    ("name", "made", "model"), [("orders", orders, Order), ("refunds", refunds, SmartpayRefund)]
)
def test_what_is_behind_a_page_where_a_sweep_failed_is_read_by_the_next(
    naps: list[float], name: str, made: Callable[..., list[Any]], model: type[models.Model]
) -> None:
    client: Any = Lists(**{name: made(3, 2, 1)})
    sync(client)
    complete = SyncCursor.objects.get(pk=name)
    client.lists[name] = made(*range(9, 0, -1))
    for token in ("2", "4"):  # once more, further on
        client.broken = (name, token)
        with pytest.raises(smartpay.Unclear):
            sync(client)
    client.broken = None
    client.tokens(name)

    sync(client)

    assert client.tokens(name) == ["", "2", "4", "6"]
    assert model._default_manager.count() == 9
    sync(client)
    assert client.tokens(name) == [""]
    swept = SyncCursor.objects.get(pk=name)
    assert (swept.last_started_at, swept.last_finished_at, swept.scan_started_at, swept.page_token) == (
        complete.last_started_at, complete.last_finished_at, None, "",
    )  # fmt: skip


def test_changes_behind_a_page_where_a_sweep_failed_are_read_by_the_next(naps: list[float]) -> None:
    client: Any = Lists(orders=orders(6, 5, 4, 3, 2, 1))
    sync(client)
    client.lists["orders"] = [*orders(6, 5, 4, 3, status="canceled"), *orders(2, 1)]
    client.broken = ("orders", "2")
    with pytest.raises(smartpay.Unclear):
        sync(client)
    client.broken = None

    sync(client)

    assert Order.objects.filter(status="canceled").count() == 4


def test_what_is_behind_a_page_where_a_sweep_was_killed_is_read_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client: Any = Lists(orders=orders(3, 2, 1))
    sync(client)
    client.lists["orders"] = orders(*range(9, 0, -1))
    with monkeypatch.context() as patched:
        patched.setattr(mirror, "record_orders", dying(at=3)(mirror.record_orders))  # after the sessions
        with pytest.raises(Killed):
            sync(client)
    assert Order.objects.count() == 5

    sync(client)

    assert Order.objects.count() == 9


@pytest.mark.parametrize("killed", [False, True])
def test_an_order_of_a_token_behind_a_page_that_the_sessions_brought_is_read(
    monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    client: Any = Lists(orders=orders(3, 2, 1), sessions=[session_of(order) for order in orders(3, 2, 1)])
    sync(client)
    listed = orders(8, 7, 6, 5, 4, 3, 2, 1)
    client.lists["orders"] = listed
    client.lists["sessions"] = [session_of(order) for order in listed if order.id != "order_test_5"]
    if killed:  # between the lists: their pages are all known to the next
        monkeypatch.setattr(client, "list_orders", dying(at=1)(client.list_orders))
        with pytest.raises(Killed):
            sync(client)
        monkeypatch.undo()

    sync(client)

    assert Order.objects.count() == 8


def test_an_order_behind_a_page_that_webhooks_brought_is_read() -> None:
    client: Any = Lists(orders=orders(3, 2, 1))
    sync(client)
    client.lists["orders"] = orders(6, 5, 4, 3, 2, 1)
    for order_id in ("order_test_6", "order_test_5"):
        mirror.refresh_order(order_id, client)

    sync(client)

    assert Order.objects.filter(order_id="order_test_4").exists()


def test_a_sweep_by_a_cursor_of_before_ends_at_the_first_page_without_news() -> None:
    client: Any = Lists(orders=orders(6, 5, 4, 3, 2, 1))
    sync(client)
    SyncCursor.objects.update(sweep_to=None)
    client.tokens()
    sync(client)
    assert client.tokens() == [""]


def test_a_change_of_a_known_order_is_news_too() -> None:
    client: Any = Lists(orders=orders(6, 5, 4, 3, 2, 1))
    sync(client)
    client.tokens()
    client.lists["orders"] = [*orders(6, 5), *orders(4, 3, status="canceled"), *orders(2, 1)]
    sync(client)
    assert client.tokens() == [""]
    client.lists["orders"] = [
        *orders(6, 5, status="canceled"),
        *orders(4, 3, status="canceled"),
        *orders(2, 1),
    ]
    sync(client)
    assert client.tokens() == ["", "2", "4"]
    assert Order.objects.filter(status="canceled").count() == 4


@pytest.mark.parametrize(
    "order",
    [
        [1, 2, 3, 4, 5, 6],  # oldest first
        [4, 2, 6, 1, 5, 3],  # in no order
        [6, 6, 5, 4, 3, 2],  # the first page proves nothing
        [6, 5, 6, 4, 3, 2],  # the second page is not older
    ],
)
def test_a_list_that_does_not_come_newest_first_is_read_whole(order: list[int]) -> None:
    listed = [
        order_of(f"order_test_{n}", created_at=CREATED + timedelta(minutes=at)) for n, at in enumerate(order)
    ]
    client: Any = Lists(orders=listed)
    sync(client)
    began = SyncCursor.objects.get(pk="orders").last_started_at
    client.tokens()
    client.lists["orders"] = [
        order_of("order_test_0", created_at=listed[0].created_at, status="canceled"),
        *listed[1:],
    ]
    sync(client)
    assert client.tokens() == ["", "2", "4"]
    ended = SyncCursor.objects.get(pk="orders").last_started_at
    assert began is not None
    assert ended is not None
    assert ended > began


def test_a_list_without_anything_is_read_whole() -> None:
    client: Any = Lists(
        sessions=[smartpay.CheckoutSession("checkout_test_1", None, smartpay.Customer(), "")] * 3
    )
    sync(client)
    sync(client)
    assert client.tokens("sessions") == ["", "2"] * 2  # there is no moment to go by
    assert client.tokens("orders") == ["", ""]


@pytest.mark.parametrize("tokens", [{40, 39}, {40}, {39}])
def test_a_sweep_does_not_read_all_sessions_because_of_a_page_of_tokens(tokens: set[int]) -> None:
    def session(n: int) -> smartpay.CheckoutSession:
        at = 1_767_225_600_000 + n * 60_000
        about: Any = {"test": True, "createdAt": at, "currency": "JPY", "amount": 1, "status": "succeeded"}
        order = {} if n in tokens else {"order": about | {"id": f"order_test_{n}", "object": "order"}}
        return smartpay.CheckoutSession.parse({"id": f"checkout_test_{n}", "createdAt": at} | order)

    client: Any = Lists(sessions=[session(n) for n in range(40, 0, -1)])
    sync(client)
    client.tokens("sessions")
    sync(client)
    assert client.tokens("sessions") in (["", "2"], [""])  # all 20 pages


def test_sessions_bring_orders_and_customers() -> None:
    newer, older = orders(2, 1)
    other = smartpay.Customer(family_name="佐藤")
    client: Any = Lists(sessions=[session_of(older), session_of(newer, other)], orders=[newer, older])
    lines = sync(client)
    assert list(Order.objects.values_list("family_name", flat=True)) == ["佐藤", "田中"]
    assert [line.split()[3] for line in lines] == ["changed=2", "changed=0", "changed=0"]


@pytest.mark.parametrize(
    ("refusal", "restarts"), [(smartpay.Refused("token", http_status=400), 3)]
    + [(smartpay.Refused("token", http_status=status), 1) for status in (403, 410, 422)]
    + [(smartpay.NotFound("token", http_status=404), 1)],
)  # fmt: skip
def test_a_page_token_that_ran_out_begins_the_list_again(refusal: smartpay.Refused, restarts: int) -> None:
    client: Any = Lists(orders=orders(5, 4, 3, 2, 1))
    client.refusal = refusal
    client.expired = ["2", "4", "4"][-restarts:]
    sync(client)
    assert client.tokens()[-4:] == ["4", "", "2", "4"]
    cursor = SyncCursor.objects.get(pk="orders")
    assert (cursor.seen, cursor.page_token) == (5, "")
    client.tokens()
    client.expired = ["4"] * (restarts + 1)
    with pytest.raises(smartpay.Refused):
        sync(client, full=True)
    assert client.tokens() == ["", "2", "4"] * (restarts + 1)
    client.expired = [""]
    with pytest.raises(smartpay.Refused):
        sync(client, full=True)


def test_a_token_that_ran_out_in_a_sweep_begins_it_again() -> None:
    client: Any = Lists(orders=orders(5, 4, 3, 2, 1))
    sync(client)
    client.tokens()
    client.lists["orders"] = orders(7, 6, 5, 4, 3, 2, 1)
    client.expired = ["2"]
    sync(client)
    assert client.tokens() == ["", "2", "", "2"]  # past what it had written before


def test_a_key_that_is_turned_away_is_no_token_that_ran_out() -> None:
    client: Any = Lists(orders=orders(3, 2, 1))
    client.refusal = smartpay.Unauthorized("no", http_status=401)
    client.expired = ["2"]
    with pytest.raises(smartpay.Unauthorized):
        sync(client)
    assert client.tokens() == ["", "2"]
    sync(client)
    assert client.tokens() == ["2"]  # where it stood


def test_a_list_that_repeats_a_page_is_not_followed_for_ever(naps: list[float]) -> None:
    client: Any = Lists()
    client.list_orders = lambda token: smartpay.Page(items=tuple(orders(1)), next_token="again")
    with pytest.raises(smartpay.Unclear):
        sync(client)


def write_the_first_page(monkeypatch: pytest.MonkeyPatch, client: Any, *, until: Callable[[], bool]) -> None:
    """Have the first page of orders written for as long as that, and the others read meanwhile, not before."""
    record_orders, list_orders, writing = mirror.record_orders, client.list_orders, threading.Event()

    def listed(token: str) -> smartpay.Page[Any]:
        if token:
            writing.wait(10)
        page: smartpay.Page[Any] = list_orders(token)
        return page

    def recorded(page: Any, **options: Any) -> int:
        if page:  # of the other lists there are none
            writing.set()
            wait(until)
        return record_orders(page, **options)

    client.list_orders = listed
    monkeypatch.setattr(mirror, "record_orders", recorded)


def wait(until: Callable[[], bool]) -> None:
    last = time.monotonic() + 10
    while not until() and time.monotonic() < last:
        time.sleep(0.001)


def nobody_reads() -> bool:
    return "mirror-read" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.sqlite  # elsewhere each page has a transaction of its own: see Note [Lock order] in models/ledger.py
def test_pages_that_were_read_meanwhile_are_written_together_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client: Any = Lists(orders=orders(*range(20, 0, -1)))
    write_the_first_page(monkeypatch, client, until=lambda: ("orders", "8") in client.read)
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        if line.startswith("orders"):
            monkeypatch.setattr(mirror, "record_orders", dying(at=3)(mirror.record_orders))

    with pytest.raises(Killed):
        scanning.sync(client, observe=observed, progress=progress)

    assert [line.split()[1] for line in lines if line.startswith("orders")] == ["pages=1"]
    assert Order.objects.count() == 2
    assert SyncCursor.objects.get(pk="orders").page_token == "2"
    wait(nobody_reads)
    assert nobody_reads()  # what nobody will write
    assert "18" not in client.tokens()


def test_pages_before_one_that_cannot_be_read_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = Lists(orders=orders(*range(8, 0, -1)))
    read = client.list_orders

    def refused(token: str) -> smartpay.Page[Any]:
        page: smartpay.Page[Any] = read(token)
        if token == "6":
            raise smartpay.NotAccepted("no", http_status=404)
        return page

    client.list_orders = refused
    write_the_first_page(monkeypatch, client, until=nobody_reads)

    with pytest.raises(smartpay.NotAccepted):
        sync(client)

    assert Order.objects.count() == 6
    assert SyncCursor.objects.get(pk="orders").page_token == "6"


# --- Refunds in a scan --------------------------------------------------------------------------------------


def test_refunds_that_are_new_changed_or_not_booked_are_observed(operator: User) -> None:
    mirror.record_order(order_of("order_test_1", payment_of()), read_at=CREATED)
    ours = ledger_row(Payment.objects.get())
    ours_seen = refund_of("refund_test_ours", reference=str(ours.pk))
    refunds = [ours_seen, refund_of("refund_test_1"), refund_of("refund_test_1"), refund_of("refund_test_2")]
    client: Any = Lists(refunds=refunds)
    client.size = 10
    seen: list[str] = []

    def observe(refund: smartpay.Refund, *, read_at: datetime, kind: str) -> None:
        seen.append(refund.id)
        mirror.record_refund(refund, read_at=read_at)

    def observed_by(scan: Callable[..., None], **options: Any) -> list[str]:
        seen.clear()
        scan(client, observe=observe, **options)
        return list(seen)

    assert observed_by(scanning.sync) == ["refund_test_ours", "refund_test_1", "refund_test_2"]
    assert observed_by(scanning.sync) == ["refund_test_ours"]
    Evidence.objects.create(refund=ours, kind="list", at=CREATED, found=True, smartpay_id="refund_test_ours")
    assert observed_by(scanning.sync) == []
    client.lists["refunds"] = [ours_seen, refund_of("refund_test_1", status="failed")]
    SyncCursor.objects.update(last_read_at=CREATED)
    assert observed_by(scanning.scan_refunds) == ["refund_test_1"]
    assert Refund.objects.get().state == "queued"


def test_scan_refunds_dates_a_complete_read_and_leaves_one_that_is_under_way_alone() -> None:
    client: Any = Lists(refunds=[refund_of(f"refund_test_{n}") for n in range(5)])
    scanning.scan_refunds(client, observe=observed)
    assert client.tokens("refunds") == ["", "2", "4"]
    first = SyncCursor.objects.get(pk="refunds")
    assert first.last_started_at is not None
    assert SmartpayRefund.objects.count() == 5

    now = datetime.now(tz=UTC)
    SyncCursor.objects.filter(pk="refunds").update(scan_started_at=now, last_read_at=now, page_token="2")
    scanning.scan_refunds(client, observe=observed)
    assert client.tokens("refunds") == []
    long_ago = now - timedelta(minutes=3)
    SyncCursor.objects.filter(pk="refunds").update(last_read_at=long_ago, scan_started_at=long_ago)
    scanning.scan_refunds(client, observe=observed)
    assert client.tokens("refunds") == [
        "",
        "2",
        "4",
    ]  # complete: from the start, not from the page of another
    again = SyncCursor.objects.get(pk="refunds")
    assert again.last_started_at is not None
    assert again.last_started_at > now


def test_a_page_of_refunds_that_the_ledger_has_nothing_to_do_with_is_recorded_at_once(operator: User) -> None:
    for number in (1, 2):
        payment = payment_of(f"order_test_{number}", f"payment_test_{number}")
        mirror.record_order(order_of(f"order_test_{number}", payment), read_at=CREATED)
    waiting = ledger_row(Payment.objects.get(pk="payment_test_2"))
    theirs = [
        refund_of("refund_test_stranger", reference=str(uuid.uuid4())),
        refund_of("refund_test_early", payment="payment_test_unknown"),
    ]
    concerned = [
        refund_of("refund_test_beside", payment="payment_test_2"),  # ours may no longer fit
        refund_of("refund_test_elsewhere", reference=str(waiting.pk)),  # names ours, of another payment
        refund_of("refund_test_lost", metadata={"refund_dashboard_id": str(uuid.uuid4())}),
    ]
    client: Any = Lists(refunds=[*theirs, *concerned])
    told: list[str] = []

    def observe(seen: smartpay.Refund, *, read_at: datetime, kind: str) -> None:
        told.append(seen.id)
        observed(seen, read_at=read_at, kind=kind)

    scanning.sync(client, observe=observe)

    assert told == [refund.id for refund in concerned]
    assert dict(Payment.objects.values_list("pk", "external")) == {
        "payment_test_1": 900,
        "payment_test_2": 300,
    }
    assert SmartpayRefund.objects.get(pk="refund_test_early").payment_id == "payment_test_unknown"


# --- In any order -------------------------------------------------------------------------------------------


def pieces() -> list[Callable[[datetime], object]]:
    """Pages of all three lists: what records each, given when it was read."""
    first, second, third = [
        order_of(
            f"order_test_{n}",
            payment_of(f"order_test_{n}", f"payment_test_{n}"),
            created_at=CREATED + timedelta(minutes=n),
            reference="" if n == 2 else f"EC-{n}",
        )
        for n in (1, 2, 3)
    ]
    mail_only = smartpay.Customer(email="sato@example.jp")
    sessions = {first.id: session_of(first), second.id: session_of(second, mail_only, "EC-2")}
    return [
        lambda at: mirror.record_orders([first, second], read_at=at),
        lambda at: mirror.record_orders([second, third], read_at=at),
        lambda at: mirror.record_orders([first], read_at=at, sessions=sessions),
        lambda at: mirror.record_orders([second], read_at=at, sessions=sessions),
        lambda at: mirror.record_refunds(
            [refund_of("refund_test_1"), refund_of("refund_test_2")], read_at=at
        ),
        lambda at: mirror.record_refunds(
            [refund_of("refund_test_2"), refund_of("refund_test_3", payment="payment_test_3")], read_at=at
        ),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=strategies.permutations(range(6)),
    again=strategies.lists(strategies.sampled_from(range(6)), max_size=4),
    moments=strategies.lists(strategies.integers(0, 3), min_size=10, max_size=10),
)
def test_any_order_of_pages_gives_the_same_mirror(
    order: list[int], again: list[int], moments: list[int]
) -> None:
    """Repeated, overlapping, and read at moments that are not those of the writing."""

    def made(order: list[int], moments: list[int]) -> list[list[dict[str, Any]]]:
        for model in reversed(MODELS):
            model._default_manager.all().delete()
        for which, moment in zip(order, moments, strict=False):
            pieces()[which](CREATED + timedelta(hours=moment))
        return picture()

    assert made([*order, *again], moments) == made(list(range(6)), [0] * 6)
    assert [payment.external for payment in Payment.objects.order_by("pk")] == [600, 0, 300]
    assert dict(Order.objects.values_list("reference", "customer_source")) == {
        "EC-1": "session", "EC-2": "session", "EC-3": "",
    }  # fmt: skip


# --- What vanished ------------------------------------------------------------------------------------------


def long_ago() -> None:
    for model in (Order, SmartpayRefund):
        model._default_manager.update(read_at=CREATED)


def test_what_a_whole_list_lacks_is_read_and_said_where_smartpay_denies_it(
    caplog: Any,
) -> None:
    paid = order_of("order_test_3", payment_of("order_test_3"), created_at=CREATED + timedelta(minutes=3))
    client: Any = Lists(orders=[paid, *orders(2, 1)], refunds=[refund_of()])
    sync(client)
    long_ago()
    client.lists = {"sessions": [], "orders": orders(1), "refunds": []}
    client.unlisted = orders(2, status="canceled")  # skipped by the list, and there all the same

    lines = sync(client, full=True)

    assert lines[-1] == "refunds vanished refund_test_1"
    assert "orders vanished order_test_3" in lines
    assert caplog.text.count("mirror.vanished") == 2
    assert list(Order.objects.filter(vanished_at=None).values_list("order_id", "status")) == [
        ("order_test_2", "canceled"), ("order_test_1", "succeeded"),
    ]  # fmt: skip
    assert Payment.objects.get().external == 300  # its money counts as gone all the same

    assert not [line for line in sync(client, full=True) if "vanished" in line]  # said once
    client.lists["orders"] = [paid]
    client.lists["refunds"] = [refund_of()]
    sync(client, full=True)
    assert not Order.objects.exclude(vanished_at=None).exists()
    assert not SmartpayRefund.objects.exclude(vanished_at=None).exists()


def test_list_that_lacks_a_refund_that_smartpay_has_is_no_complete_one(caplog: Any) -> None:
    paid = order_of("order_test_3", payment_of("order_test_3"), created_at=CREATED + timedelta(minutes=3))
    client: Any = Lists(orders=[paid], refunds=[refund_of()])
    sync(client)
    long_ago()
    client.lists["refunds"] = []
    client.unlisted = [refund_of(status="failed")]

    began = scanning.scanned_at()

    for _time in range(2):
        with pytest.raises(smartpay.Unclear, match="lacks what it showed"):
            sync(client, full=True)

    assert SmartpayRefund.objects.get().status == "failed"
    assert Payment.objects.get().external == 0
    assert caplog.text.count("mirror.list_incomplete") == 2
    assert "mirror.vanished" not in caplog.text
    assert scanning.scanned_at() == began  # such a list proves the absence of nothing
    client.lists["refunds"], client.unlisted = client.unlisted, []
    sync(client, full=True)
    assert (scanning.scanned_at() or CREATED) > (began or CREATED)


def test_a_row_that_was_read_a_moment_ago_is_not_missed_yet() -> None:
    client: Any = Lists(orders=orders(2, 1))
    sync(client)
    client.lists["orders"] = orders(1)
    assert not [line for line in sync(client, full=True) if "vanished" in line]


def test_an_order_that_cannot_be_read_keeps_no_other_out_and_is_told_once(caplog: Any) -> None:
    client: Any = Lists(orders=orders(5, 4, 3, 2, 1))
    client.unreadable = {"order_test_4"}

    lines = sync(client)

    assert "orders unreadable order_test_4" in lines
    assert set(Order.objects.values_list("order_id", flat=True)) == {
        "order_test_1", "order_test_2", "order_test_3", "order_test_5",
    }  # fmt: skip
    for options in ({}, {"full": True}):
        sync(client, **options)
    assert caplog.text.count("mirror.unreadable") == 1
    client.unreadable = set()
    sync(client, full=True)
    assert Order.objects.count() == 5
    client.unreadable = {"order_test_4"}
    sync(client)
    assert caplog.text.count("mirror.unreadable") == 2


def test_an_order_that_is_no_longer_readable_has_not_vanished(caplog: Any) -> None:
    client: Any = Lists(orders=orders(3, 2, 1))
    sync(client)
    long_ago()
    client.unreadable = {"order_test_2"}
    client.read.clear()

    sync(client, full=True)

    assert [name for name, _token in client.read if name == "one"] == []
    assert not Order.objects.exclude(vanished_at=None).exists()


def test_an_order_that_was_not_readable_and_then_is_gone_has_vanished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scanning, "MOST_UNREADABLE", 1)
    client: Any = Lists(orders=orders(4, 3, 2, 1))
    sync(client)
    for unreadable in ("order_test_2", "order_test_3"):
        client.unreadable = {unreadable}
        sync(client, full=True)
        client.lists["orders"] = [one for one in client.lists["orders"] if one.id != unreadable]
        long_ago()
        sync(client, full=True)

    gone = Order.objects.exclude(vanished_at=None).values_list("order_id", flat=True)
    assert set(gone) == {"order_test_2", "order_test_3"}
    assert SyncCursor.objects.get(pk="orders").unreadable == {}


def test_a_list_of_which_much_cannot_be_read_is_doubted(
    monkeypatch: pytest.MonkeyPatch, naps: list[float], caplog: Any
) -> None:
    monkeypatch.setattr(scanning, "MOST_UNREADABLE", 2)
    client: Any = Lists(orders=orders(6, 5, 4, 3, 2, 1))
    client.unreadable = {"order_test_6", "order_test_4", "order_test_2"}

    with pytest.raises(smartpay.Unclear):
        sync(client)

    assert caplog.text.count("mirror.unreadable") <= 2
    assert not SyncCursor.objects.exclude(last_finished_at=None).filter(pk="orders").exists()


def test_a_list_that_lacks_nearly_everything_condemns_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(scanning, "MOST_MISSING", 2)
    client: Any = Lists(orders=orders(4, 3, 2, 1))
    sync(client)
    long_ago()
    client.lists["orders"] = orders(1)
    client.read.clear()
    sync(client, full=True)
    assert caplog.text.count("mirror.list_incomplete") == 1
    assert [name for name, _token in client.read if name == "one"] == []
    assert not Order.objects.exclude(vanished_at=None).exists()


def test_a_second_whole_reading_tells_how_long_it_will_take() -> None:
    client: Any = Lists(orders=orders(5, 4, 3, 2, 1))
    assert not [line for line in sync(client) if "remaining" in line]
    told = [line for line in sync(client, full=True) if line.startswith("orders")]
    assert ["remaining=" in line for line in told] == [True, True, False]
