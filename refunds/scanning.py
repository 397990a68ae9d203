"""Reads Smartpay's lists, page by page, into the mirror. A reading that is killed goes on where it stood.

mirror.py writes what was read; what this module writes is where each reading stands (SyncCursor).
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

import structlog
from django.db import connection, transaction

from refunds import clock, mirror, smartpay
from refunds.models import Evidence, Order, SmartpayRefund, SyncCursor

log = structlog.get_logger(__name__)

LISTED: dict[str, type[Order | SmartpayRefund]] = {
    SyncCursor.ORDERS: Order,
    SyncCursor.REFUNDS: SmartpayRefund,
}

PAGES_AHEAD = 4  # at most; a kill has as many read again
PAUSES = (1, 2, 4, 8, 16)  # seconds between the tries of a page that fails
LONGEST_PAUSE = 60  # seconds, however long Smartpay asks to wait
NOT_LISTED_FOR = timedelta(hours=1)  # Smartpay's lists may lag behind
MOST_MISSING = 1000  # rows; a list that lacks more says something about itself, and nothing about them
MOST_UNREADABLE = 100  # objects of a list; where there are more, the list is not what we know
RESTARTS = 3  # of a scan whose page token ran out
UNDER_WAY = timedelta(minutes=2)  # a scan that read no page for so long was given up by its process

# Note [How far a sweep goes]
# A page without news says nothing about the pages behind it: it may have been written by a sweep that failed or was
# killed there, by the checkout sessions, or by webhooks. So a sweep goes on at least to what is older than
# SyncCursor.sweep_to: the newest object that the last sweep, or whole reading, saw on its first page, or, where a sweep
# did not end, the oldest that it wrote. No sweep dates a complete reading, unless it came to the list's own end.


class Observe(Protocol):
    """services.observe_refund(), handed in: this module stands below the ledger."""

    def __call__(self, seen: smartpay.Refund, *, read_at: datetime, kind: str) -> object: ...


type Progress = Callable[[str], None]


def sync(
    client: smartpay.Client, *, full: bool = False, observe: Observe, progress: Progress | None = None
) -> None:
    """Bring the mirror up to date: checkout sessions with their orders, orders, refunds. Safe to repeat and to kill.

    A scan that was killed goes on after the last page that was committed. Otherwise all pages are read where that was
    never done; else the newest ones, if the list shows itself to come newest first, and all pages if it does not. The
    newest ones are those back to the first page that brings nothing new and lies behind all that could be new (see Note
    [How far a sweep goes]). Changes of older orders are then left to webhooks and to the next full scan.

    Args:
        full: from the start, all pages, whatever was read before.
        progress: is given a line after each page.

    Raises: smartpay.SmartpayError, after some tries. Never called inside a transaction.
    """
    failed: smartpay.SmartpayError | None = None
    # Sessions first: they bring orders and customers at once, and leave the second list little to write. One list
    # that can't be read keeps the others waiting no longer than its tries.
    for collection in SyncCursor.COLLECTIONS:
        try:
            _Scan(collection, client, observe, progress).run(full=full)
        except smartpay.SmartpayError as error:
            failed = failed or error
    if failed:
        raise failed


def scan_refunds(client: smartpay.Client, *, observe: Observe) -> None:
    """Read all pages of GET /refunds from the start: a complete read, which SyncCursor.last_started_at then dates.

    Returns at once where another process is reading them. Raises: as sync().
    """
    under_way = SyncCursor.objects.filter(
        pk=SyncCursor.REFUNDS, scan_started_at__isnull=False, last_read_at__gt=clock.now() - UNDER_WAY
    )
    if not under_way.exists():
        _Scan(SyncCursor.REFUNDS, client, observe).run(full=True)


def scanned_at() -> datetime | None:
    """When the last complete reading of GET /refunds began; None before the first."""
    return SyncCursor.objects.filter(pk=SyncCursor.REFUNDS).values_list("last_started_at", flat=True).first()


def is_older_than(age: timedelta) -> bool:
    """Whether the last complete reading of the orders began longer ago; one that was never complete goes on anyway."""
    return SyncCursor.objects.filter(pk=SyncCursor.ORDERS, last_started_at__lt=clock.now() - age).exists()


@dataclass(frozen=True, slots=True)
class _Read:
    """A page as it was read."""

    read_at: datetime
    page: smartpay.Page[Any]


class _Ahead:
    """The pages of a list from a token on, read in a thread while those before are written, until some are there.

    A process need not wait for the thread at its end, and the thread needs no database.
    """

    def __init__(self, fetch: Callable[[str], _Read], token: str) -> None:
        self._fetch = fetch
        self._there: SimpleQueue[_Read | BaseException] = SimpleQueue()
        self._failed: BaseException | None = None
        self._lock = Lock()  # of what follows
        self._token: str | None = token  # of the next page
        self._places = PAGES_AHEAD
        self._reading = False
        self._read_on()

    def take(self, most: int) -> list[_Read]:
        """Wait for a page; return it with those after it that are there as well. Raises: what reading it did."""
        if self._failed:
            raise self._failed
        taken: list[_Read] = []
        while not taken or (len(taken) < most and not self._there.empty()):
            outcome = self._there.get()
            if isinstance(outcome, _Read):
                taken.append(outcome)
            elif taken:
                self._failed = outcome  # once these are written
                break
            else:
                raise outcome
        with self._lock:
            self._places += len(taken)
        self._read_on()
        return taken

    def close(self) -> None:
        """Read no more."""
        with self._lock:
            self._token, self._places = None, 0

    def _read_on(self) -> None:
        with self._lock:
            if self._reading or self._token is None:
                return
            self._reading = True
        Thread(target=self._run, name="mirror-read", daemon=True).start()

    def _run(self) -> None:
        goes_on = True
        while goes_on:
            outcome: _Read | BaseException
            try:
                outcome = self._fetch(self._token or "")
                token = outcome.page.next_token or None
            except BaseException as error:
                outcome, token = error, None
            with self._lock:
                self._there.put(outcome)  # before another thread reads on
                self._token, self._places = token, self._places - 1
                self._reading = goes_on = token is not None and self._places > 0


@dataclass
class _Scan:
    """One reading of one of Smartpay's lists. Where it stands is committed with the rows of its pages."""

    collection: str
    client: smartpay.Client
    observe: Observe
    progress: Progress | None = None
    _ahead: _Ahead | None = None
    _restarts: int = 0
    _began: float = field(default_factory=time.monotonic)
    _pages: int = 0
    _seen: int = 0
    _changed: int = 0

    def run(self, *, full: bool) -> None:
        try:
            self._run(full)
        finally:
            self._close_ahead()

    def _run(self, full: bool) -> None:
        cursor, _created = SyncCursor.objects.get_or_create(pk=self.collection)
        # A sweep is a scan that may end early. Its page is not kept, it is short. See Note [How far a sweep goes].
        sweep = not full and cursor.scan_started_at is None and cursor.last_finished_at is not None
        if full or cursor.scan_started_at is None:
            _begin(cursor)
        newest: datetime | None = None  # of the first page
        oldest: datetime | None = None  # as far as was read
        behind: datetime | None = None  # what the sweep has to go back to
        while True:
            self._look_at_the_clock()
            try:
                taken = [self._fetch(cursor.page_token)] if sweep else self._take(cursor.page_token)
            except smartpay.Refused as error:
                if not self._may_restart(cursor, error):
                    raise
                oldest = None
                continue
            if not cursor.page_token:
                newest, behind = next(iter(self._moments(taken[0].page)), None), cursor.sweep_to
            moments = self._moments(taken[-1].page)
            sweep = sweep and _comes_newest_first(moments, after=oldest)
            oldest = moments[-1] if moments else oldest

            left = (cursor.last_seen or 0) - cursor.seen  # as many as the last time
            _move_on(cursor, taken)
            ended = not cursor.page_token
            short = sweep and not ended
            if short:
                cursor.sweep_to = min(moments[-1], cursor.sweep_to or moments[-1])
            else:
                cursor.sweep_to = newest or cursor.sweep_to
            fresh = self._store(taken, cursor, WHERE_A_SWEEP_STANDS if short else WHERE_IT_STANDS)
            self._tell(taken, fresh, 0 if sweep else left)
            if ended:
                self._seek_missing(cursor.last_started_at or taken[-1].read_at, set(cursor.unreadable))
                return
            if short and not any(fresh) and (behind is None or moments[-1] < behind):
                cursor.sweep_to = newest
                cursor.save(update_fields=["sweep_to"])
                return

    def _may_restart(self, cursor: SyncCursor, error: smartpay.Refused) -> bool:
        """Go back to the first page, as though the token had run out, unless that was done too often.

        How Smartpay says that it ran out is not known: 400, as a rule. Were nothing else believed, each run would ask
        for the same page again, for ever; were it believed often, read all before it.
        """
        if not cursor.page_token or self._restarts == (RESTARTS if error.http_status == 400 else 1):
            return False
        self._restarts += 1
        _begin(cursor)
        self._close_ahead()
        return True

    def _tell(self, taken: Sequence[_Read], fresh: Sequence[int], left: int) -> None:
        """Say a line a page. `fresh`: how many of each were new or changed. `left`: objects before these, 0 unknown."""
        for read, changed in zip(taken, fresh, strict=True):
            size = len(read.page.items)
            self._pages, self._seen, self._changed = (
                self._pages + 1,
                self._seen + size,
                self._changed + changed,
            )
            left -= size
            rate = self._seen / max(time.monotonic() - self._began, 0.001)
            remaining = f" remaining={timedelta(seconds=round(left / rate))}" if left > 0 and rate else ""
            self._say(
                f"{self.collection} pages={self._pages} seen={self._seen} changed={self._changed} "
                f"rate={rate:.0f}/s{remaining}"
            )

    def _take(self, token: str) -> list[_Read]:
        """Return the page with this token, and those after it that are there."""
        self._ahead = self._ahead or _Ahead(self._fetch, token)
        # Where rows are locked, each page by itself: its locks are taken in one order, those of several would not be.
        return self._ahead.take(most=1 if connection.features.has_select_for_update else PAGES_AHEAD)

    def _close_ahead(self) -> None:
        if self._ahead:
            self._ahead.close()
            self._ahead = None

    def _fetch(self, token: str) -> _Read:
        """Read a page. Raises: smartpay.SmartpayError, after some tries."""
        read_at = self._now()
        page = _patiently(lambda: self._page(token))
        if page.next_token and page.next_token == token:
            raise smartpay.Unclear("The list repeats a page.")
        return _Read(read_at, page)

    def _look_at_the_clock(self) -> None:
        self._clock = clock.now(), time.monotonic()

    def _now(self) -> datetime:
        """The database's time without asking it: what it was a moment ago and what passed since, never more."""
        moment, at = self._clock
        return moment + timedelta(seconds=time.monotonic() - at)

    def _tell_unreadable(self, taken: Iterable[_Read], cursor: SyncCursor) -> None:
        """Keep the ids of what is listed and can't be read; say each once. Raises: smartpay.Unclear for too many."""
        known: dict[str, str] = cursor.unreadable
        readable = {item.id for read in taken for item in read.page.items}
        unreadable = {one: read.read_at.isoformat() for read in taken for one in read.page.unreadable}
        listed = {one: at for one, at in known.items() if one not in readable} | unreadable
        if (
            cursor.scan_started_at is None and cursor.last_started_at
        ):  # at the end: what was not shown is not listed
            began = cursor.last_started_at.isoformat()
            listed = {one: at for one, at in listed.items() if at >= began}
        cursor.unreadable = listed
        if len(listed) > MOST_UNREADABLE:
            raise smartpay.Unclear("Too much of the list can't be read.")
        for one in sorted(unreadable.keys() - known.keys()):
            log.error("mirror.unreadable", alarm=True, collection=self.collection, id=one)
            self._say(f"{self.collection} unreadable {one}")

    def _seek_missing(self, began: datetime, unreadable: Collection[str]) -> None:
        """Look for what the complete reading that began then did not show: read each; say what Smartpay denies.

        `unreadable`: what it did show, though it could not be read.
        """
        if self.collection == SyncCursor.SESSIONS:
            return
        kind, since = LISTED[self.collection], began - NOT_LISTED_FOR
        ids = mirror.unread_since(since, kind, beside=unreadable, most=MOST_MISSING + 1)
        if len(ids) > MOST_MISSING:
            log.error(
                "mirror.list_incomplete", alarm=True, collection=self.collection, more_than=MOST_MISSING
            )
            self._say(f"{self.collection} list lacks more than {MOST_MISSING} that are known here")
            return
        for missing in ids:
            read_at = clock.now()
            try:
                for seen in _patiently(lambda missing=missing: self._read_missing(missing)):  # type: ignore[misc]
                    self.observe(seen, read_at=read_at, kind=Evidence.Kind.READ)
            except smartpay.NotFound:
                mirror.record_vanished(missing, kind, unread_since=since)
                log.error("mirror.vanished", alarm=True, collection=self.collection, id=missing)
                self._say(f"{self.collection} vanished {missing}")

    def _read_missing(self, missing: str) -> tuple[smartpay.Refund, ...]:
        if self.collection == SyncCursor.ORDERS:
            return mirror.refresh_order(missing, self.client)
        return (self.client.get_refund(missing),)

    def _say(self, line: str) -> None:
        if self.progress:
            self.progress(line)

    def _page(self, token: str) -> smartpay.Page[Any]:
        match self.collection:
            case SyncCursor.SESSIONS:
                return self.client.list_checkout_sessions(token)
            case SyncCursor.ORDERS:
                return self.client.list_orders(token)
            case _:
                return self.client.list_refunds(token)

    def _moments(self, page: smartpay.Page[Any]) -> list[datetime]:
        """When the objects were created, in the order of the page."""
        if self.collection == SyncCursor.SESSIONS:
            moments = [one.created_at or (one.order and one.order.created_at) for one in page.items]
            return [moment for moment in moments if moment]
        return [item.created_at for item in page.items]

    def _store(self, taken: Sequence[_Read], cursor: SyncCursor, columns: list[str]) -> list[int]:
        """Record pages and where the scan stands; return how many objects of each were new or changed.

        Says what can't be read. Raises: smartpay.Unclear where that is too much.
        """
        self._tell_unreadable(taken, cursor)
        if self.collection == SyncCursor.REFUNDS:
            # The ledger has transactions of its own. Killed in between, the pages are read again: nothing is lost.
            news = [self._observe(read) for read in taken]
        with transaction.atomic():
            cursor.save(update_fields=columns)
            match self.collection:
                case SyncCursor.SESSIONS:
                    return [self._record_sessions(read) for read in taken]
                case SyncCursor.ORDERS:
                    return [mirror.record_orders(read.page.items, read_at=read.read_at) for read in taken]
                case _:
                    for read in taken:
                        mirror.record_refunds(read.page.items, read_at=read.read_at)
                    return news

    def _record_sessions(self, read: _Read) -> int:
        sessions = {session.order.id: session for session in read.page.items if session.order}
        orders = [session.order for session in sessions.values()]
        return mirror.record_orders(orders, read_at=read.read_at, sessions=sessions)

    def _observe(self, read: _Read) -> int:
        """Tell the ledger what it does not know; return how many refunds are news here."""
        news = mirror.news(read.page.items)
        for refund in mirror.record_strangers(news, read_at=read.read_at):
            self.observe(refund, read_at=read.read_at, kind=Evidence.Kind.LIST)
        return len(news)


WHERE_A_SWEEP_STANDS = ["last_read_at", "sweep_to", "unreadable"]
WHERE_IT_STANDS = [
    *WHERE_A_SWEEP_STANDS,
    "last_seen",
    "page_token",
    "scan_started_at",
    "seen",
    "last_started_at",
    "last_finished_at",
]


def _begin(cursor: SyncCursor) -> None:
    """From the first page. Not saved yet: until a page is read, an interrupted scan can still go on."""
    cursor.page_token, cursor.scan_started_at, cursor.seen = "", None, 0


def _move_on(cursor: SyncCursor, taken: Sequence[_Read]) -> None:
    """To behind these pages; at the list's end, to the date of a complete reading. Not saved."""
    last = taken[-1]
    cursor.scan_started_at = cursor.scan_started_at or taken[0].read_at
    cursor.page_token = last.page.next_token
    cursor.seen += sum(len(read.page.items) for read in taken)
    cursor.last_read_at = last.read_at
    if not cursor.page_token:
        cursor.last_started_at, cursor.last_finished_at = cursor.scan_started_at, clock.now()
        cursor.scan_started_at, cursor.last_seen = None, cursor.seen


def _comes_newest_first(moments: list[datetime], *, after: datetime | None) -> bool:
    """Whether a page goes from newer to older, and on from the page before it. Smartpay promises no order."""
    falling = all(newer >= older for newer, older in pairwise([*([after] if after else []), *moments]))
    return falling and bool(moments) and (after is not None or moments[0] > moments[-1])


def _patiently[T](read: Callable[[], T]) -> T:
    """Read a page, again after a pause where Smartpay is busy, broken or silent. Raises: smartpay.SmartpayError."""
    for pause in PAUSES:
        try:
            return read()
        except (smartpay.Refused, smartpay.NotAccepted):
            raise  # the same would come again
        except smartpay.SmartpayError as error:
            time.sleep(max(pause, min(error.retry_after or 0, LONGEST_PAUSE)))
    return read()
