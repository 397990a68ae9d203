"""Reads Smartpay's lists into the mirror, page by page: a scan reads a whole list, a sweep only its newest pages.

mirror.py writes what was read. This module writes how far each list was read (SyncCursor), in the same transaction, so
that a scan whose process is killed goes on after the last page that was committed.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ClassVar, Protocol

import structlog
from django.db import connection, transaction

from refunds import clock, mirror, smartpay
from refunds.models import Evidence, Order, SmartpayRefund, SyncCursor

log = structlog.get_logger(__name__)

PAGES_AHEAD = 4  # at most; after a kill, as many pages are read again
PAUSES = (1, 2, 4, 8, 16)  # seconds between the tries of a page that fails
LONGEST_PAUSE = 60  # seconds, however long Smartpay asks us to wait
NOT_LISTED_FOR = timedelta(hours=1)  # Smartpay's lists may lag behind
MOST_MISSING = 1000  # rows; where a list lacks more, the list is wrong, not the rows
MOST_UNREADABLE = 100  # objects of a list; where there are more, the format of the list has changed
RESTARTS = 3  # of a scan whose page token expired
UNDER_WAY = timedelta(minutes=2)  # a scan that read no page for this long has been given up by its process

# Note [How far a sweep goes]
# A page that brings nothing new does not prove that the pages after it are known. The page may have been written by a
# sweep that failed or was killed there, through the checkout sessions, or by webhooks. A sweep therefore goes on at
# least until it meets objects older than SyncCursor.sweep_to. After a scan or a finished sweep, that is the newest
# object on its first page; after an unfinished sweep, the oldest object that it wrote.
# A sweep does not count as a complete scan, unless it reached the end of the list.


class Observe(Protocol):
    """services.observe_refund(). It is passed in, because this module may not import the ledger."""

    def __call__(self, shown: smartpay.Refund, /, *, read_at: datetime, kind: str) -> object: ...


type Progress = Callable[[str], None]


def sync(
    client: smartpay.Client, *, full: bool = False, observe: Observe, progress: Progress | None = None
) -> None:
    """Bring the mirror up to date: checkout sessions with their orders, orders, refunds. Safe to repeat and to kill.

    For each list: a scan that was killed goes on after the last page that was committed. A list that was never scanned
    is scanned. Any other list is swept, and the sweep turns into a scan if the list does not come newest first. Changes
    of orders older than the sweep reaches (Note [How far a sweep goes]) are left to webhooks and to the next scan.

    Args:
        full: scan all lists from the start, whatever was read before.
        progress: is called with a line after each page.

    Must not be called inside a transaction. Raises: smartpay.SmartpayError, after some tries.
    """
    failed: smartpay.SmartpayError | None = None
    # Sessions come first: they bring orders and customers at once, and leave the list of orders little to write. A
    # list that can't be read does not keep the others from being read.
    for collection in SyncCursor.COLLECTIONS:
        try:
            _Scan(SOURCES[collection](client, observe), progress).run(full=full)
        except smartpay.SmartpayError as error:
            failed = failed or error
    if failed:
        raise failed


def scan_refunds(client: smartpay.Client, *, observe: Observe) -> None:
    """Scan GET /refunds from the start; SyncCursor.last_started_at then says when this scan began.

    Returns at once while another process is scanning it. Raises: as sync().
    """
    under_way = SyncCursor.objects.filter(
        pk=SyncCursor.REFUNDS, scan_started_at__isnull=False, last_read_at__gt=clock.now() - UNDER_WAY
    )
    if not under_way.exists():
        _Scan(_Refunds(client, observe)).run(full=True)


def refunds_read_at() -> datetime | None:
    """Return as of when Smartpay's refunds are known; None before the first complete scan.

    That is when a sweep last read a page. While a scan is under way, its newest pages may be hours old, so that only
    the complete one before it counts.
    """
    cursor = SyncCursor.objects.filter(pk=SyncCursor.REFUNDS, last_started_at__isnull=False).first()
    if cursor is None:
        return None
    return cursor.last_started_at if cursor.scan_started_at else cursor.last_read_at


def scanned_at() -> datetime | None:
    """Return when the last complete scan of GET /refunds began; None before the first."""
    return SyncCursor.objects.filter(pk=SyncCursor.REFUNDS).values_list("last_started_at", flat=True).first()


def is_older_than(age: timedelta) -> bool:
    """Return whether the last complete scan of the orders began longer ago; False where none was ever completed."""
    return SyncCursor.objects.filter(pk=SyncCursor.ORDERS, last_started_at__lt=clock.now() - age).exists()


@dataclass(frozen=True, slots=True)
class _PageRead:
    """A page, and when the read of it began."""

    read_at: datetime
    page: smartpay.Page[Any]


# --- The three lists ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """One of Smartpay's lists: how its pages are read, and how they are written into the mirror."""

    client: smartpay.Client
    observe: Observe

    collection: ClassVar[str]  # its name, as SyncCursor and the lines of progress have it
    mirrored_as: ClassVar[type[Order | SmartpayRefund] | None]  # None: what the list lacks is not looked for
    is_proof: ClassVar[bool] = False  # whether it matters what a complete scan did not show

    def fetch(self, token: str) -> smartpay.Page[Any]:
        raise NotImplementedError

    def created_ats(self, page: smartpay.Page[Any]) -> list[datetime]:
        """Return when the objects of a page were created, in the order of the page."""
        return [item.created_at for item in page.items]

    def tell_ledger(self, read: _PageRead) -> int:
        """Tell the ledger, in its own transactions, what it does not know; return how many objects were news."""
        return 0

    def record(self, read: _PageRead) -> int:
        """Write a page; return how many objects were new or changed, without those that tell_ledger() counted."""
        raise NotImplementedError

    def read_missing(self, missing_id: str) -> tuple[smartpay.Refund, ...]:
        """Read an object that the list lacked; return the refunds that the ledger has to be told of.

        Raises: smartpay.NotFound where Smartpay does not know it, and other SmartpayErrors.
        """
        raise NotImplementedError


class _Sessions(_Source):
    collection = SyncCursor.SESSIONS
    mirrored_as = None

    def fetch(self, token: str) -> smartpay.Page[Any]:
        return self.client.list_checkout_sessions(token)

    def created_ats(self, page: smartpay.Page[Any]) -> list[datetime]:
        moments = [one.created_at or (one.order and one.order.created_at) for one in page.items]
        return [moment for moment in moments if moment]

    def record(self, read: _PageRead) -> int:
        sessions = {session.order.id: session for session in read.page.items if session.order}
        orders = [session.order for session in sessions.values()]
        return mirror.record_orders(orders, read_at=read.read_at, sessions=sessions)


class _Orders(_Source):
    collection = SyncCursor.ORDERS
    mirrored_as = Order

    def fetch(self, token: str) -> smartpay.Page[Any]:
        return self.client.list_orders(token)

    def record(self, read: _PageRead) -> int:
        return mirror.record_orders(read.page.items, read_at=read.read_at)

    def read_missing(self, missing_id: str) -> tuple[smartpay.Refund, ...]:
        return mirror.refresh_order(missing_id, self.client)


class _Refunds(_Source):
    collection = SyncCursor.REFUNDS
    mirrored_as = SmartpayRefund
    is_proof = True  # see Note [Proof of absence] in services/states.py

    def fetch(self, token: str) -> smartpay.Page[Any]:
        return self.client.list_refunds(token)

    def tell_ledger(self, read: _PageRead) -> int:
        news = mirror.news(read.page.items)
        for refund in mirror.record_external_refunds(news, read_at=read.read_at):
            self.observe(refund, read_at=read.read_at, kind=Evidence.Kind.LIST)
        return len(news)

    def record(self, read: _PageRead) -> int:
        mirror.record_refunds(read.page.items, read_at=read.read_at)
        return 0

    def read_missing(self, missing_id: str) -> tuple[smartpay.Refund, ...]:
        return (self.client.get_refund(missing_id),)


SOURCES: dict[str, type[_Source]] = {source.collection: source for source in (_Sessions, _Orders, _Refunds)}


# --- Reading ahead ------------------------------------------------------------------------------------------


class _ReadAhead:
    """Reads the pages of a list from a token on, in a thread, while the pages before them are written.

    At most PAGES_AHEAD pages wait to be taken. The thread needs no database, and the process does not wait for it at
    its end.
    """

    def __init__(self, fetch: Callable[[str], _PageRead], token: str) -> None:
        self._fetch = fetch
        self._outcomes: SimpleQueue[_PageRead | BaseException] = SimpleQueue()
        self._failed: BaseException | None = None
        self._lock = Lock()  # of the attributes below
        self._token: str | None = token  # of the next page
        self._places = PAGES_AHEAD
        self._reading = False
        self._read_on()

    def take(self, most: int) -> list[_PageRead]:
        """Wait for a page; return it with those after it that were read too. Raises: what reading it raised."""
        if self._failed:
            raise self._failed
        taken: list[_PageRead] = []
        while not taken or (len(taken) < most and not self._outcomes.empty()):
            outcome = self._outcomes.get()
            if isinstance(outcome, _PageRead):
                taken.append(outcome)
            elif taken:
                self._failed = outcome  # raised once the pages before it are written
                break
            else:
                raise outcome
        with self._lock:
            self._places += len(taken)
        self._read_on()
        return taken

    def close(self) -> None:
        """Read no more pages."""
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
            outcome: _PageRead | BaseException
            try:
                outcome = self._fetch(self._token or "")
                token = outcome.page.next_token or None
            except BaseException as error:
                outcome, token = error, None
            with self._lock:
                self._outcomes.put(outcome)  # before another thread can read the next page
                self._token, self._places = token, self._places - 1
                self._reading = goes_on = token is not None and self._places > 0


# --- Scans and sweeps ---------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """A scan or a sweep of one list. How far it came is committed together with the rows of its pages."""

    source: _Source
    progress: Progress | None = None
    _read_ahead: _ReadAhead | None = None
    _clock: tuple[datetime, float] = field(
        init=False
    )  # the database's time, and time.monotonic() at that moment
    _newest: datetime | None = (
        None  # created_at of the first object of the first page, where that was read here
    )
    _restarts: int = 0
    _began: float = field(default_factory=time.monotonic)
    _pages: int = 0
    _seen: int = 0
    _changed: int = 0

    def run(self, *, full: bool) -> None:
        cursor, _created = SyncCursor.objects.get_or_create(pk=self.source.collection)
        resumes = not full and cursor.scan_started_at is not None
        sweeps = not full and not resumes and cursor.last_finished_at is not None
        if not resumes:
            _begin(cursor)
        try:
            if not (sweeps and self._sweep(cursor)):
                self._scan(cursor)
        finally:
            self._close_ahead()

    def _scan(self, cursor: SyncCursor) -> None:
        """Read all pages from the cursor's on."""
        ended = False
        while not ended:
            taken = self._read(cursor, self._take)
            ended = self._write_scanned(taken, cursor)

    def _sweep(self, cursor: SyncCursor) -> bool:
        """Read the newest pages. See Note [How far a sweep goes].

        Returns False where the list turns out not to come newest first: a scan has to go on after the page that showed
        it. The cursor's page token is not saved by a sweep; one that is killed begins again.
        """
        oldest: datetime | None = None  # on the pages before
        sweep_to: datetime | None = None
        while True:
            [read] = self._read(cursor, lambda token: [self._fetch(token)])
            if not cursor.page_token:  # the first page, perhaps once more
                oldest, sweep_to = None, cursor.sweep_to
            created_ats = self.source.created_ats(read.page)
            newest_first = _comes_newest_first(created_ats, after=oldest)
            if not newest_first or not read.page.next_token:
                return self._write_scanned([read], cursor, tell_remaining=not newest_first)
            oldest = created_ats[-1]
            if not self._write_swept(read, cursor, oldest) and (sweep_to is None or oldest < sweep_to):
                cursor.sweep_to = self._newest
                cursor.save(update_fields=["sweep_to"])
                return True

    def _read(self, cursor: SyncCursor, read: Callable[[str], list[_PageRead]]) -> list[_PageRead]:
        """Return what `read` returns for the cursor's token, or for the first page if that token expired."""
        while True:
            # The thread that reads ahead must not ask the database for the time.
            self._clock = clock.now(), time.monotonic()
            try:
                taken = read(cursor.page_token)
            except smartpay.Refused as error:
                if not self._may_restart(cursor, error):
                    raise
                continue
            if not cursor.page_token:
                self._newest = next(iter(self.source.created_ats(taken[0].page)), None)
            return taken

    def _may_restart(self, cursor: SyncCursor, error: smartpay.Refused) -> bool:
        """Go back to the first page, on the assumption that the page token expired; False if that was done too often.

        It is not known how Smartpay refuses an expired token, though a 400 is likely: so a 400 restarts the list up to
        RESTARTS times. Any other refusal restarts it once, because without a restart every later run would ask for the
        same refused page for ever. More restarts would read the pages before it in vain.
        """
        if not cursor.page_token or self._restarts == (RESTARTS if error.http_status == 400 else 1):
            return False
        self._restarts += 1
        _begin(cursor)
        self._close_ahead()
        return True

    def _take(self, token: str) -> list[_PageRead]:
        """Return the page with this token, and the pages after it that were read ahead."""
        self._read_ahead = self._read_ahead or _ReadAhead(self._fetch, token)
        # A transaction locks the rows of one page in one order; those of several pages it would lock page by page, and
        # could meet another process in a deadlock. SQLite has no row locks.
        return self._read_ahead.take(most=1 if connection.features.has_select_for_update else PAGES_AHEAD)

    def _close_ahead(self) -> None:
        if self._read_ahead:
            self._read_ahead.close()
            self._read_ahead = None

    def _fetch(self, token: str) -> _PageRead:
        """Read a page. Raises: smartpay.SmartpayError, after some tries."""
        read_at = self._now()
        page = _patiently(lambda: self.source.fetch(token))
        if page.next_token and page.next_token == token:
            raise smartpay.Unclear("The list repeats a page.")
        return _PageRead(read_at, page)

    def _now(self) -> datetime:
        """Return the database's time without asking it: what it said a moment ago, and what passed since."""
        moment, at = self._clock
        return moment + timedelta(seconds=time.monotonic() - at)

    def _write_scanned(
        self, taken: Sequence[_PageRead], cursor: SyncCursor, *, tell_remaining: bool = True
    ) -> bool:
        """Write pages of a scan; return whether the list ends with them. Then look for what the list lacks."""
        remaining = (cursor.last_seen or 0) - cursor.seen if tell_remaining else 0
        _advance(cursor, taken)
        cursor.sweep_to = self._newest or cursor.sweep_to
        # Where the list is a proof, the scan counts as a complete one only once it is known to lack nothing.
        columns = SCAN_COLUMNS if self.source.is_proof else [*SCAN_COLUMNS, "last_started_at"]
        changed = self._write(taken, cursor, columns)
        self._tell(taken, changed, remaining)
        if cursor.page_token:
            return False
        lacks = self._seek_missing(cursor.last_started_at or taken[-1].read_at, set(cursor.unreadable))
        if self.source.is_proof:
            if lacks:
                raise smartpay.Unclear("The list lacks what it showed before.")
            cursor.save(update_fields=["last_started_at"])
        return True

    def _write_swept(self, read: _PageRead, cursor: SyncCursor, oldest: datetime) -> int:
        """Write a page of a sweep; return how many of its objects were new or changed."""
        _advance(cursor, [read])
        cursor.sweep_to = min(oldest, cursor.sweep_to or oldest)
        [changed] = self._write([read], cursor, SWEEP_COLUMNS)
        self._tell([read], [changed], 0)
        return changed

    def _write(self, taken: Sequence[_PageRead], cursor: SyncCursor, columns: list[str]) -> list[int]:
        """Write pages, and these columns of the cursor; return how many objects of each page were new or changed.

        Tells which objects can't be read. Raises: smartpay.Unclear where these are too many.
        """
        self._tell_unreadable(taken, cursor)
        # The ledger has transactions of its own. A process killed between them and the next one reads the pages again.
        news = [self.source.tell_ledger(read) for read in taken]
        with transaction.atomic():
            cursor.save(update_fields=columns)
            changed = [self.source.record(read) for read in taken]
        return [told + written for told, written in zip(news, changed, strict=True)]

    def _tell_unreadable(self, taken: Iterable[_PageRead], cursor: SyncCursor) -> None:
        """Keep the ids of listed objects that can't be read; tell each one once.

        Raises: smartpay.Unclear where they are more than MOST_UNREADABLE.
        """
        known: dict[str, str] = cursor.unreadable
        readable = {item.id for read in taken for item in read.page.items}
        unreadable = {one: read.read_at.isoformat() for read in taken for one in read.page.unreadable}
        listed = {one: at for one, at in known.items() if one not in readable} | unreadable
        if cursor.scan_started_at is None and cursor.last_started_at:
            # The scan is complete: what it did not show is listed no longer.
            began = cursor.last_started_at.isoformat()
            listed = {one: at for one, at in listed.items() if at >= began}
        cursor.unreadable = listed
        if len(listed) > MOST_UNREADABLE:
            raise smartpay.Unclear("Too much of the list can't be read.")
        for one in sorted(unreadable.keys() - known.keys()):
            log.error("mirror.unreadable", alarm=True, collection=self.source.collection, id=one)
            self._say(f"{self.source.collection} unreadable {one}")

    def _seek_missing(self, began: datetime, unreadable: Collection[str]) -> bool:
        """Read, one by one, what the scan that began then did not show; tell what Smartpay does not know.

        Args:
            unreadable: ids that the scan did show, though the objects could not be read.

        Returns whether the list lacks what Smartpay has.
        """
        kind, listed = self.source.mirrored_as, began - NOT_LISTED_FOR
        if kind is None:
            return False
        # What another scan read a moment ago has to be in this one too, where the list is a proof.
        since, created_before = (began, listed) if self.source.is_proof else (listed, None)
        collection = self.source.collection
        ids = mirror.unread_since(
            since, kind, created_before=created_before, excluding=unreadable, most=MOST_MISSING + 1
        )
        if len(ids) > MOST_MISSING:
            log.error("mirror.list_incomplete", alarm=True, collection=collection, more_than=MOST_MISSING)
            self._say(f"{collection} list lacks more than {MOST_MISSING} that are known here")
            return True
        vanished = 0
        for missing in ids:
            read_at = clock.now()
            try:
                for shown in _patiently(partial(self.source.read_missing, missing)):
                    self.source.observe(shown, read_at=read_at, kind=Evidence.Kind.READ)
            except smartpay.NotFound:
                mirror.record_vanished(missing, kind, unread_since=since)
                log.error("mirror.vanished", alarm=True, collection=collection, id=missing)
                self._say(f"{collection} vanished {missing}")
                vanished += 1
        if len(ids) > vanished and self.source.is_proof:
            log.error("mirror.list_incomplete", alarm=True, collection=collection, lacks=len(ids) - vanished)
        return len(ids) > vanished

    def _tell(self, taken: Sequence[_PageRead], changed: Sequence[int], remaining: int) -> None:
        """Tell a line of progress for each page.

        Args:
            changed: how many objects of each page were new or changed.
            remaining: how many objects the list has from the first of these pages on, as far as the last scan tells; 0
                if unknown.
        """
        for read, changed_here in zip(taken, changed, strict=True):
            size = len(read.page.items)
            self._pages += 1
            self._seen += size
            self._changed += changed_here
            remaining -= size
            rate = self._seen / max(time.monotonic() - self._began, 0.001)
            time_left = (
                f" remaining={timedelta(seconds=round(remaining / rate))}" if remaining > 0 and rate else ""
            )
            self._say(
                f"{self.source.collection} pages={self._pages} seen={self._seen} changed={self._changed} "
                f"rate={rate:.0f}/s{time_left}"
            )

    def _say(self, line: str) -> None:
        if self.progress:
            self.progress(line)


SWEEP_COLUMNS = ["last_read_at", "sweep_to", "unreadable"]
SCAN_COLUMNS = [
    *SWEEP_COLUMNS,
    "last_seen",
    "page_token",
    "scan_started_at",
    "seen",
    "last_finished_at",
]


def _begin(cursor: SyncCursor) -> None:
    """Move the cursor to the first page. Not saved: until a page is written, an interrupted scan can still go on."""
    cursor.page_token, cursor.scan_started_at, cursor.seen = "", None, 0


def _advance(cursor: SyncCursor, taken: Sequence[_PageRead]) -> None:
    """Move the cursor past these pages; at the end of the list, note that the scan is complete. Not saved."""
    last = taken[-1]
    cursor.scan_started_at = cursor.scan_started_at or taken[0].read_at
    cursor.page_token = last.page.next_token
    cursor.seen += sum(len(read.page.items) for read in taken)
    cursor.last_read_at = last.read_at
    if not cursor.page_token:
        cursor.last_started_at, cursor.last_finished_at = cursor.scan_started_at, clock.now()
        cursor.scan_started_at, cursor.last_seen = None, cursor.seen


def _comes_newest_first(moments: list[datetime], *, after: datetime | None) -> bool:
    """Return whether a page goes from newer to older, and so on from the page before. Smartpay promises no order."""
    falling = all(newer >= older for newer, older in pairwise([*([after] if after else []), *moments]))
    return falling and bool(moments) and (after is not None or moments[0] > moments[-1])


def _patiently[T](read: Callable[[], T]) -> T:
    """Read, and read again after a pause where Smartpay is busy, broken or silent. Raises: smartpay.SmartpayError."""
    for pause in PAUSES:
        try:
            return read()
        except (smartpay.Refused, smartpay.NotAccepted):
            raise  # the answer would be the same
        except smartpay.SmartpayError as error:
            time.sleep(max(pause, min(error.retry_after or 0, LONGEST_PAUSE)))
    return read()
