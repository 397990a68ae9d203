"""Makes the trail verifiable: each entry is sealed over the entry before it, and the newest seal is kept elsewhere.

- seal(): the worker seals entries after they were committed, in the order of their ids
- keep_head(): keeps the newest seal outside the database, out of reach of somebody who rewrites the trail there
- verify(): tells whether the trail is still what was sealed, and where it is not
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog
from django.db import DataError, connection, transaction
from django.db.models import Count, Min, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from refunds import audit, clock, state_file
from refunds.models import AuditEntry

log = structlog.get_logger(__name__)

FILE = "audit-head"  # in STATE_DIR

# Note [The order of the seals]
# The seal of an entry is the SHA-256 of the seal before it and the entry's text. Entries are inserted without a seal,
# so that transactions which record something never wait for each other. The worker seals them a moment later, in the
# order of their ids, one sealer at a time.
#
# On PostgreSQL, ids become visible out of order: a transaction may take a lower id and commit later, and one that is
# rolled back leaves a gap for ever. The sealer therefore stops before a gap, until an entry behind the gap is older
# than GAP. (The `at` of that entry is the database's time just before its id was taken, and the missing id was taken
# earlier.) One old entry behind the gap is enough. If we required the next one, a single entry dated in the future, by
# a wrong clock or by forgery, would block sealing for ever. An id that is still missing then counts as rolled back.
#
# An entry that appears in a gap after the sealer passed it can't be sealed any more, because the seals behind it are
# made. It stays unsealed, and verify() reports it. No code here holds a transaction open for that long, so people
# should ask where such an entry came from.

BEGINNING = "0" * 64  # stands for the seal before the first one
BATCH = 200  # entries in one transaction; on SQLite, other writers wait for it
MANY = 5000  # entries in one transaction, when nothing was sealed for a long time
GAP = timedelta(seconds=30)
OVERDUE = timedelta(seconds=60)  # a running worker has sealed an entry by then
PAGE = 2000  # entries in memory at a time
NAMED = 20  # faults that are reported one by one; the others are only counted
# What reading an entry raises if somebody wrote into it what Django can't convert.
UNREADABLE = (DataError, ValueError, TypeError, AttributeError, OverflowError)


def seal_of(previous: str, text: str) -> str:
    return hashlib.sha256((previous + text).encode()).hexdigest()


def in_order(entries: QuerySet[AuditEntry]) -> Iterator[AuditEntry]:
    """Yield the entries, oldest first. They are read by the page, so that memory does not grow with the trail."""
    seen = None
    while page := list(_behind(seen, entries)[:PAGE]):
        yield from page
        seen = page[-1].pk


def _behind(pk: int | None, entries: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
    """Return the entries with a higher id; all for None. A forged entry may have an id of 0 or below."""
    return (entries if pk is None else entries.filter(pk__gt=pk)).order_by("pk")


# --- To seal ------------------------------------------------------------------------------------------------


def seal(limit: int | None = None) -> int:
    """Seal the next entries and return how many: at most BATCH, or MANY where that many wait.

    Never waits: while another process seals, 0 is returned at once. See Note [The order of the seals].
    """
    waiting = AuditEntry.objects.filter(seal=None)[:MANY].count()
    if not waiting:
        return 0  # before a lock is taken: SQLite has one for all writers
    # Finding the last seal takes longer the more unsealed entries there are, so many are then sealed at a time.
    limit = limit or (MANY if waiting == MANY else BATCH)
    with transaction.atomic():
        if not _lock_out_other_sealers():
            return 0
        last, previous = _last_sealed()
        ripe = clock.now() - GAP
        sealed: list[tuple[str, str, int]] = []
        for entry in AuditEntry.objects.filter(pk__gt=last).only("at", "text").order_by("pk")[:limit]:
            behind = AuditEntry.objects.filter(pk__gt=entry.pk, at__lte=ripe)
            if entry.pk != last + 1 and entry.at > ripe and not behind.exists():
                break
            seal = seal_of(previous, entry.text)
            sealed.append((previous, seal, entry.pk))
            last, previous = entry.pk, seal
        with connection.cursor() as cursor:
            # On SQLite other writers wait for this. It takes a twentieth of the time of bulk_update().
            cursor.executemany(
                "UPDATE refunds_auditentry SET previous_seal = %s, seal = %s WHERE id = %s", sealed
            )
        return len(sealed)


def _lock_out_other_sealers() -> bool:
    """Lock the oldest entry, which nothing else locks, until the transaction ends; return False if it is locked.

    On SQLite the transaction itself keeps out other sealers.
    """
    oldest = AuditEntry.objects.aggregate(oldest=Min("pk"))["oldest"]
    locked = AuditEntry.objects.select_for_update(skip_locked=True).filter(pk=oldest)
    return bool(locked.values_list("pk"))


def _last_sealed() -> tuple[int, str]:
    sealed = AuditEntry.objects.filter(seal__isnull=False).order_by("-pk")
    return sealed.values_list("pk", "seal").first() or (0, BEGINNING)  # type: ignore[return-value]


# --- The head, outside the database -------------------------------------------------------------------------


class UnreadableHead(Exception):
    """A kept head can't be parsed."""


@dataclass(frozen=True, order=True)
class Head:
    """How far the trail was sealed at a time. With it, one can verify that the entries up to `id` are unchanged."""

    id: int
    seal: str
    count: int
    at: str  # in ISO 8601, UTC

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse a line that --print-head printed, or one from the log. Raises UnreadableHead."""
        try:
            fields = json.loads(line)
            return cls(int(fields["id"]), str(fields["seal"]), int(fields["count"]), str(fields["at"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableHead(f"not a head of the trail: {line[:200]!r}") from error

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def read_heads(path: Path) -> list[Head]:
    """Return the heads of a file with one head a line. Raises OSError, UnreadableHead."""
    lines = path.read_text(errors="replace").splitlines()
    return [Head.parse(line) for line in lines if line.strip()]


def newest_head(since: Head | None = None) -> Head | None:
    """Return the head of the trail as it is in the database, or None if nothing is sealed.

    Args:
        since: an older head of this trail. Only the entries behind it are then counted, and added to its count.
    """
    last, seal = _last_sealed()
    if not last:
        return None
    up_to_it = AuditEntry.objects.filter(seal__isnull=False, pk__lte=last)
    new = _behind(since.id if since else None, up_to_it)
    count = (since.count if since else 0) + new.count()
    return Head(last, seal, count, clock.now().isoformat(timespec="microseconds"))


def kept_head() -> Head | None:
    """Return the head in STATE_DIR, or None if none was kept yet. Raises OSError, UnreadableHead."""
    try:
        heads = read_heads(state_file.path(FILE))
    except FileNotFoundError:
        return None
    if len(heads) != 1:
        raise UnreadableHead(f"{FILE} holds {len(heads)} heads")
    return heads[0]


def keep_head() -> None:
    """Keep the newest head in STATE_DIR, and log the first head of each hour. A head has ids and hashes only.

    A kept head that the trail no longer contains is never overwritten, because it proves that the trail was changed.
    Raises OSError, UnreadableHead.
    """
    with state_file.locked(FILE):
        kept = kept_head()
        if kept and not _contains(kept):
            log.error("trail.differs_from_head", alarm=True, **asdict(kept))
            return
        head = newest_head(since=kept)
        if head and (kept is None or head.id > kept.id):
            state_file.replace(FILE, f"{head}\n")
            if kept is None or _hour(head) != _hour(kept):
                log.info("trail.head", **asdict(head))
    if waiting := _unsealed()[0]:
        log.error("trail.not_sealed", alarm=True, entries=waiting)


def _contains(head: Head) -> bool:
    return AuditEntry.objects.filter(pk=head.id, seal=head.seal).exists()


def _hour(head: Head) -> str:
    return head.at[: len("2026-01-01T00")]


# --- To verify ----------------------------------------------------------------------------------------------


class Broken(NamedTuple):
    """A fault of the trail: the entry where it shows, and its kind, one of those below."""

    entry: int
    kind: str
    other: int = 0  # the entry before it; for "cut", the last entry that exists
    at: str = ""  # when the head was kept

    def __str__(self) -> str:
        return {
            "unreadable": _("監査記録 %(entry)s を読み取れません。"),
            "inserted": _(
                "監査記録 %(entry)s は、封印のつながりに属していません。あとから挿入された記録です。"
            ),
            "beginning": _("監査記録 %(entry)s より前にあった最初の記録が失われています。"),
            "missing": _(
                "監査記録 %(other)s と %(entry)s の間の記録が失われているか、%(other)s が封印し直されています。"
            ),
            "link": _(
                "監査記録 %(entry)s は、直前の %(other)s につながりません。"
                "入れ替えられたか、どちらかが封印し直されています。"
            ),
            "seal": _("監査記録 %(entry)s の内容が、封印されたときから変更されています。"),
            "text": _("監査記録 %(entry)s の各欄が、封印された内容と一致しません。"),
            "cut": _(
                "末尾の記録が失われています。"
                "%(at)s には %(entry)s まで封印されていましたが、いまは %(other)s で終わっています。"
            ),
            "head_gone": _("%(at)s に末尾だった監査記録 %(entry)s が失われています。"),
            "rewritten": _(
                "監査記録 %(entry)s までが書き換えられています。%(at)s に控えた封印と一致しません。"
            ),
        }[self.kind] % (self._asdict() | {"at": _in_japan(self.at)})


def _in_japan(at: str) -> str:
    """Return a head's time as the pages show times; as it stands if it is no time, since a head is not ours alone."""
    try:
        return f"{timezone.localtime(datetime.fromisoformat(at)):%Y/%m/%d %H:%M:%S}"
    except ValueError:
        return at


@dataclass
class Report:
    """What verify() found."""

    after: int | None = None  # the sealed entry that it went on from
    checked: int = 0  # sealed entries without a fault
    until: int = 0  # the last sealed entry that was read
    until_at: datetime | None = None
    whole: bool = True  # False if the time was up before the end
    heads: int = 0  # kept heads that were compared
    broken: list[Broken] = field(default_factory=list)  # the first NAMED
    faults: int = 0  # how many there are
    waiting: int = 0  # unsealed for longer than OVERDUE
    waiting_first: int = 0
    late: int = 0  # unsealed among sealed ones. See Note [The order of the seals]
    late_first: int = 0

    @property
    def ok(self) -> bool:
        """Return whether no fault was found, as far as the trail was read."""
        return not (self.broken or self.waiting or self.late)

    def facts(self) -> dict[str, Any]:
        """Return what the trail records of this verification."""
        return {
            "checked": self.checked,
            "after": self.after,
            "until": self.until,
            "whole": self.whole,
            "heads": self.heads,
            "broken": self.broken[0].kind if self.broken else "",
            "entry": self.broken[0].entry if self.broken else None,
            "faults": self.faults,
            "waiting": self.waiting,
            "late": self.late,
        }

    def sentences(self) -> list[str]:
        """Return what is wrong, in sentences for people."""
        words = [str(each) for each in self.broken]
        if more := self.faults - len(self.broken):
            words.append(_("このほかにも異常が %(count)s 件あります。") % {"count": more})
        if self.late:
            words.append(
                _(
                    "封印済みの記録の間に、封印のない記録が %(count)s 件あります(最初は %(first)s)。"
                    "あとから挿入されたか、記録の確定が大きく遅れたものです。"
                )
                % {"count": self.late, "first": self.late_first}
            )
        if self.waiting:
            words.append(
                _(
                    "%(seconds)s秒を過ぎても封印されていない記録が %(count)s 件あります(最初は %(first)s)。"
                    "ワーカーが動いているか確認してください。"
                )
                % {
                    "count": self.waiting,
                    "first": self.waiting_first,
                    "seconds": int(OVERDUE.total_seconds()),
                }
            )
        return words


def verify(heads: Iterable[Head] = (), *, after: int | None = None, seconds: float | None = None) -> Report:
    """Compare the trail, in the order of its ids, with its seals and with the heads kept outside the database.

    Only reads, by the page, and takes no lock. Entries that are sealed meanwhile are left to the next verification. It
    goes on behind a fault, so that one fault can't hide another.

    Args:
        heads: heads kept elsewhere. The one in STATE_DIR is compared in any case.
        after: the sealed entry to go on from; it and those before it are not verified. None for the beginning.
        seconds: the time that this may take. Past it, the report says how far the trail was verified.

    Raises: OSError, UnreadableHead for the head in STATE_DIR.
    """
    kept = kept_head()  # before the trail is read, which then reaches at least as far as this head
    wanted = sorted({*heads, *([kept] if kept else [])})
    last, _seal = _last_sealed()
    report = Report(heads=len(wanted))
    ends = None if seconds is None else time.monotonic() + seconds
    chain = _Chain(report, wanted, after)
    report.after = chain.last
    for entries, unreadable in _pages(chain.last, last):
        chain.take(entries)
        if unreadable:
            chain.skip(unreadable)
        if ends is not None and time.monotonic() >= ends and (chain.last or 0) < last:
            report.whole = False
            break
    if chain.heads_fit:
        # Heads that were not met on the way: their entries are gone, or were not reached.
        unmet = itertools.chain.from_iterable(chain.unmet.values())
        if differs := next(filter(None, (_compare(head, last) for head in unmet)), None):
            chain.tell(differs)
    report.waiting, report.waiting_first = _unsealed(behind=last)
    unsealed = AuditEntry.objects.filter(seal=None, pk__lte=last)
    late = _behind(report.after, unsealed).aggregate(n=Count("pk"), first=Min("pk"))
    report.late, report.late_first = late["n"], late["first"] or 0
    return report


class _Chain:
    """Walks along the seals, and checks that each entry follows the one before it."""

    def __init__(self, report: Report, heads: list[Head], after: int | None) -> None:
        self.report = report
        self.unmet: dict[int, list[Head]] = {}
        for head in heads:
            self.unmet.setdefault(head.id, []).append(head)
        self.heads_fit = True
        sealed = AuditEntry.objects.filter(seal__isnull=False)
        start = None if after is None else sealed.filter(pk=after).values_list("pk", "seal").first()
        self.last: int | None = start[0] if start else None
        self.seal = str(start[1]) if start else BEGINNING
        self.before: str | None = None  # the seal before that

    def take(self, entries: list[AuditEntry]) -> None:
        """Report faults of the entries, which come next in the order of their ids."""
        for entry in entries:
            if entry.seal is None:
                continue  # verify() counts these
            faults = [*self._faults(entry)]
            for fault in faults:
                self.tell(fault)
            self._go_on(entry.pk, entry.previous_seal, entry.seal)
            self.report.checked += not faults
            self.report.until, self.report.until_at = entry.pk, entry.at

    def skip(self, pk: int) -> None:
        """Report an entry that can't be read, and go on behind it: its seals can be read."""
        self.tell(Broken(pk, "unreadable"))
        previous, seal = AuditEntry.objects.values_list("previous_seal", "seal").get(pk=pk)
        if seal is not None:
            self._go_on(pk, previous, seal)

    def tell(self, fault: Broken) -> None:
        self.report.faults += 1
        if self.report.faults <= NAMED:
            self.report.broken.append(fault)

    def _go_on(self, pk: int, previous: str | None, seal: str) -> None:
        """The next entry has to follow this seal, whatever else is wrong with this entry."""
        self.before, self.seal, self.last = previous, seal, pk

    def _faults(self, entry: AuditEntry) -> Iterator[Broken]:
        if entry.previous_seal != self.seal:
            if self.last is None:
                yield Broken(entry.pk, "beginning")
            elif self.before is not None and entry.previous_seal == self.before:
                yield Broken(self.last, "inserted")
            else:
                yield Broken(entry.pk, "link" if entry.pk == self.last + 1 else "missing", other=self.last)
        if entry.seal != seal_of(entry.previous_seal or "", entry.text):
            yield Broken(entry.pk, "seal")
        else:
            try:
                if audit.canonical(entry) != entry.text:
                    yield Broken(entry.pk, "text")
            except UNREADABLE:
                yield Broken(entry.pk, "unreadable")
        for head in self.unmet.pop(entry.pk, ()):
            if head.seal != entry.seal and self.heads_fit:
                self.heads_fit = False  # only the oldest is reported: no later head can fit either
                yield Broken(entry.pk, "rewritten", at=head.at)


def _pages(after: int | None, until: int) -> Iterator[tuple[list[AuditEntry], int]]:
    """Yield pages of entries, each with the id of the unreadable entry that follows it, or 0 if none does."""
    while True:
        rows = _behind(after, AuditEntry.objects.filter(pk__lte=until))
        try:
            entries, unreadable = list(rows[:PAGE]), 0
        except UNREADABLE:
            entries, unreadable = _up_to_the_unreadable(rows)
        if not entries and not unreadable:
            return
        yield entries, unreadable
        after = unreadable or entries[-1].pk


def _up_to_the_unreadable(rows: QuerySet[AuditEntry]) -> tuple[list[AuditEntry], int]:
    entries = []
    for pk in rows.values_list("pk", flat=True)[:PAGE]:
        try:
            entries.append(AuditEntry.objects.get(pk=pk))
        except UNREADABLE:
            return entries, pk
    return entries, 0


def _compare(head: Head, last: int) -> Broken | None:
    if head.id > last:
        return Broken(head.id, "cut", other=last, at=head.at)
    entry = AuditEntry.objects.filter(pk=head.id).values_list("seal").first()
    if entry is None:
        return Broken(head.id, "head_gone", at=head.at)
    return None if entry[0] == head.seal else Broken(head.id, "rewritten", at=head.at)


def _unsealed(behind: int | None = None) -> tuple[int, int]:
    """Return how many entries (behind this one) have been unsealed for longer than OVERDUE, and the first of them."""
    overdue = Q(seal=None, at__lt=clock.now() - OVERDUE)
    found = _behind(behind, AuditEntry.objects.filter(overdue)).aggregate(n=Count("pk"), first=Min("pk"))
    return found["n"], found["first"] or 0
