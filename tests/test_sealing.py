"""The trail that can be checked: how it is sealed, that whatever is done to it shows and is named, how it is taken along."""

import csv
import hashlib
import io
import json
import logging
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import translation

from dashboard.models import User
from refunds import audit, jobs, sealing, spreadsheet, state_file
from refunds.models import AuditEntry, Order
from tests.conftest import Clock, guards, make_user, name_guard, sign_in
from tests.site import ROOT

VERIFY = "/admin/refunds/auditentry/verify/"
EXPORTS = ["/admin/refunds/auditentry/export.csv", "/admin/refunds/auditentry/export.jsonl"]


@pytest.fixture
def trail(db: None, at: Clock) -> list[int]:
    """The ids of ten sealed entries, one a minute."""
    return sealed(at, 10)


def sealed(at: Clock, count: int) -> list[int]:
    ids = []
    for number in range(count):
        ids.append(audit.record(None, "refunds.listed", None, number=number).pk)
        at.advance(minutes=1)
    assert sealing.seal() == count
    return ids


def entry(pk: int) -> AuditEntry:
    return AuditEntry.objects.get(pk=pk)


class Editor:
    """As much of a schema editor as the guards need; Django's own is not for SQLite inside a transaction."""

    connection = connection

    def execute(self, statement: Any, params: Any = ()) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement, params)


@contextmanager
def guards_lifted() -> Iterator[None]:
    """What the owner of the database can do: without the guards, for a moment."""
    if connection.vendor == "postgresql":
        Editor().execute("SET CONSTRAINTS ALL IMMEDIATE", None)
    for each in (guards, name_guard):
        each.remove(None, Editor())
    yield
    for each in (guards, name_guard):
        each.install(None, Editor())


def tamper(statement: str, *values: Any) -> None:
    with guards_lifted(), connection.cursor() as cursor:
        cursor.execute(statement.replace("TRAIL", "refunds_auditentry"), values)


def rewrite(*, since: int, **columns: Any) -> None:
    """What somebody who knows how it is done would do: change an entry, and seal it and all that follow anew."""
    with guards_lifted():
        previous = AuditEntry.objects.filter(pk__lt=since).order_by("-pk").values_list("seal", flat=True)
        seal = previous.first() or sealing.BEGINNING
        for each in AuditEntry.objects.filter(pk__gte=since).order_by("pk"):
            if each.pk == since:
                for name, value in columns.items():
                    setattr(each, name, value)
                each.text = audit.canonical(each)
            each.previous_seal, each.seal = seal, sealing.seal_of(seal or "", each.text)
            each.save()
            seal = each.seal


def forge(pk: int, previous: str | None, **columns: Any) -> None:
    """An entry that never was, at an id that is free; sealed if it is given what to be sealed over."""
    forged = AuditEntry(pk=pk, action="refund.approved", data={}, **({"at": datetime.now(tz=UTC)} | columns))
    forged.text = audit.canonical(forged)
    if previous is not None:
        forged.previous_seal, forged.seal = previous, sealing.seal_of(previous, forged.text)
    with guards_lifted():
        forged.save(force_insert=True)


def broken() -> list[tuple[str, int]]:
    """What verify() names, and that it puts it into words of both languages."""
    report = sealing.verify()
    assert report.ok == (not report.sentences())
    assert report.faults == len(report.broken)
    for number, fault in enumerate(report.broken):
        spoken = report.sentences()[number]
        assert str(fault.entry) in spoken
        with translation.override("en"):
            assert str(fault.entry) in report.sentences()[number] != spoken
    return [(fault.kind, fault.entry) for fault in report.broken]


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [
        record.msg
        for record in caplog.records
        if isinstance(record.msg, dict) and record.msg["event"] == name
    ]


# --- How it is sealed ---------------------------------------------------------------------------------------


def test_seal_is_the_hash_of_the_seal_before_and_the_text(trail: list[int]) -> None:
    previous = "0" * 64
    for each in AuditEntry.objects.order_by("pk"):
        assert each.previous_seal == previous
        assert each.seal == hashlib.sha256(previous.encode() + each.text.encode()).hexdigest()
        previous = each.seal

    report = sealing.verify()
    assert (report.ok, report.checked, report.until, report.whole) == (True, 10, trail[-1], True)


def test_seal_is_the_same_on_every_database() -> None:
    text = '{"data":{"理由":"サイズ交換"}}'

    assert (
        sealing.seal_of("0" * 64, text) == "552792a6edd4e9958cce04fcde4914c1610c5f260710701973ce19f50e12be0d"
    )


def test_sealing_is_done_in_batches_and_goes_on(db: None, at: Clock) -> None:
    ids = [audit.record(None, "refunds.listed", None).pk for _number in range(5)]
    at.advance(seconds=31)

    assert [sealing.seal(2) for _round in range(4)] == [2, 2, 1, 0]
    assert list(AuditEntry.objects.exclude(seal=None).order_by("pk").values_list("pk", flat=True)) == ids
    assert sealing.verify().checked == 5


def test_many_that_wait_are_sealed_in_larger_batches(
    db: None, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "BATCH", 1)
    monkeypatch.setattr(sealing, "MANY", 3)
    for _number in range(5):
        audit.record(None, "refunds.listed", None)
    at.advance(seconds=31)

    assert [sealing.seal() for _round in range(4)] == [3, 1, 1, 0]
    assert sealing.verify().checked == 5


def test_nothing_to_seal_takes_no_lock(trail: list[int], django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        assert sealing.seal() == 0


def test_empty_trail_is_intact(db: None) -> None:
    assert sealing.seal() == 0
    sealing.keep_head()

    report = sealing.verify()
    assert (report.ok, report.checked, report.heads) == (True, 0, 0)


def test_gap_is_passed_when_what_is_missing_must_have_been_rolled_back(trail: list[int], at: Clock) -> None:
    arrive(trail[-1] + 1, at)
    arrive(trail[-1] + 3, at)

    assert sealing.seal() == 1  # the one before the gap
    at.advance(seconds=29)
    assert sealing.seal() == 0
    at.advance(seconds=2)
    assert sealing.seal() == 1
    assert sealing.verify().ok


def test_gap_before_an_entry_of_a_time_to_come_is_passed_by_the_age_of_those_behind_it(
    trail: list[int], at: Clock
) -> None:
    future = AuditEntry(pk=trail[-1] + 2, at=at.now + timedelta(days=36500), action="refunds.listed")
    future.text = audit.canonical(future)
    future.save(force_insert=True)
    arrive(trail[-1] + 3, at)

    assert sealing.seal() == 0
    at.advance(seconds=31)
    assert sealing.seal() == 2
    assert sealing.verify().ok


def test_entry_that_fills_a_gap_in_time_is_sealed_in_its_place(trail: list[int], at: Clock) -> None:
    arrive(trail[-1] + 2, at)
    assert sealing.seal() == 0
    arrive(trail[-1] + 1, at)

    assert sealing.seal() == 2
    assert entry(trail[-1] + 2).previous_seal == entry(trail[-1] + 1).seal


def test_entry_that_comes_too_late_stays_unsealed_and_is_named(trail: list[int], at: Clock) -> None:
    late = trail[-1] + 1
    arrive(late + 1, at)
    at.advance(seconds=31)
    assert sealing.seal() == 1
    arrive(late, at)
    arrive(late + 2, at)

    assert [sealing.seal(), sealing.seal()] == [1, 0]  # it holds nobody up
    assert entry(late).seal is None
    report = sealing.verify()
    assert (report.ok, report.late, report.late_first, report.broken) == (False, 1, late, [])
    assert str(late) in report.sentences()[0]


def arrive(pk: int, at: Clock) -> None:
    """An entry becomes visible that took this id a moment ago."""
    arrived = AuditEntry(pk=pk, at=at.now, action="refunds.listed")
    arrived.text = audit.canonical(arrived)
    arrived.save(force_insert=True)


def test_unsealed_for_a_minute_is_told(trail: list[int], at: Clock) -> None:
    waiting = audit.record(None, "refunds.listed", None).pk
    at.advance(seconds=59)
    assert sealing.verify().ok
    at.advance(seconds=2)

    report = sealing.verify()
    assert (report.ok, report.waiting, report.waiting_first) == (False, 1, waiting)
    assert str(waiting) in report.sentences()[0]


# --- Several at once ----------------------------------------------------------------------------------------


@contextmanager
def elsewhere(work: Any) -> Iterator[None]:
    """Do something on a connection of its own meanwhile; it has to end well."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as fault:
            faults.append(fault)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
    assert not faults, faults
    assert not thread.is_alive()


@pytest.mark.postgresql  # SQLite has one writer at a time: ids become visible in their order
@pytest.mark.django_db(transaction=True)
def test_lower_id_that_commits_later_is_waited_for(at: Clock) -> None:
    sealed(at, 1)
    taken, commit = threading.Event(), threading.Event()

    def slow() -> None:
        with transaction.atomic():
            audit.record(None, "refunds.listed", None, which="slow")
            taken.set()
            assert commit.wait(20)

    with elsewhere(slow):
        assert taken.wait(20)
        quick = audit.record(None, "refunds.listed", None, which="quick")
        assert AuditEntry.objects.count() == 2
        assert sealing.seal() == 0
        commit.set()

    assert sealing.seal() == 2
    assert entry(quick.pk - 1).data == {"which": "slow"}
    assert entry(quick.pk).previous_seal == entry(quick.pk - 1).seal
    assert sealing.verify().ok


@pytest.mark.postgresql  # SQLite has one writer at a time
@pytest.mark.django_db(transaction=True)
def test_rolled_back_entry_is_a_gap_that_is_passed(at: Clock) -> None:
    sealed(at, 1)
    with transaction.atomic():
        audit.record(None, "refunds.listed", None)
        transaction.set_rollback(True)
    after = audit.record(None, "refunds.listed", None)

    assert sealing.seal() == 0
    at.advance(seconds=31)
    assert sealing.seal() == 1
    assert entry(after.pk).seal
    assert sealing.verify().ok


@pytest.mark.postgresql  # SQLite has one writer at a time
@pytest.mark.django_db(transaction=True)
def test_neither_pages_nor_other_sealers_wait_for_a_sealer(at: Clock, settings: Any) -> None:
    person = make_user("operator")
    ids = [audit.record(None, "refunds.listed", None).pk for _number in range(20)]
    at.advance(seconds=31)
    busy, end = threading.Event(), threading.Event()

    def long() -> None:
        with transaction.atomic():
            assert sealing.seal(10) == 10
            busy.set()
            assert end.wait(20)

    with elsewhere(long):
        assert busy.wait(20)
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1s'")  # who waits, fails
        assert sealing.seal() == 0
        assert sign_in(person).get(reverse("refunds:refund_list")).status_code == 200
        assert sealing.verify().ok
        assert AuditEntry.objects.filter(pk__in=ids, seal=None).count() == 20  # the sealer was still at it
        end.set()
    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")
    assert AuditEntry.objects.filter(action="refunds.listed", actor=person).exists()


@pytest.mark.postgresql  # SQLite has one writer at a time
@pytest.mark.django_db(transaction=True)
def test_many_sealers_and_writers_make_one_chain() -> None:
    for _number in range(50):
        audit.record(None, "refunds.listed", None)
    start, done = threading.Barrier(6), threading.Event()

    def write() -> None:
        start.wait(20)
        for number in range(60):
            with transaction.atomic():
                audit.record(None, "refunds.listed", None, number=number)
                transaction.set_rollback(number % 20 == 7)

    def seal() -> None:
        start.wait(20)
        while not done.is_set():
            sealing.seal(7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "GAP", timedelta(seconds=1))
        with elsewhere(seal), elsewhere(seal), elsewhere(seal):
            try:
                with elsewhere(write), elsewhere(write), elsewhere(write):
                    pass
                threading.Event().wait(1.5)
            finally:
                done.set()
        while sealing.seal():
            pass

    report = sealing.verify()
    assert (report.ok, report.checked, report.late) == (True, 50 + 3 * 57, 0), report


# --- What is done to it shows -------------------------------------------------------------------------------


def test_edited_column_is_found(trail: list[int]) -> None:
    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id = %s", trail[4])

    assert broken() == [("text", trail[4])]


@pytest.mark.parametrize(
    "column", ["data", "at", "actor_name", "action", "object_id", "order_id", "ip", "request_id"]
)
def test_whatever_column_is_edited(trail: list[int], at: Clock, column: str) -> None:
    other = {"data": '{"number": 5}', "at": at.now, "ip": "192.0.2.9"}.get(column, "x")
    tamper(f"UPDATE TRAIL SET {column} = %s WHERE id = %s", other, trail[4])  # noqa: S608

    assert broken() == [("text", trail[4])]


def test_person_who_is_renamed_did_under_the_name_of_that_time_what_they_did(
    at: Clock, auditor: User
) -> None:
    person = make_user("operator", name="返金 花子")
    audit.record(person, "refunds.listed", None)
    at.advance(seconds=31)
    sealing.seal()
    User.objects.filter(pk=person.pk).update(name="別人 太郎")
    browser = sign_in(auditor)

    page = text(browser.get("/admin/refunds/auditentry/", {"action__exact": "refunds.listed"}))
    assert re.findall(r'field-person">(.*?)</td>', page) == ["返金 花子"]
    for typed in ("返金 花子", "別人 太郎"):  # by the name of now as well: it is the same person
        kept = browser.get("/admin/refunds/auditentry/", {"q": typed})["Location"].rpartition("q=")[2]
        found = rows(browser, q=kept, action__exact="refunds.listed")
        assert [(each["actor"], each["person"], each["actor_name"]) for each in found] == [
            (person.pk, "返金 花子", "返金 花子")
        ]
    content = b"".join(taken(browser, "csv", action__exact="refunds.listed")).decode("utf-8-sig")
    [line] = csv.DictReader(io.StringIO(content))
    assert (line["利用者の番号"], line["利用者"]) == (str(person.pk), "返金 花子")

    tamper("UPDATE TRAIL SET actor_name = '別人 太郎' WHERE action = 'refunds.listed'")
    assert [kind for kind, _entry in broken()] == ["text"]


def test_entries_from_before_names_were_kept_are_intact_and_named_as_now(
    trail: list[int], at: Clock, operator: User
) -> None:
    old = AuditEntry(at=at.now, actor=operator, roles="operator", action="refunds.listed")
    old.text = audit.canonical(old)
    old.save()
    assert '"actor_name"' not in old.text
    at.advance(seconds=31)
    sealing.seal()

    assert (old.person, broken()) == ("返金 花子", [])
    tamper("UPDATE TRAIL SET actor_name = '返金 花子' WHERE id = %s", old.pk)
    assert broken() == [("text", old.pk)]


def test_edited_text_is_found_also_where_the_columns_agree(trail: list[int]) -> None:
    edited = entry(trail[4])
    edited.roles = "auditor"
    tamper("UPDATE TRAIL SET roles = 'auditor', text = %s WHERE id = %s", audit.canonical(edited), trail[4])

    assert broken() == [("seal", trail[4])]


def test_edited_entry_that_was_sealed_again_no_longer_fits(trail: list[int]) -> None:
    edited = entry(trail[4])
    edited.roles = "auditor"
    text = audit.canonical(edited)
    seal = sealing.seal_of(edited.previous_seal or "", text)
    tamper("UPDATE TRAIL SET roles = 'auditor', text = %s, seal = %s WHERE id = %s", text, seal, trail[4])

    assert broken() == [("link", trail[5])]
    assert sealing.verify().broken[0].other == trail[4]


def test_deleted_entry_is_missed(trail: list[int]) -> None:
    tamper("DELETE FROM TRAIL WHERE id = %s", trail[4])

    assert broken() == [("missing", trail[5])]
    assert sealing.verify().broken[0].other == trail[3]


def test_deleted_beginning_is_missed(trail: list[int]) -> None:
    tamper("DELETE FROM TRAIL WHERE id <= %s", trail[2])

    assert broken() == [("beginning", trail[3])]


def test_removed_seal_is_missed(trail: list[int]) -> None:
    tamper("UPDATE TRAIL SET seal = NULL, previous_seal = NULL WHERE id = %s", trail[4])

    assert broken() == [("missing", trail[5])]
    assert sealing.verify().late == 1


def test_cut_tail_is_missed_by_who_kept_the_head(trail: list[int], at: Clock) -> None:
    sealing.keep_head()
    tamper("DELETE FROM TRAIL WHERE id > %s", trail[7])

    assert broken() == [("cut", trail[9])]
    assert sealing.verify().checked == 8

    # Also when more was recorded since.
    arrive(trail[9] + 1, at)
    at.advance(seconds=31)
    sealing.seal()
    assert broken() == [("head_gone", trail[9])]


def test_cut_tail_is_not_missed_without_a_head(trail: list[int]) -> None:
    """What a chain can't prove, and why the head is kept elsewhere."""
    tamper("DELETE FROM TRAIL WHERE id > %s", trail[7])

    assert broken() == []


def test_trail_that_is_gone_is_missed_by_who_kept_the_head(trail: list[int]) -> None:
    sealing.keep_head()
    tamper("DELETE FROM TRAIL")

    assert broken() == [("cut", trail[9])]


def test_swapped_entries_are_found(trail: list[int]) -> None:
    tamper("UPDATE TRAIL SET id = -1 WHERE id = %s", trail[4])
    tamper("UPDATE TRAIL SET id = %s WHERE id = %s", trail[4], trail[5])
    tamper("UPDATE TRAIL SET id = %s WHERE id = -1", trail[5])

    assert broken() == [("link", trail[4]), ("link", trail[5]), ("link", trail[6])]


def test_swapped_contents_are_found(trail: list[int]) -> None:
    first, second = entry(trail[4]), entry(trail[5])
    for pk, other in ((trail[4], second), (trail[5], first)):
        tamper(
            "UPDATE TRAIL SET at = %s, data = %s, text = %s WHERE id = %s",
            other.at, json.dumps(other.data), other.text, pk,
        )  # fmt: skip

    assert broken() == [("seal", trail[4]), ("seal", trail[5])]


@pytest.fixture
def gap(trail: list[int], at: Clock) -> int:
    """An id that was rolled back, among sealed ones."""
    for pk in (trail[-1] + 2, trail[-1] + 3):
        arrive(pk, at)
    at.advance(seconds=31)
    assert sealing.seal() == 2
    return trail[-1] + 1


def test_forged_entry_in_between_is_found(gap: int) -> None:
    forge(gap, entry(gap - 1).seal)

    assert broken() == [("inserted", gap)]


def test_forged_entry_that_fits_nowhere_is_found(gap: int) -> None:
    forge(gap, "a" * 64)

    assert broken() == [("link", gap), ("link", gap + 1)]


def test_forged_entry_without_a_seal_is_found(gap: int, at: Clock) -> None:
    forge(gap, None, at=at.now + timedelta(days=1))

    assert broken() == []
    report = sealing.verify()
    assert (report.ok, report.late, report.late_first) == (False, 1, gap)


def test_forged_beginning_is_found(trail: list[int]) -> None:
    forge(trail[0] - 1, sealing.BEGINNING)

    assert broken() == [("inserted", trail[0] - 1)]


def test_full_rewrite_is_found_by_who_kept_the_head(trail: list[int]) -> None:
    sealing.keep_head()
    rewrite(since=trail[4], roles="auditor")

    assert broken() == [("rewritten", trail[9])]
    Path(state_file.path(sealing.FILE)).unlink()
    assert broken() == []  # what a chain can't prove


def test_oldest_head_that_no_longer_fits_is_named(trail: list[int], at: Clock) -> None:
    heads = []
    for _day in range(3):
        head = sealing.newest_head()
        assert head
        heads.append(head)
        arrive(head.id + 1, at)
        sealing.seal()
    rewrite(since=heads[1].id, roles="auditor")

    report = sealing.verify(heads)
    assert [(fault.kind, fault.entry) for fault in report.broken] == [("rewritten", heads[1].id)]
    assert report.heads == 3


def test_head_of_another_trail_is_told_apart(gap: int, tmp_path: Path) -> None:
    report = sealing.verify([sealing.Head(gap, "a" * 64, 11, "2026-03-09T00:00:00+00:00")])

    assert [(fault.kind, fault.entry) for fault in report.broken] == [("head_gone", gap)]


@pytest.mark.parametrize("page", [2, 1000])
def test_entry_that_can_not_be_read_is_named(
    trail: list[int], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(sealing, "PAGE", page)
    nonsense = {"postgresql": "infinity", "sqlite": "2026-99-99 00:00:00"}[connection.vendor]
    tamper("UPDATE TRAIL SET at = %s WHERE id = %s", nonsense, trail[4])

    assert broken() == [("unreadable", trail[4])]
    assert sealing.verify().checked == 9


@pytest.mark.sqlite  # PostgreSQL's columns have types
def test_entry_without_a_time_is_named(trail: list[int]) -> None:
    tamper("UPDATE TRAIL SET at = 'yesterday' WHERE id = %s", trail[4])

    assert broken() == [("unreadable", trail[4])]


def test_database_that_is_gone_is_no_broken_trail(trail: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: Any) -> Any:
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(audit, "canonical", gone)
    with pytest.raises(OperationalError):
        sealing.verify()


def test_each_of_several_is_named_wherever_pages_end(
    trail: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealing.keep_head()
    nonsense = {"postgresql": "infinity", "sqlite": "2026-99-99 00:00:00"}[connection.vendor]
    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id IN (%s, %s)", trail[1], trail[6])
    tamper("UPDATE TRAIL SET at = %s WHERE id = %s", nonsense, trail[3])
    tamper("UPDATE TRAIL SET seal = NULL, previous_seal = NULL WHERE id = %s", trail[4])
    tamper("DELETE FROM TRAIL WHERE id IN (%s, %s)", trail[7], trail[9])

    for page in (1, 2, 3, 4, 100):
        monkeypatch.setattr(sealing, "PAGE", page)
        assert broken() == [
            ("text", trail[1]),
            ("unreadable", trail[3]),
            ("missing", trail[5]),
            ("text", trail[6]),
            ("missing", trail[8]),
            ("cut", trail[9]),
        ]
        report = sealing.verify()
        assert (report.checked, report.late, report.until) == (2, 1, trail[8])


def test_of_very_many_the_others_are_counted(trail: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "NAMED", 2)
    tamper("UPDATE TRAIL SET roles = 'auditor'")

    report = sealing.verify()

    assert ([fault.entry for fault in report.broken], report.faults) == (trail[:2], 10)
    assert report.sentences()[2] == "このほかにも異常が 8 件あります。"


def test_row_with_an_id_far_ahead_hides_nothing_that_is_wrong_before_it_or_behind(
    trail: list[int], at: Clock
) -> None:
    """What the application's role may not insert (see grants.py), and the owner of the tables may."""
    sealing.keep_head()
    ahead = 4_000_000_000_000
    AuditEntry.objects.bulk_create([AuditEntry(pk=ahead, at=at.now, action="refunds.listed", text="x")])
    at.advance(seconds=31)
    assert sealing.seal() == 1
    waiting = trail[-1] + 1
    arrive(waiting, at)
    arrive(ahead + 1, at)
    assert sealing.seal() == 1
    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id IN (%s, %s)", trail[4], ahead + 1)

    assert broken() == [("text", trail[4]), ("text", ahead), ("text", ahead + 1)]
    report = sealing.verify()
    assert (report.checked, report.late, report.late_first) == (9, 1, waiting)


@pytest.mark.postgresql  # SQLite gives the next entry the next id
def test_row_with_an_id_far_ahead_is_taken_out_as_the_operations_manual_says(
    trail: list[int], at: Clock
) -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    _before, begin, rest = manual.partition("ALTER TABLE refunds_auditentry DISABLE TRIGGER USER;")
    statements = begin + rest.partition("COMMIT;")[0]
    AuditEntry.objects.bulk_create([AuditEntry(pk=4_000_000_000_000, at=at.now, action="refunds.listed")])
    at.advance(seconds=31)
    assert sealing.seal() == 1
    arrive(trail[-1] + 1, at)
    assert sealing.seal() == 0

    Editor().execute("SET CONSTRAINTS ALL IMMEDIATE", None)
    Editor().execute(statements, None)

    assert sealing.seal() == 1
    assert sealing.verify().ok
    with pytest.raises(IntegrityError, match="never deleted"), transaction.atomic():
        AuditEntry.objects.all().delete()


def test_what_is_known_to_be_wrong_is_left_behind(trail: list[int], at: Clock) -> None:
    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id = %s", trail[4])
    tamper("UPDATE TRAIL SET seal = NULL, previous_seal = NULL WHERE id = %s", trail[1])
    with pytest.raises(CommandError, match=f"{trail[2]}(.|\n)*{trail[4]}(.|\n)*{trail[1]}"):
        command()

    said = command("--after", str(trail[5]), "--no-head")
    assert f"intact: 4, behind {trail[5]}, the last of them: {trail[9]}" in said

    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id = %s", trail[6])
    with pytest.raises(CommandError, match=f"(?a)^[ -~]*{trail[6]}[ -~]*$"):
        command("--after", str(trail[5]))
    with pytest.raises(CommandError, match=f"no sealed entry {trail[1]}"):
        command("--after", str(trail[1]))


def test_trail_is_read_a_page_at_a_time(
    trail: list[int], monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(sealing, "PAGE", 4)

    with django_assert_num_queries(1 + 4 + 2):  # the end; three pages and none; what is unsealed, twice
        assert sealing.verify().checked == 10


def test_long_trail_is_verified_bit_by_bit(trail: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    sealing.keep_head()
    monkeypatch.setattr(sealing, "PAGE", 4)

    first = sealing.verify(seconds=0)
    assert (first.ok, first.whole, first.checked, first.until) == (True, False, 4, trail[3])
    second = sealing.verify(after=first.until, seconds=0)
    assert (second.whole, second.checked, second.until) == (False, 4, trail[7])
    third = sealing.verify(after=second.until, seconds=0)
    assert (third.ok, third.whole, third.checked, third.until) == (True, True, 2, trail[9])
    tamper("DELETE FROM TRAIL WHERE id = %s", trail[4])
    assert sealing.verify(seconds=0).ok
    assert [fault.kind for fault in sealing.verify(after=trail[3]).broken] == ["missing"]


def test_head_is_compared_even_where_the_time_is_over_before_it(
    trail: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealing.keep_head()
    tamper("DELETE FROM TRAIL WHERE id > %s", trail[7])
    monkeypatch.setattr(sealing, "PAGE", 4)

    report = sealing.verify(seconds=0)

    assert [fault.kind for fault in report.broken] == ["cut"]


def test_what_is_sealed_meanwhile_is_no_break(
    trail: list[int], at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "PAGE", 4)
    new = audit.record(None, "refunds.listed", None).pk
    canonical = audit.canonical

    def and_seal(each: AuditEntry) -> str:
        if each.pk == trail[5]:
            sealing.seal()
            sealing.keep_head()
        return canonical(each)

    monkeypatch.setattr(audit, "canonical", and_seal)

    report = sealing.verify()

    assert entry(new).seal
    assert (report.ok, report.checked) == (True, 10)


# --- The head ------------------------------------------------------------------------------------------------


def test_head_is_kept_outside_the_database_and_moves_on(trail: list[int], at: Clock) -> None:
    sealing.keep_head()
    kept = sealing.kept_head()
    assert kept == sealing.Head(
        trail[-1], entry(trail[-1]).seal or "", 10, at.now.isoformat(timespec="microseconds")
    )

    at.advance(minutes=1)
    sealing.keep_head()
    assert sealing.kept_head() == kept  # nothing new

    sealed(at, 2)
    sealing.keep_head()
    moved = sealing.kept_head()
    assert moved
    assert (moved.count, moved.id) == (12, trail[-1] + 2)
    assert moved == sealing.newest_head()  # counted as a whole


def test_directory_of_the_head_is_made(trail: list[int], settings: Any, tmp_path: Path) -> None:
    settings.STATE_DIR = tmp_path / "new"

    sealing.keep_head()

    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert sorted(path.name for path in settings.STATE_DIR.iterdir()) == ["audit-head", "audit-head.lock"]


def test_head_goes_to_the_log_once_an_hour(
    trail: list[int], at: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    at.now = at.now.replace(minute=0)
    for _minute in range(5):
        arrive((AuditEntry.objects.latest("id").pk) + 1, at)
        sealing.seal()
        sealing.keep_head()
        at.advance(minutes=20)

    logged = events(caplog, "trail.head")
    assert [each["count"] for each in logged] == [11, 14]
    assert logged[0].keys() >= {"id", "seal", "count", "at"}
    assert sealing.verify([sealing.Head.parse(json.dumps(each, default=str)) for each in logged]).ok


def test_head_that_is_no_longer_in_the_trail_is_kept_as_the_proof(
    trail: list[int], at: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sealing.keep_head()
    kept = sealing.kept_head()
    rewrite(since=trail[0], roles="auditor")
    sealed(at, 1)

    sealing.keep_head()

    assert sealing.kept_head() == kept
    assert [each["alarm"] for each in events(caplog, "trail.differs_from_head")] == [True]


def test_trail_that_nobody_seals_raises_an_alarm(
    trail: list[int], at: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    audit.record(None, "refunds.listed", None)
    at.advance(seconds=61)

    sealing.keep_head()

    assert [each["entries"] for each in events(caplog, "trail.not_sealed")] == [1]


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"id": "x"}', "\x00", "1\n2"])
def test_head_that_is_none_is_not_taken_for_one(trail: list[int], content: str) -> None:
    state_file.path(sealing.FILE).write_text(content)

    with pytest.raises(sealing.UnreadableHead):
        sealing.verify()
    with pytest.raises(sealing.UnreadableHead):
        sealing.keep_head()
    assert state_file.path(sealing.FILE).read_text() == content


# --- The command ---------------------------------------------------------------------------------------------


def command(*arguments: str) -> str:
    out = io.StringIO()
    call_command("verify_audit", *arguments, stdout=out)
    return out.getvalue()


def test_command_tells_that_the_trail_is_intact(trail: list[int]) -> None:
    sealing.keep_head()

    assert "intact: 10, the last of them: " in (said := command())
    assert "no kept head" not in said
    assert said.endswith("kept heads compared: 1\nthe trail is intact\n")


def test_command_fails_where_no_head_was_compared_unless_told_that_there_is_none(
    trail: list[int], settings: Any, tmp_path: Path
) -> None:
    sealing.keep_head()
    settings.STATE_DIR = tmp_path / "of another machine"

    with pytest.raises(
        CommandError, match=r"no kept head was compared.* none is in STATE_DIR \(.*another"
    ) as failed:
        command()
    assert failed.value.returncode == 1
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CommandError, match="no kept head was compared"):
        command("--head", str(tmp_path / "empty"))

    with pytest.raises(CommandError, match="no kept head was compared"):
        command("--after", str(trail[-1]))

    said = command("--no-head")
    assert "no kept head was compared" in said
    assert said.endswith("the trail is intact\n")


def test_command_needs_no_head_where_nothing_is_sealed(db: None) -> None:
    audit.record(None, "refunds.listed", None)

    assert command().endswith("the trail is intact\n")


def test_command_names_what_is_broken_in_english_and_fails(trail: list[int]) -> None:
    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id = %s", trail[4])

    with pytest.raises(CommandError, match=f"(?a)^[ -~]*{trail[4]}[ -~]*$") as failed:
        command()
    assert failed.value.returncode == 1


def test_command_compares_heads_that_were_kept_elsewhere(trail: list[int], tmp_path: Path) -> None:
    file = tmp_path / "heads.jsonl"
    file.write_text(command("--print-head"))
    assert "kept heads compared: 1" in command("--head", str(file))

    rewrite(since=trail[4], roles="auditor")

    with pytest.raises(CommandError, match=str(trail[9])):
        command("--head", str(file))
    assert "the trail is intact" in command("--no-head")


def test_command_fails_for_a_head_that_is_none(trail: list[int], tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_text("{}")
    for name in ("nonsense", "nowhere"):
        with pytest.raises(CommandError, match="could not be read"):
            command("--head", str(tmp_path / name))


def test_command_has_no_head_to_print_before_anything_is_sealed(db: None) -> None:
    with pytest.raises(CommandError, match="nothing is sealed"):
        command("--print-head")


# --- The worker ----------------------------------------------------------------------------------------------


def test_job_catches_up_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [sealing.BATCH, sealing.MANY, 3]
    pauses: list[float] = []
    monkeypatch.setattr(sealing, "seal", lambda: rounds.pop(0))
    monkeypatch.setattr("refunds.jobs.time.sleep", pauses.append)

    jobs.seal()

    assert (rounds, pauses) == ([], [jobs.CATCH_UP_SECONDS] * 2)


# --- The admin -----------------------------------------------------------------------------------------------


@pytest.fixture
def browser(trail: list[int], auditor: User) -> Client:
    """An auditor, who came when the trail was sealed."""
    return sign_in(auditor)


def text(page: Any) -> str:
    return page.content.decode()


def test_list_offers_to_verify_and_to_take_along_what_it_shows(browser: Client, trail: list[int]) -> None:
    page = text(browser.get("/admin/refunds/auditentry/", {"outcome__exact": "done", "p": "1"}))

    assert f'action="{VERIFY}"' in page
    assert [f'href="{address}?outcome__exact=done"' in page for address in EXPORTS] == [True, True]


def test_button_verifies_the_trail_and_is_recorded(browser: Client, trail: list[int], auditor: User) -> None:
    sealing.keep_head()

    page = text(browser.post(VERIFY))

    assert "監査記録は、封印されたときのままです。" in page
    assert "確認できた記録: 10&nbsp;件" in page
    assert "控えた封印がない" not in page
    kept = AuditEntry.objects.latest("id")
    assert (kept.action, kept.actor, kept.data) == (
        "audit.verified",
        auditor,
        {"after": None, "broken": "", "checked": 10, "entry": None, "faults": 0, "heads": 1, "late": 0, "until": trail[-1], "waiting": 0, "whole": True},
    )  # fmt: skip


def test_button_names_what_is_broken(browser: Client, trail: list[int]) -> None:
    tamper("UPDATE TRAIL SET roles = 'auditor' WHERE id = %s", trail[4])

    page = text(browser.post(VERIFY))

    assert f"監査記録 {trail[4]} の各欄" in page
    assert "封印されたときのままです" not in page
    assert "控えた封印がない" in page
    kept = AuditEntry.objects.latest("id").data
    assert (kept["broken"], kept["entry"]) == ("text", trail[4])


def test_button_says_how_far_it_came_and_goes_on(
    browser: Client, trail: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "PAGE", 6)
    monkeypatch.setattr("refunds.admin.trail.VERIFY_SECONDS", 0)

    page = text(browser.post(VERIFY))
    assert "まだ途中です" in page
    assert "封印されたときのままです" not in page
    assert f'name="after" value="{trail[5]}"' in page

    page = text(browser.post(VERIFY, {"after": str(trail[5])}))
    assert "続きを検証" not in page
    assert f"記録 {trail[5]} より後の監査記録は、封印されたときのままです。" in page
    assert AuditEntry.objects.latest("id").data["after"] == trail[5]


@pytest.mark.parametrize("after", ["", "x", "-1", "9" * 40, "１", "0"])
def test_whatever_it_should_go_on_from(browser: Client, trail: list[int], after: str) -> None:
    assert "確認できた記録: 10&nbsp;件" in text(browser.post(VERIFY, {"after": after}))


def test_button_tells_that_the_kept_head_can_not_be_read(browser: Client, trail: list[int]) -> None:
    state_file.path(sealing.FILE).write_text("nonsense")

    assert "読み取れないため、検証できません" in text(browser.post(VERIFY))
    assert AuditEntry.objects.latest("id").data == {"broken": "kept_head"}


def test_verifying_is_posted_and_exports_are_read(browser: Client) -> None:
    assert browser.get(VERIFY).status_code == 405
    assert [browser.post(address).status_code for address in EXPORTS] == [405, 405]


@pytest.mark.parametrize("role", ["viewer", "operator", "approver"])
def test_trail_is_neither_verified_nor_taken_along_by_others(db: None, role: str) -> None:
    person = make_user(role)
    for staff in (False, True):
        person.is_staff = staff
        person.save()
        browser = sign_in(person)
        assert browser.post(VERIFY, follow=True).status_code == 403
        assert [browser.get(address, follow=True).status_code for address in EXPORTS] == [403, 403]
    assert not AuditEntry.objects.filter(action__startswith="audit").exists()


def test_nobody_who_is_not_signed_in_gets_the_trail(db: None) -> None:
    for address in EXPORTS:
        assert "/sign-in/" in Client().get(address, follow=True).redirect_chain[-1][0]


# --- To take along -------------------------------------------------------------------------------------------


def taken(browser: Client, kind: str, **filters: Any) -> Any:
    answer: Any = browser.get(f"/admin/refunds/auditentry/export.{kind}", filters)
    assert answer.status_code == 200
    assert answer.streaming
    return answer


def rows(browser: Client, **filters: Any) -> list[dict[str, Any]]:
    content = b"".join(taken(browser, "jsonl", **filters)).decode()
    return [json.loads(line) for line in content.splitlines()]


def test_json_lines_can_be_checked_with_other_tools(
    browser: Client, trail: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "PAGE", 3)

    lines = [each for each in rows(browser) if each["seal"]]

    assert [each["id"] for each in lines] == trail
    previous = "0" * 64
    for each in lines:
        assert each["previous_seal"] == previous
        assert each["seal"] == hashlib.sha256((previous + each["text"]).encode()).hexdigest()
        told = json.loads(each["text"])
        assert {name: each[name] for name in told} == told
        previous = each["seal"]


def test_csv_opens_in_excel_and_calculates_nothing(browser: Client, order: Order, at: Clock) -> None:
    person = make_user("operator", name='=HYPERLINK("http://evil")')
    at.now = datetime(2026, 3, 8, 15, 0, 0, 5, tzinfo=UTC)
    audit.record(person, "order.viewed", order, note="改行\n")

    answer = taken(browser, "csv", action__exact="order.viewed")
    content = b"".join(answer)

    assert content.startswith(b"\xef\xbb\xbf")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert answer["Content-Disposition"].startswith('attachment; filename="audit-2026')
    heading, *lines = csv.reader(io.StringIO(content.decode("utf-8-sig")))
    assert heading[:6] == ["番号", "日時", "利用者の番号", "利用者", "役割", "操作"]
    assert len(lines) == 1
    kept = dict(zip(heading, lines[0], strict=True))
    assert (kept["日時"], kept["操作"], kept["結果"]) == (
        "2026-03-09 00:00:00.000005+09:00",
        "注文の閲覧",
        "実行",
    )
    assert kept["利用者"] == '\'=HYPERLINK("http://evil")'
    assert json.loads(kept["内容"]) == {"note": "改行\n"}


def test_csv_is_in_the_language_of_its_reader(browser: Client, trail: list[int]) -> None:
    browser.cookies["django_language"] = "en"

    heading, first, *_others = b"".join(taken(browser, "csv")).decode("utf-8-sig").splitlines()

    assert heading.startswith("Number,")
    assert "person.signed_in" not in first
    assert heading.isascii()


@pytest.mark.parametrize("sign", list("=+-@\t\r\n＝＋－＠"))
def test_no_sign_begins_a_formula(sign: str) -> None:
    assert spreadsheet.cell(f"{sign}1+1") == f"'{sign}1+1"
    assert spreadsheet.cell(f"1{sign}1") == f"1{sign}1"


def test_nothing_is_an_empty_cell() -> None:
    assert [spreadsheet.cell(value) for value in (None, "", 0)] == ["", "", "0"]


def test_what_is_taken_is_what_the_list_shows(browser: Client, trail: list[int], at: Clock) -> None:
    person, other = make_user("operator"), make_user("approver")
    at.now = datetime(2026, 3, 9, 3, tzinfo=UTC)
    wanted = audit.record(person, "refunds.listed", None).pk
    audit.record(other, "refunds.listed", None)
    audit.record(person, "orders.listed", None)
    at.advance(days=1)
    audit.record(person, "refunds.listed", None)

    filters: dict[str, Any] = {
        "actor__id__exact": person.pk,
        "action__exact": "refunds.listed",
        "at__year": 2026,
        "at__month": 3,
        "at__day": 9,
    }
    page: Any = browser.get("/admin/refunds/auditentry/", filters)
    assert [each.pk for each in page.context["cl"].result_list] == [wanted]

    assert [each["id"] for each in rows(browser, **filters)] == [wanted]


def test_object_is_searched_by_the_kept_search_and_never_by_words_in_the_address(
    browser: Client, order: Order, trail: list[int]
) -> None:
    viewed = audit.record(None, "order.viewed", order).pk
    listed = browser.get("/admin/refunds/auditentry/", {"q": order.order_id})["Location"]
    kept = listed.rpartition("q=")[2]

    assert [each["id"] for each in rows(browser, q=kept)] == [viewed]
    record = AuditEntry.objects.latest("id")
    assert (record.object_id, record.data["entries"]) == (kept, 1)
    assert len(record.data["words"]) == 64

    answer = browser.get(EXPORTS[0], {"q": "nothing-that-was-kept"})
    assert (answer.status_code, answer["Location"]) == (
        302,
        "/admin/refunds/auditentry/?q=nothing-that-was-kept",
    )


def test_filter_that_is_none_takes_nothing_along(browser: Client) -> None:
    answer = browser.get(EXPORTS[0], {"at__year": "x"})

    assert (answer.status_code, answer["Location"]) == (302, "/admin/refunds/auditentry/")
    assert not AuditEntry.objects.filter(action="audit.exported").exists()


def test_taking_along_is_recorded_before_the_first_line(
    browser: Client, trail: list[int], auditor: User
) -> None:
    newest = AuditEntry.objects.latest("id").pk

    lines = rows(browser, action__exact="refunds.listed")

    record = AuditEntry.objects.latest("id")
    assert (record.action, record.actor) == ("audit.exported", auditor)
    assert record.data == {
        "kind": "jsonl",
        "filters": {"action__exact": "refunds.listed"},
        "words": "",
        "entries": 10,
        "until": newest,
    }
    assert len(lines) == 10


@pytest.mark.parametrize(
    ("at", "told"), [("2026-11-22T15:30:01.500000+00:00", "2026/11/23 00:30:01"), ("yesterday", "yesterday")]
)
@pytest.mark.parametrize("kind", ["cut", "head_gone", "rewritten"])
def test_time_of_a_head_is_told_as_pages_tell_times(kind: str, at: str, told: str) -> None:
    assert told in str(sealing.Broken(7, kind, other=5, at=at))
