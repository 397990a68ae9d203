"""一括返金: files as people have them, what speaks against a line, and every line once whatever dies."""

import csv
import io
import re
import threading
import unicodedata
import uuid
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dashboard.models import User
from refunds import bulk, bulk_file, csv_file, services
from refunds.folding import fold_reference
from refunds.models import AuditEntry, Bulk, BulkLine, Payment, Refund
from tests.conftest import Asking, Clock, make_order, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh
from tests.test_services import ask, at_smartpay, mirrored, observe, refund, shown, unknown, work

HEAD = "注文ID,ショップ注文番号,返金額,説明,理由"
Line, Problem = BulkLine.State, BulkLine.Problem


@pytest.fixture
def payments(db: None, sandbox: Sandbox) -> list[Payment]:
    return [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(4)]


def file_of(*lines: str, head: str = HEAD) -> bytes:
    return "\n".join([head, *lines]).encode()


def line_for(payment: Payment, amount: object = 100, description: str = "", reason: str = "") -> str:
    return f"{payment.order.order_id},,{amount},{description},{reason}"


def checked(by: User, *lines: str) -> Bulk:
    kept, _is_new = bulk.upload("返金.csv", file_of(*lines), by=by)
    bulk.work()
    kept.refresh_from_db()
    return kept


def started(by: User, *lines: str, **more: Any) -> Bulk:
    return bulk.start(checked(by, *lines).pk, by=by, **more)


def until_done(kept: Bulk, at: Clock) -> Bulk:
    for _round in range(50):
        bulk.work()
        at.advance(seconds=10)
        work()
        kept.refresh_from_db()
        if kept.state == Bulk.State.DONE:
            return kept
    raise AssertionError(bulk.tally(kept))


def states(kept: Bulk) -> list[str]:
    return list(kept.lines.order_by("number").values_list("state", flat=True))


def problems(kept: Bulk) -> list[str]:
    return list(kept.lines.order_by("number").values_list("problem", flat=True))


def executed(sandbox: Sandbox, payments: list[Payment]) -> list[int]:
    return [each["amount"] for payment in payments for each in at_smartpay(sandbox, payment)]


# --- The file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
@pytest.mark.parametrize(
    ("head", "separator"),
    [
        ("注文ID,ショップ注文番号,返金額,説明,理由", ","),
        ("注文ＩＤ, 参照番号 ,金額,説明,理由", ","),
        ("order_id,reference,amount,description,reason", ","),
        ("注文ID\tショップ注文番号\t返金額\t説明\t理由", "\t"),
    ],
)
def test_file_is_the_same_whatever_wrote_it(encoding: str, head: str, separator: str) -> None:
    cells = [
        ["order_1", "", "1,000" if separator == "\t" else '"1,000"', "髙﨑様 欠品", ""],
        ["", "EC-1", "残額", "", ""],
    ]
    text = "\r\n".join([head, *(separator.join(row) for row in cells), "", ""])

    lines = bulk_file.read(text.encode(encoding))

    assert [(line.number, line.order, line.reference, line.amount, line.description) for line in lines] == [
        (2, "order_1", "", "1,000", "髙﨑様 欠品"),
        (3, "", "EC-1", "残額", ""),
    ]
    plain = file_of('order_1,,"1,000",髙﨑様 欠品,', ",EC-1,残額,,")
    assert bulk_file.digest(lines) == bulk_file.digest(bulk_file.read(plain))


def test_file_that_another_program_saved_again_is_the_same() -> None:
    """A Mac takes a letter apart, and names some characters of Shift_JIS as Windows does not."""
    said = "がパ 10〜20−5‖—¥£"
    windows = "がパ 10～20－5∥―".encode("cp932") + b"\\" + "￡".encode("cp932")
    files = [
        file_of(f"a,,100,{said},"),
        file_of(f"a,,100,{unicodedata.normalize('NFD', said)},"),
        file_of("a,,100,").decode().encode("cp932") + windows + b",",
    ]

    assert len({bulk_file.digest(bulk_file.read(file)) for file in files}) == 1
    assert bulk_file.read(files[0])[0].description == said
    other = file_of("a,,100,がバ 10〜20−5‖—¥£,")
    assert bulk_file.digest(bulk_file.read(other)) != bulk_file.digest(bulk_file.read(files[0]))


def test_columns_that_are_not_ours_are_left_alone() -> None:
    lines = bulk_file.read("お客様名,返金額,注文ID\n田中,100,order_1\n,,\n佐藤,200,order_2".encode())

    assert [(line.number, line.order, line.amount) for line in lines] == [
        (2, "order_1", "100"),
        (4, "order_2", "200"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "空です"),
        (HEAD.encode(), "返金する行がありません"),
        ("注文ID,説明\na,b".encode(), "返金額"),
        ("返金額,説明\n1,b".encode(), "返金額"),
        ("注文ID,返金額,金額\na,1,1".encode(), "同じ列"),
        (file_of('a,,"1'), "引用符"),
        (b"\xff\xfe\x00a", "文字コード|CSV"),
        (file_of("a,,1\x00,,"), "CSV"),
        (b"x" * (5 * 1024 * 1024 + 1), "大きすぎます"),
        (file_of(*["a,,1,,"] * 10_001), "10,000行まで"),
        (HEAD.encode() + b"\n" * 30_000, "10,000行まで"),
        (b"x,1\n1,000,00", "列の名前"),
        (file_of("a,,1,000,説明,"), "3 行目|2 行目"),
        ("注文ID,返金額\na,100\nb,1,000".encode(), "3 行目の列がずれている"),
        ("注文ID,返金額,説明\na,1,500".encode(), "2 行目の列がずれている"),
        ("注文ID,返金額,説明\na,¥1,500".encode(), "2 行目の列がずれている"),
        ("注文ID,返金額,説明\na,￥1,500".encode(), "2 行目の列がずれている"),
        ("注文ID,返金額,説明\na,¥ 1, 500 円".encode(), "2 行目の列がずれている"),
        ("注文ID,返金額,説明\na,¥1,500-".encode(), "2 行目の列がずれている"),
        ("注文ID,返金額,説明\na,1,500.00".encode(), "2 行目の列がずれている"),
        (file_of("a,," + "0" * 37 + "1000,,"), "返金額」が長すぎます"),
        (file_of("a,,1," + "あ\u3099" * 201 + ","), "説明」が長すぎます"),
        (("x" * 101 + ",返金額,注文ID\n,1,a").encode(), "列の名前が長すぎます"),
    ],
)
def test_file_that_can_not_be_read_says_why(data: bytes, words: str) -> None:
    with pytest.raises(csv_file.BadFile, match=words):
        bulk_file.read(data)


@pytest.mark.parametrize("row", ['a,"1,500"', 'a,"1,500",100', "a,1500,100"])
def test_amount_that_is_whole_is_taken_whatever_is_beside_it(row: str) -> None:
    [line] = bulk_file.read(f"注文ID,返金額,説明\n{row}".encode())

    assert line.amount.replace(",", "") == "1500"


# --- What a line means --------------------------------------------------------------------------------------


def test_line_names_its_order_by_id_or_reference_and_its_amount_in_any_way_people_write(
    payments: list[Payment], operator: User
) -> None:
    first, second, third, _ = payments
    second.order.reference, second.order.reference_folded = "EC-77", "ec77"
    second.order.save()

    kept = checked(
        operator,
        f'{first.order.order_id},,"¥1,000", 欠品のため ,fraudulent',
        ",EC-77,１００円,,お客様からの依頼",
        f"{third.order.order_id},,残額,,",
    )

    assert (kept.state, states(kept)) == (Bulk.State.CHECKED, [Line.READY] * 3)
    lines = kept.lines.order_by("number")
    assert [(each.payment_id, each.amount, each.reason) for each in lines] == [
        (first.pk, 1000, "fraudulent"),
        (second.pk, 100, "requested_by_customer"),
        (third.pk, third.refundable(), "requested_by_customer"),
    ]


def test_each_line_is_told_what_speaks_against_it(
    payments: list[Payment], operator: User, sandbox: Sandbox, settings: Any
) -> None:
    settings.REFUND_MAX_AMOUNT = 1500
    first, second, third, _ = payments
    unknown(third, operator, sandbox)
    unpaid, several = make_order(), make_order(500, 500)
    empty = make_order(500)
    Payment.objects.filter(order=empty).update(external=500)
    for order in (unpaid, empty):
        order.reference = order.reference_folded = "twice"
        order.save(update_fields=["reference", "reference_folded"])

    kept = checked(
        operator,
        "order_test_none,,100,,",
        ",nowhere,100,,",
        f"{first.order.order_id},twice,100,,",
        ",twice,100,,",
        line_for(first, "千円"),
        line_for(first, "0"),
        line_for(first, "1.5"),
        line_for(first, 100, "あ" * 81),
        line_for(first, 100, "", "気まぐれ"),
        f"{unpaid.order_id},,100,,",
        f"{several.order_id},,100,,",
        f"{empty.order_id},,100,,",
        line_for(first, first.captured + 1),
        line_for(first, 1501),
        line_for(third, 100),
        line_for(second, 100),
    )

    assert problems(kept) == [
        Problem.ORDER, Problem.ORDER, Problem.ORDERS_DIFFER, Problem.ORDERS, Problem.AMOUNT, Problem.AMOUNT,
        Problem.AMOUNT, Problem.DESCRIPTION, Problem.REASON, Problem.NOT_PAID, Problem.PAYMENTS,
        Problem.NOTHING_LEFT, Problem.TOO_HIGH, Problem.MAXIMUM, Problem.UNSETTLED, "",
    ]  # fmt: skip
    assert states(kept) == [Line.PROBLEM] * 15 + [Line.READY]
    assert AuditEntry.objects.filter(action="bulk.uploaded", object_id=str(kept.pk)).exists()


def test_lines_of_one_payment_share_what_is_left(payments: list[Payment], operator: User) -> None:
    payment = payments[0]
    left = payment.refundable()

    kept = checked(operator, line_for(payment, left - 100), line_for(payment, 101), line_for(payment, "残額"))

    assert (states(kept), problems(kept)) == (
        [Line.READY, Line.PROBLEM, Line.SIMILAR],
        ["", Problem.TOO_HIGH, ""],
    )
    assert kept.lines.get(number=4).amount == 100


def test_same_order_twice_and_a_refund_of_yesterday_are_similar(
    payments: list[Payment], operator: User
) -> None:
    first, second, third, _ = payments
    refund(second, operator, 100)

    kept = checked(operator, line_for(first), line_for(second), line_for(first), line_for(third))

    assert states(kept) == [Line.READY, Line.SIMILAR, Line.SIMILAR, Line.READY]


def test_ten_thousand_lines_are_checked_in_few_queries_each(
    payments: list[Payment], operator: User, django_assert_max_num_queries: Any
) -> None:
    lines = [line_for(payments[0], 1, str(number)) for number in range(40)]
    bulk.upload("x.csv", file_of(*lines), by=operator)

    with django_assert_max_num_queries(40 * 9 + 20):
        bulk.work()


# --- Every line once ----------------------------------------------------------------------------------------


def test_file_is_refunded_line_by_line_and_tells_the_truth(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    kept = started(
        operator, line_for(payments[0], 300, "欠品"), line_for(payments[1], 200), "order_test_none,,1,,"
    )

    until_done(kept, at)

    assert states(kept) == [Line.ASKED, Line.ASKED, Line.PROBLEM]
    assert sorted(executed(sandbox, payments)) == [200, 300]
    assert (kept.total, bulk.tally(kept)["succeeded"]) == (500, bulk.Share(2, 500))
    rows = Refund.objects.order_by("amount")
    assert [(row.description, row.requested_by, row.decided_by) for row in rows] == [
        ("", operator, None),
        ("欠品", operator, None),
    ]
    actions = (
        AuditEntry.objects.filter(object_id=str(kept.pk)).order_by("pk").values_list("action", flat=True)
    )
    assert list(actions) == ["bulk.uploaded", "bulk.started", "bulk.done"]


def test_same_contents_are_the_same_file(payments: list[Payment], operator: User, approver: User) -> None:
    first, is_new = bulk.upload("a.csv", file_of(line_for(payments[0])), by=operator)
    again, is_new_again = bulk.upload(
        "b.csv", file_of(line_for(payments[0])).decode().encode("cp932"), by=approver
    )

    assert (again.pk, is_new, is_new_again) == (first.pk, True, False)


def test_file_that_was_cancelled_half_way_and_uploaded_again_refunds_no_line_twice(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "AHEAD", 1)
    lines = [line_for(payment) for payment in payments[:3]]
    kept = started(operator, *lines)
    bulk.work()
    at.advance(seconds=10)
    work()
    bulk.work()
    bulk.cancel(kept.pk, by=operator)
    assert executed(sandbox, payments) == [100]
    assert Refund.objects.filter(state="cancelled").count() == 1

    again = checked(operator, *lines)

    assert again.pk != kept.pk
    assert problems(again) == [Problem.USED, Problem.NOT_MADE, ""]
    until_done(bulk.start(again.pk, by=operator), at)
    assert executed(sandbox, payments) == [100, 100]


def test_line_whose_refund_failed_is_not_called_accepted_when_its_file_comes_again(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    lines = [line_for(payment) for payment in payments[:2]]
    kept = started(operator, *lines)
    bulk.work()
    sandbox.fault("status_failed")
    at.advance(seconds=10)
    work()
    bulk.cancel(kept.pk, by=operator)
    assert set(Refund.objects.values_list("state", flat=True)) == {"rejected", "succeeded"}

    assert sorted(problems(checked(operator, *lines))) == [Problem.NOT_MADE, Problem.USED]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_worker_that_dies_between_a_row_and_its_line_asks_for_nothing_twice(
    payments: list[Payment],
    operator: User,
    sandbox: Sandbox,
    at: Clock,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    kept = started(operator, *(line_for(payment) for payment in payments))
    request_refund, asked = services.request_refund, []

    def dies(*args: Any, **options: Any) -> Refund:
        made = request_refund(*args, **options)
        asked.append(made)
        if len(asked) == after + 1:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(services, "request_refund", dies)
    with pytest.raises(KeyboardInterrupt):
        bulk.work()
    at.advance(seconds=61)  # the lease of who died

    until_done(kept, at)

    assert executed(sandbox, payments) == [100] * 4
    assert Refund.objects.count() == 4


def test_two_workers_are_not_at_the_same_file(payments: list[Payment], operator: User, at: Clock) -> None:
    kept = started(operator, line_for(payments[0]))
    assert bulk._lease(kept, "another")

    bulk.work()
    assert not Refund.objects.exists()
    at.advance(seconds=61)
    bulk.work()
    assert Refund.objects.count() == 1


def test_few_wait_to_be_sent_so_that_a_pause_is_soon_one(
    payments: list[Payment], operator: User, monkeypatch: pytest.MonkeyPatch, at: Clock
) -> None:
    monkeypatch.setattr(bulk, "AHEAD", 2)
    kept = started(operator, *(line_for(payment) for payment in payments))
    for _round in range(3):
        bulk.work()
    assert states(kept) == [Line.ASKED, Line.ASKED, Line.READY, Line.READY]

    bulk.pause(kept.pk, by=operator, paused=True)
    at.advance(seconds=10)
    work()
    bulk.work()
    assert states(kept)[2:] == [Line.READY, Line.READY]
    bulk.pause(kept.pk, by=operator, paused=False)
    until_done(kept, at)
    assert Refund.objects.filter(state="succeeded").count() == 4


@pytest.mark.parametrize("fault", ["rate_limited", "forbidden"])
def test_file_that_meets_a_wall_does_not_run_all_its_lines_against_it(
    payments: list[Payment],
    operator: User,
    sandbox: Sandbox,
    at: Clock,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(bulk, "AHEAD", 2)
    kept = started(operator, *[line_for(payment) for payment in payments])
    sandbox.fault(fault, times=None)
    for _round in range(4):
        bulk.work()
        work()
        at.advance(seconds=1)
    assert bulk.tally(kept) == {"ready": bulk.Share(2, 200), "unknown": bulk.Share(2, 200)}

    sandbox.clear_faults()
    at.advance(hours=1)

    until_done(kept, at)
    assert executed(sandbox, payments) == [100] * 4


def test_line_whose_balance_moved_is_refused_and_the_others_go_on(
    payments: list[Payment], operator: User, at: Clock
) -> None:
    kept = started(operator, line_for(payments[0]), line_for(payments[1]))
    refund(payments[0], make_user("operator"), 50)

    until_done(kept, at)

    assert (states(kept), problems(kept)) == ([Line.REFUSED, Line.ASKED], [Problem.MOVED, ""])


def test_line_waits_while_an_earlier_refund_of_its_payment_is_open(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    kept = started(
        operator, line_for(payments[0], 10), line_for(payments[0], 20), similar_reason="二点の欠品"
    )
    sandbox.fault("reset", executed=False)
    bulk.work()
    at.advance(seconds=10)
    work()
    assert bulk.tally(kept)["unknown"].lines == 1

    until_done(kept, at)

    assert sorted(executed(sandbox, payments)) == [10, 20]


def test_line_of_a_person_who_left_is_refused(payments: list[Payment], operator: User, at: Clock) -> None:
    kept = started(operator, line_for(payments[0]))
    operator.groups.clear()

    until_done(kept, at)

    assert (states(kept), problems(kept)) == ([Line.REFUSED], [Problem.NOT_ENTITLED])
    assert not Refund.objects.exists()


def test_similar_lines_are_left_out_without_a_reason_and_refunded_with_one(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    refund(payments[0], operator, 100)
    without = started(operator, line_for(payments[0], 5), line_for(payments[1], 6))
    until_done(without, at)
    assert (states(without), problems(without)) == ([Line.LEFT_OUT, Line.ASKED], [Problem.NO_REASON, ""])

    until_done(started(operator, line_for(payments[0], 7), similar_reason="別の商品"), at)

    assert sorted(executed(sandbox, payments)) == [6, 7, 100]
    assert Refund.objects.get(amount=7).similar_reason == "別の商品"


def test_reason_is_about_the_similar_lines_alone(
    payments: list[Payment], operator: User, approver: User, at: Clock
) -> None:
    refund(payments[0], approver, 100)
    theirs, other = (
        make_order(9000, name="鈴木 一", email="suzuki@example.jp").payments.get() for _ in range(2)
    )
    kept = started(operator, line_for(payments[0], 5), line_for(theirs, 6), similar_reason="別の商品")
    services.request_refund(ask(other, 6), refundable=9000, by=approver)

    bulk.work()

    assert (states(kept), problems(kept)) == ([Line.ASKED, Line.REFUSED], ["", Problem.SIMILAR])
    assert Refund.objects.get(amount=5).similar_reason == "別の商品"
    refused = AuditEntry.objects.get(action="refund.requested", outcome="refused", object_id=str(kept.pk))
    assert (refused.data["line"], refused.data["why"]) == (3, "similar")


def test_equal_amounts_for_one_customer_in_a_file_are_similar(db: None, operator: User) -> None:
    first, second, third = (make_order(3000).payments.get() for _ in range(3))

    kept = checked(operator, line_for(first, 500), line_for(second, 500), line_for(third, 400))

    assert states(kept) == [Line.READY, Line.SIMILAR, Line.READY]


def test_reference_is_taken_to_the_letter(db: None, operator: User) -> None:
    order = make_order(3000)
    order.reference, order.reference_folded = "shop_2", "shop2"
    order.save(update_fields=["reference", "reference_folded"])

    kept = checked(operator, ",ｓｈｏｐ_2,1,,", ",SHOP_2,2,,", ",sho・p_2,3,,")

    assert problems(kept) == ["", Problem.ORDER, Problem.ORDER]


def test_reference_is_that_of_the_order_that_was_paid(db: None, operator: User) -> None:
    """Whoever pays at the third attempt leaves two orders of the same reference behind."""
    orders = [make_order(1000), make_order(status="failed"), make_order(status="requires_authorization")]
    left = [make_order(status="rejected"), make_order(status="failed")]
    odd = [make_order(1000), make_order(500, status="failed")]  # a payment counts, whatever the status
    for reference, alike in (("EC-1", orders), ("EC-2", left), ("EC-3", odd)):
        for order in alike:
            order.reference, order.reference_folded = reference, fold_reference(reference)
            order.save(update_fields=["reference", "reference_folded"])

    kept = checked(operator, ",EC-1,100,,", ",EC-2,100,,", ",EC-3,100,,", f"{odd[1].order_id},EC-3,100,,")

    assert problems(kept) == ["", Problem.NOT_PAID, Problem.ORDERS, ""]
    [payment] = orders[0].payments.all()
    assert kept.lines.get(number=2).payment == payment


def test_pause_between_two_lines_is_no_fault_and_resuming_goes_on_at_once(
    payments: list[Payment], operator: User, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    kept = checked(operator, *(line_for(payment) for payment in payments))
    other = started(make_user("operator"), line_for(payments[0], 7))
    bulk.start(kept.pk, by=operator)
    ask_for, asked = bulk._ask_for, []

    def paused(file: Bulk, line: BulkLine) -> None:
        ask_for(file, line)
        asked.append(line)
        if len(asked) == 1:
            bulk.pause(kept.pk, by=operator, paused=True)

    monkeypatch.setattr(bulk, "_ask_for", paused)
    bulk.work()
    assert states(kept) == [Line.ASKED, *[Line.READY] * 3]
    assert states(other) != [Line.READY]  # it did not wait for that
    assert "bulk.turn_failed" not in caplog.text

    bulk.pause(kept.pk, by=operator, paused=False)
    bulk.work()
    assert states(kept) == [Line.ASKED] * 4


def test_defect_in_one_file_holds_up_no_other(
    payments: list[Payment], operator: User, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    first, second = (checked(operator, line_for(payment)) for payment in payments[:2])
    for kept in (first, second):
        bulk.start(kept.pk, by=operator)
    ask_for = bulk._ask_for

    def breaks(file: Bulk, line: BulkLine) -> None:
        if file.pk == first.pk:
            raise ZeroDivisionError
        ask_for(file, line)

    monkeypatch.setattr(bulk, "_ask_for", breaks)
    bulk.work()

    assert (states(first), states(second)) == ([Line.READY], [Line.ASKED])
    assert "bulk.turn_failed" in caplog.text


@pytest.mark.parametrize("again", [False, True], ids=["cancelled", "and uploaded again"])
def test_row_whose_file_was_cancelled_by_somebody_who_died_half_way_is_never_sent(
    payments: list[Payment], operator: User, approver: User, sandbox: Sandbox, at: Clock, again: bool
) -> None:
    kept = started(operator, line_for(payments[0]))
    bulk.work()
    bulk.cancel(kept.pk, by=approver)
    assert Refund.objects.get().state == Refund.State.QUEUED
    if again:
        assert problems(checked(operator, line_for(payments[0]))) == [Problem.NOT_MADE]

    at.advance(seconds=10)
    work()

    made = Refund.objects.get()
    assert (made.state, made.cancelled_because) == (Refund.State.CANCELLED, Refund.Cancelled.WITHDRAWN)
    assert executed(sandbox, payments) == []


def test_line_that_the_ledger_lost_is_written_anew_though_its_file_does_not_run(
    payments: list[Payment], operator: User, sandbox: Sandbox
) -> None:
    kept = checked(
        operator, line_for(payments[0], 700)
    )  # as a database is that was put back to before the start
    lost = Refund(pk=kept.lines.get().request_id, payment=payments[0], amount=700)
    observe(shown(lost, metadata={"refund_dashboard_id": str(lost.pk)}))
    assert (Refund.objects.get().recovered, Refund.objects.get().state) == (True, Refund.State.SUCCEEDED)

    bulk.start(kept.pk, by=operator)
    bulk.work()

    assert (states(kept), problems(kept)) == ([Line.REFUSED], [Problem.USED])


def test_lines_are_sent_by_the_next_round_of_a_worker(
    payments: list[Payment], operator: User, sandbox: Sandbox
) -> None:
    """No web request would send them first, and a long file would wait for it line by line."""
    started(operator, *(line_for(payment, 500) for payment in payments[:3]))

    bulk.work()
    work()

    assert executed(sandbox, payments[:3]) == [500, 500, 500]


@pytest.mark.postgresql  # SQLite has one writer at a time
@pytest.mark.django_db(transaction=True)
def test_line_and_who_cancels_its_file_meet(asking: Asking) -> None:
    operator = make_user("operator")
    payment = make_order(5000).payments.get()
    kept = started(operator, line_for(payment, 500))

    def worker() -> None:
        bulk.work()
        connection.close()

    line = threading.Thread(target=worker)
    line.start()
    assert asking.inserted.wait(20)
    threading.Timer(0.5, asking.go_on.set).start()
    bulk.cancel(kept.pk, by=operator)  # waits for the line that is being written
    line.join(20)

    assert states(kept) == [Line.ASKED]
    assert [row.state for row in Refund.objects.all()] == [Refund.State.CANCELLED]


# --- Who may, and how much ----------------------------------------------------------------------------------


def test_sum_above_the_limit_waits_for_another_person_who_approves_all_of_it(
    payments: list[Payment], operator: User, approver: User, sandbox: Sandbox, at: Clock, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 250
    kept = started(operator, line_for(payments[0], 200), line_for(payments[1], 260))
    bulk.work()
    assert (kept.state, Refund.objects.count()) == (Bulk.State.AWAITING_APPROVAL, 0)

    with pytest.raises(PermissionDenied):
        bulk.decide(kept.pk, by=operator, approved=True)
    bulk.decide(kept.pk, by=approver, approved=True, note="確認済み")
    with pytest.raises(bulk.BulkError):
        bulk.decide(kept.pk, by=make_user("approver"), approved=False, note="x")
    until_done(kept, at)

    assert sorted(executed(sandbox, payments)) == [200, 260]
    assert {(row.decided_by, row.decision_note) for row in Refund.objects.all()} == {(approver, "確認済み")}
    asked = AuditEntry.objects.filter(action="refund.requested")
    assert [(entry.actor, entry.data["bulk"], entry.data["approved_by"]) for entry in asked] == [
        (operator, str(kept.pk), approver.pk)
    ] * 2


def test_auditor_reads_files_and_lines_and_who_approved_them(
    payments: list[Payment], operator: User, approver: User, auditor: User, at: Clock, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 150
    kept = started(operator, *(line_for(payment) for payment in payments))
    bulk.decide(kept.pk, by=approver, approved=True)
    until_done(kept, at)
    browser = sign_in(auditor)

    files, file, lines, line, trail = (
        browser.get(page, follow=True).content.decode()
        for page in (
            "/admin/refunds/bulk/",
            f"/admin/refunds/bulk/{kept.pk}/change/",
            f"/admin/refunds/bulkline/?q={kept.pk}",
            f"/admin/refunds/bulkline/{kept.lines.earliest('number').pk}/change/",
            "/admin/refunds/auditentry/?action__exact=refund.requested",
        )
    )

    for page in (files, file):
        assert [word in page for word in (operator.name, approver.name, kept.file_name, "¥400")] == [True] * 4
    assert [str(made.pk) in lines for made in Refund.objects.all()] == [True] * 4
    assert str(kept.lines.earliest("number").request_id) in line
    assert trail.count(f"承認者: {approver.name}") == 4
    assert trail.count(f"一括返金: {kept.pk}") == 4
    listed = AuditEntry.objects.filter(action="admin.listed").earliest("id")
    assert listed.data["shown"] == [str(kept.pk)]


def test_file_that_needs_no_approval_is_on_the_trail_of_its_refunds(
    payments: list[Payment], operator: User, at: Clock
) -> None:
    kept = until_done(started(operator, line_for(payments[0])), at)

    entry = AuditEntry.objects.get(action="refund.requested")
    assert (entry.data["bulk"], "approved_by" in entry.data) == (str(kept.pk), False)


def test_nobody_approves_their_own_file_and_a_rejection_wants_a_reason(
    payments: list[Payment], approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 1
    kept = started(approver, line_for(payments[0]))

    with pytest.raises(PermissionDenied):
        bulk.decide(kept.pk, by=approver, approved=True)
    with pytest.raises(bulk.BulkError, match="理由"):
        bulk.decide(kept.pk, by=make_user("approver"), approved=False)
    bulk.decide(kept.pk, by=make_user("approver"), approved=False, note="金額が違います")

    kept.refresh_from_db()
    assert (kept.state, states(kept)) == (Bulk.State.REJECTED, [Line.LEFT_OUT])


def test_file_is_not_done_while_a_line_waits_for_approval_of_its_own(
    payments: list[Payment], operator: User, settings: Any
) -> None:
    """The limit was lowered after the file was started."""
    kept = started(operator, line_for(payments[0]))
    settings.REFUND_APPROVAL_ABOVE = 50
    for _round in range(3):
        bulk.work()
    kept.refresh_from_db()
    assert (kept.state, Refund.objects.get().state) == (Bulk.State.RUNNING, Refund.State.AWAITING_APPROVAL)

    bulk.cancel(kept.pk, by=operator)

    assert Refund.objects.get().label == "取り下げ"


def test_day_of_a_person_has_a_limit_for_files_too(
    payments: list[Payment], operator: User, settings: Any
) -> None:
    settings.REFUND_DAILY_LIMIT = 150
    kept = checked(operator, line_for(payments[0], 100), line_for(payments[1], 100))
    assert states(kept) == [Line.READY, Line.READY]

    with pytest.raises(bulk.BulkError, match="一日"):
        bulk.start(kept.pk, by=operator)


def test_strangers_neither_start_nor_cancel(payments: list[Payment], operator: User, approver: User) -> None:
    kept = checked(operator, line_for(payments[0]))

    for act, stranger in ((bulk.start, approver), (bulk.cancel, make_user("operator"))):
        with pytest.raises(PermissionDenied):
            act(kept.pk, by=stranger)
    with pytest.raises(PermissionDenied):
        bulk.upload("x.csv", file_of(line_for(payments[1])), by=make_user("viewer"))
    bulk.start(kept.pk, by=operator)
    with pytest.raises(PermissionDenied):
        bulk.pause(kept.pk, by=make_user("operator"), paused=True)
    bulk.pause(kept.pk, by=approver, paused=True)
    with pytest.raises(bulk.BulkError, match="承認者だけ"):
        bulk.pause(kept.pk, by=operator, paused=False)
    pages = [sign_in(each).get(f"/bulk/{kept.pk}/").content.decode() for each in (operator, approver)]
    assert ["再開する" in page for page in pages] == [False, True]
    assert ["再開できるのは承認者だけです" in page for page in pages] == [True, False]
    bulk.pause(kept.pk, by=make_user("approver"), paused=False)
    assert bulk.cancel(kept.pk, by=approver).state == Bulk.State.CANCELLED


def test_file_that_nobody_starts_or_decides_expires(
    payments: list[Payment], operator: User, settings: Any, at: Clock
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 150
    kept = [checked(operator, line_for(payments[0])), started(operator, line_for(payments[1], 200))]
    at.advance(days=6)
    bulk.work()
    assert Bulk.objects.filter(state__in=Bulk.OPEN).count() == 2
    at.advance(days=2)
    bulk.work()

    assert set(Bulk.objects.values_list("state", flat=True)) == {Bulk.State.CANCELLED}
    assert [states(each) for each in kept] == [[Line.LEFT_OUT], [Line.LEFT_OUT]]


def test_file_that_is_too_old_is_neither_decided_nor_resumed(
    payments: list[Payment], operator: User, approver: User, settings: Any, at: Clock
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 150
    running = started(operator, line_for(payments[0]))
    bulk.pause(running.pk, by=operator, paused=True)
    waiting = started(operator, line_for(payments[1], 200))
    at.advance(days=8)

    with pytest.raises(bulk.BulkError, match="期限"):
        bulk.pause(running.pk, by=operator, paused=False)
    with pytest.raises(bulk.BulkError, match="期限"):
        bulk.decide(waiting.pk, by=approver, approved=True)


def test_file_is_started_once_and_not_after_its_end(
    payments: list[Payment], operator: User, at: Clock
) -> None:
    kept = started(operator, line_for(payments[0]))
    with pytest.raises(bulk.BulkError):
        bulk.start(kept.pk, by=operator)
    until_done(kept, at)
    for act in (bulk.start, bulk.cancel):
        with pytest.raises(bulk.BulkError):
            act(kept.pk, by=operator)
    nothing = checked(operator, "order_test_none,,1,,")
    with pytest.raises(bulk.BulkError, match="返金する行がありません"):
        bulk.start(nothing.pk, by=operator)


# --- The pages ----------------------------------------------------------------------------------------------


def upload(browser: Client, data: bytes) -> Any:
    return browser.post("/bulk/", {"file": SimpleUploadedFile("返金.csv", data)})


def test_operator_uploads_looks_starts_and_downloads(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    browser = sign_in(operator)
    answer = upload(browser, file_of(line_for(payments[0], 300, "=1+1"), "order_test_none,,1,,"))
    page = answer["Location"]
    assert answer.status_code == 303
    assert "確認中" in browser.get(page).content.decode()
    bulk.work()
    told = browser.get(page).content.decode()
    assert "1&nbsp;件、合計" in told
    assert "¥300" in told
    assert "返金できない 1&nbsp;行" in told

    assert browser.post(page, {"do": "start"}).status_code == 303
    until_done(Bulk.objects.get(), at)

    assert "返金済み" in browser.get(page).content.decode()
    result = b"".join(browser.get(f"{page}result/").streaming_content).decode("utf-8-sig")  # type: ignore[attr-defined]
    rows = list(csv.DictReader(io.StringIO(result)))
    assert [(row["行"], row["状態"], row["金額"], row["説明"]) for row in rows] == [
        ("2", "返金済み", "300", "'=1+1"),
        ("3", "返金できません", "", ""),
    ]
    assert rows[0]["Smartpay 返金ID"] == at_smartpay(sandbox, payments[0])[0]["id"]
    assert rows[1]["内容"] == "注文が見つかりません。"


def test_bad_file_is_told_beside_its_field(operator: User) -> None:
    browser = sign_in(operator)

    assert "ファイルを選んでください" in browser.post("/bulk/", {}).content.decode()
    answer = upload(browser, b"a,b\n1,2")
    assert answer.status_code == 422
    assert "1行目に列の名前がありません" in answer.content.decode()
    assert not Bulk.objects.exists()


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("address", ["/orders/export/", "/refunds/export/", "/bulk/{}/result/"])
def test_file_that_was_written_out_here_is_no_request_to_refund_what_stands_in_it(
    payments: list[Payment], operator: User, at: Clock, language: str, address: str
) -> None:
    kept = until_done(started(operator, line_for(payments[0])), at)
    browser = sign_in(operator)
    browser.cookies[settings.LANGUAGE_COOKIE_NAME] = language
    written = b"".join(browser.get(address.format(kept.pk)).streaming_content)  # type: ignore[attr-defined]
    assert payments[0].order.order_id in written.decode()

    assert upload(browser, written).status_code == 422
    assert Bulk.objects.get() == kept


def test_same_file_again_opens_the_first(payments: list[Payment], operator: User) -> None:
    browser = sign_in(operator)
    first = upload(browser, file_of(line_for(payments[0])))

    again = upload(browser, file_of(line_for(payments[0])))

    assert again["Location"] == first["Location"]
    assert "すでに取り込まれています" in browser.get(again["Location"]).content.decode()


def test_approver_decides_on_the_page_with_a_fresh_sign_in(
    payments: list[Payment], operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 50
    kept = started(operator, line_for(payments[0]))
    page = f"/bulk/{kept.pk}/"

    browser = sign_in(approver)
    assert page in browser.get("/approvals/").content.decode()
    from_approvals = browser.get(page).content.decode()
    assert re.search(r'<a class="back link" href="/approvals/">.*承認に戻る</a>', from_approvals)
    for consequence in (
        "返金は取り消せません。",
        "手数料は戻りません。",
        "返金額は、次回の精算額から差し引かれます。",
    ):
        assert consequence in from_approvals
    browser.get("/bulk/")
    assert re.search(r'<a class="back link" href="/bulk/">', browser.get(page).content.decode())
    assert "1&nbsp;件あります" in sign_in(approver).get("/").content.decode()
    stale = sign_in(approver).post(page, {"do": "approve"})
    assert "/oidc/step-up/" in stale["Location"]
    browser = fresh(approver)
    assert browser.post(page, {"do": "reject"}).status_code == 422
    assert browser.post(page, {"do": "approve", "note": "x\u202e"}).status_code == 422
    assert browser.post(page, {"do": "approve"}).status_code == 303

    kept.refresh_from_db()
    assert (kept.state, kept.decided_by) == (Bulk.State.RUNNING, approver)


def test_reason_alone_does_not_change_what_is_sent(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    refund(payments[0], operator, 100)
    kept = checked(operator, line_for(payments[0], 5), line_for(payments[1], 6))
    browser, page = sign_in(operator), f"/bulk/{kept.pk}/"
    told = browser.get(page).content.decode()
    assert "1&nbsp;件 ¥6 を返金する</button>" in told
    assert "似た返金も含めて 2&nbsp;件 ¥11 を返金する</button>" in told
    assert "テスト環境</strong>" in told
    assert told.count('"?state=similar"') == told.count('"?state=similar" target="_blank"') == 2

    browser.post(page, {"do": "start", "similar_reason": "別の商品"})
    until_done(kept, at)

    assert sorted(executed(sandbox, payments)) == [6, 100]
    assert (kept.total, kept.similar_reason) == (6, "")


def test_similar_lines_are_sent_by_a_button_of_their_own_that_wants_a_reason(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    refund(payments[0], operator, 100)
    kept = checked(operator, line_for(payments[0], 5), line_for(payments[1], 6))
    browser, page = sign_in(operator), f"/bulk/{kept.pk}/"

    for wrong in ("", " ", "別の\u202e商品"):
        refused = browser.post(page, {"do": "start_with_similar", "similar_reason": wrong})
        assert refused.status_code == 422
        assert 'class="error" id="id_similar_reason_error"' in refused.content.decode()
    assert f">{wrong}</textarea>" in refused.content.decode()
    assert states(kept) == [Line.SIMILAR, Line.READY]

    browser.post(page, {"do": "start_with_similar", "similar_reason": "別の商品"})
    until_done(kept, at)
    assert sorted(executed(sandbox, payments)) == [5, 6, 100]
    assert (kept.total, kept.similar_reason) == (11, "別の商品")


@pytest.mark.parametrize(
    ("above", "plain", "with_similar"),
    [
        (5, "1&nbsp;件 ¥6 の返金を申請する", "似た返金も含めて 2&nbsp;件 ¥11 の返金を申請する"),
        (10, "1&nbsp;件 ¥6 を返金する", "似た返金も含めて 2&nbsp;件 ¥11 の返金を申請する"),
    ],
)
def test_each_button_of_a_file_says_whether_another_person_decides_and_the_headline_too(
    payments: list[Payment], operator: User, settings: Any, above: int, plain: str, with_similar: str
) -> None:
    refund(payments[0], operator, 100)
    settings.REFUND_APPROVAL_ABOVE = above
    kept = checked(operator, line_for(payments[0], 5), line_for(payments[1], 6))

    told = fresh(operator).get(f"/bulk/{kept.pk}/").content.decode()

    assert f">{plain}</button>" in told
    assert ('<strong class="num">¥6</strong> の返金を申請します。' in told) == ("申請" in plain)
    assert ('<strong class="num">¥6</strong> を返金します。' in told) == ("申請" not in plain)
    assert f">{with_similar}</button>" in told


@pytest.mark.parametrize("paused", [False, True])
def test_line_of_a_started_file_waits_for_its_turn_and_what_can_not_be_refunded_has_no_sum(
    payments: list[Payment], operator: User, paused: bool
) -> None:
    kept = started(operator, line_for(payments[0], 300), line_for(payments[1], 999_999))
    if paused:
        bulk.pause(kept.pk, by=operator, paused=True)
    browser = sign_in(operator)

    told = browser.get(f"/bulk/{kept.pk}/").content.decode()
    result = b"".join(browser.get(f"/bulk/{kept.pk}/result/").streaming_content).decode("utf-8-sig")  # type: ignore[attr-defined]

    assert "返金できます" not in told + result
    assert told.count("順番待ち") == 3  # the sums, the tabs and the row
    assert "順番待ち" in result
    sums = re.search(r'<ul class="shares">.*?</ul>', told, re.DOTALL)
    assert sums
    assert re.findall("¥[0-9,]+", sums[0]) == ["¥300"]
    assert '<span class="alone">3</span><span class="in-words">3行目</span>' in told


def test_line_says_once_that_there_is_a_similar_refund(payments: list[Payment], operator: User) -> None:
    refund(payments[0], operator, 100)
    kept = started(operator, line_for(payments[0], 5), line_for(payments[1], 6))

    told = sign_in(operator).get(f"/bulk/{kept.pk}/?state=left_out").content.decode()

    assert told.count("似た返金") == 1
    assert "似た返金があり、返金する理由が入力されませんでした。" in told


def test_look_at_a_file_is_recorded_and_its_renewals_are_not(payments: list[Payment], operator: User) -> None:
    page = f"/bulk/{checked(operator, line_for(payments[0])).pk}/"
    browser = sign_in(operator)
    for address in (f"{page}?renew=1", f"{page}?renew=1", page):
        browser.get(address)

    assert AuditEntry.objects.filter(action="bulk.viewed").count() == 2  # by hand, then as a page


def test_page_of_a_file_refuses_what_it_does_not_know(payments: list[Payment], operator: User) -> None:
    browser = sign_in(operator)
    kept = checked(operator, line_for(payments[0]))
    page = f"/bulk/{kept.pk}/"

    assert browser.post(page, {"do": "explode"}).status_code == 400
    assert browser.post(page, {"do": "start_with_similar", "similar_reason": "x\u202e"}).status_code == 422
    assert browser.post(page, {"do": "pause"}).status_code == 303  # it is not running: told, and nothing done
    assert browser.get(f"{page}?after=xyz&state=none").status_code == 200
    assert browser.get(f"/bulk/{uuid.uuid4()}/").status_code == 404
    assert sign_in(make_user("viewer")).post(page, {"do": "start"}).status_code == 403
    kept.refresh_from_db()
    assert kept.state == Bulk.State.CHECKED


def test_lines_are_paged_and_filtered(
    payments: list[Payment], operator: User, django_assert_max_num_queries: Any
) -> None:
    browser = sign_in(operator)
    kept = checked(operator, *[line_for(payments[0], 1, str(number)) for number in range(60)])

    with django_assert_max_num_queries(20):
        page = browser.get(f"/bulk/{kept.pk}/").content.decode()
    assert "?state=&amp;after=51" in page
    assert browser.get(f"/bulk/{kept.pk}/?state=ready").content.decode().count("<tr>") == 2
    assert browser.get(f"/bulk/{kept.pk}/?after=51").content.decode().count("<tr>") == 11


@pytest.mark.parametrize("language", ["ja", "en"])
def test_template_is_a_file_that_can_be_filled_in(
    payments: list[Payment], operator: User, language: str
) -> None:
    browser = sign_in(operator)
    browser.cookies[settings.LANGUAGE_COOKIE_NAME] = language
    data = b"".join(browser.get("/bulk/template/").streaming_content)  # type: ignore[attr-defined]
    first, second, *_ = (payment.order for payment in payments)
    filled = data.decode().replace("order_…", first.order_id).replace(",EC-1001", f"{second.order_id},")

    kept, _is_new = bulk.upload("返金.csv", filled.encode(), by=operator)
    bulk.work()

    assert list(kept.lines.order_by("number").values_list("number", "state", "amount")) == [
        (2, Line.READY, 1000),
        (3, Line.READY, payments[1].refundable()),
    ]


def test_file_asks_for_nothing_when_nobodys_word_holds_any_more(
    payments: list[Payment], operator: User, approver: User, settings: Any, at: Clock, monkeypatch: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 150
    monkeypatch.setattr(bulk, "AHEAD", 1)
    services.set_sends(enabled=False, reason="調査中", by=approver)
    kept = started(operator, *(line_for(each) for each in payments[:3]))
    bulk.decide(kept.pk, by=approver, approved=True)
    bulk.work()
    assert states(kept) == ["asked", "ready", "ready"]
    at.advance(days=30)
    services.set_sends(enabled=True, reason="再開", by=approver)
    for _ in range(10):
        work()
        bulk.work()
        at.advance(seconds=10)

    assert "asked" not in states(kept)[1:]


def test_line_that_was_called_fine_is_not_refused_for_another_line_of_its_own_file(
    db: None, operator: User
) -> None:
    orders = [make_order(5000, email=email) for email in ("tanaka@example.jp", "")]
    kept = started(operator, *(f"{each.order_id},,1000,," for each in orders))
    assert states(kept) == ["ready", "left_out"]  # similar, and no reason was given


def test_thousand_with_words_behind_it_is_not_one_yen() -> None:
    with pytest.raises(csv_file.BadFile):
        bulk_file.read("注文ID,ショップ注文番号,返金額,説明,理由\no,,1,000円(税込),,".encode())


# --- What the page says of it -------------------------------------------------------------------------------


def told_of(person: User, kept: Bulk, query: str = "") -> str:
    told: str = sign_in(person).get(f"/bulk/{kept.pk}/{query}").content.decode()
    return told


def numbers(told: str) -> list[int]:
    return [int(number) for number in re.findall(r'<span class="alone">(\d+)</span>', told)]


def test_file_that_is_done_says_of_how_many_lines_nothing_was_refunded_and_shows_them(
    payments: list[Payment], operator: User, at: Clock, sandbox: Sandbox
) -> None:
    refund(payments[0], operator, 100)
    lines = [line_for(payments[0], 5), *(line_for(payment, 6) for payment in payments[1:4])]
    kept = started(operator, *lines, "order_test_none,,1200,,")
    bulk.work()
    sandbox.fault("status_failed")
    until_done(kept, at)

    told = told_of(operator, kept)

    assert "5&nbsp;行のうち 2&nbsp;件を返金しました。" in told
    assert "3&nbsp;行は、このファイルからは返金していません。" in told
    assert "件が確定" not in told
    assert "<progress" not in told
    failed = kept.lines.get(request_id=Refund.objects.get(state="rejected").pk).number
    shown = told_of(operator, kept, "?state=not_refunded")
    assert numbers(shown) == sorted({2, failed, 6})
    assert shown.count('class="c-amount num void"') == 3
    assert "¥1,200" in shown
    paid = told_of(operator, kept, "?state=succeeded")
    assert sorted({*numbers(paid), 2, failed, 6}) == [2, 3, 4, 5, 6]
    assert "void" not in paid
    assert re.search(r'href="\?state=succeeded"[^>]*>返金済み <span class="num">2</span>', told)


def test_refund_that_people_decide_on_counts_neither_as_refunded_nor_as_not(
    payments: list[Payment], operator: User, at: Clock, sandbox: Sandbox
) -> None:
    kept = started(operator, line_for(payments[0]), line_for(payments[1]))
    bulk.work()
    sandbox.fault("wrong_amount")
    until_done(kept, at)
    assert sorted(Refund.objects.values_list("state", flat=True)) == ["review", "succeeded"]

    told = told_of(operator, kept)

    assert "2&nbsp;行のうち 1&nbsp;件を返金しました。" in told
    assert "1&nbsp;件は結果が確定していません。" in told
    assert "返金していません" not in told


def test_file_of_which_every_line_was_refunded_says_so(
    payments: list[Payment], operator: User, at: Clock
) -> None:
    kept = until_done(started(operator, line_for(payments[0])), at)

    told = told_of(operator, kept)

    assert "1&nbsp;行すべてを返金しました。" in told
    assert "not_refunded" not in told


def test_who_approves_a_file_sees_whose_orders_are_refunded_and_that_each_line_waits(
    db: None, operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 50
    order = make_order(5000, name="佐藤 花")
    kept = started(operator, line_for(order.payments.get()), "order_test_none,,1,,")

    told = told_of(approver, kept)

    assert "<bdi>佐藤 花&nbsp;様</bdi>" in told
    assert "返金できます" not in told
    assert "<span>承認待ち</span>" in told
    viewed = AuditEntry.objects.filter(action="bulk.viewed", actor=approver).latest("id")
    assert viewed.data["shown"] == [order.order_id]
    assert order.customer_name not in viewed.text


def test_names_in_a_file_cost_as_many_queries_for_many_lines_as_for_one(
    db: None, operator: User, django_assert_num_queries: Any
) -> None:
    browser = sign_in(operator)
    files = [
        checked(operator, *(line_for(make_order(500).payments.get(), 50 + n + of) for n in range(of)))
        for of in (1, 12)
    ]
    for kept in files:
        browser.get(f"/bulk/{kept.pk}/")
    with CaptureQueriesContext(connection) as asked:
        browser.get(f"/bulk/{files[0].pk}/")

    with django_assert_num_queries(len(asked)):
        assert browser.get(f"/bulk/{files[1].pk}/").content.decode().count("line-who") == 12


def test_request_for_a_file_is_withdrawn_by_the_one_who_made_it(
    payments: list[Payment], operator: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 50
    kept = started(operator, line_for(payments[0]))
    browser, page = sign_in(operator), f"/bulk/{kept.pk}/"
    told = browser.get(page).content.decode()
    assert ">申請を取り下げる</button>" in told
    assert "送信していない返金を中止する" not in told

    assert (
        "申請を取り下げました。何も返金していません。"
        in browser.post(page, {"do": "cancel"}, follow=True).content.decode()
    )


def test_withdrawing_what_was_approved_meanwhile_does_not_claim_that_nothing_was_refunded(
    payments: list[Payment],
    operator: User,
    approver: User,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 50
    kept = started(operator, line_for(payments[0]))
    cancel = bulk.cancel

    def approved_first(bulk_id: uuid.UUID, *, by: User) -> Bulk:
        bulk.decide(bulk_id, by=approver, approved=True)
        return cancel(bulk_id, by=by)

    monkeypatch.setattr(bulk, "cancel", approved_first)
    told = sign_in(operator).post(f"/bulk/{kept.pk}/", {"do": "cancel"}, follow=True).content.decode()

    assert "申請を取り下げました" not in told
    assert "中止しました。まだ送信していなかった返金は行われません。" in told


@pytest.mark.parametrize(("above", "asks_only"), [(5, True), (10, False)])
def test_file_that_is_only_asked_for_says_until_when_it_can_be_taken_back(
    payments: list[Payment], operator: User, settings: Any, above: int, asks_only: bool
) -> None:
    refund(payments[0], operator, 100)
    settings.REFUND_APPROVAL_ABOVE = above
    kept = checked(operator, line_for(payments[0], 5), line_for(payments[1], 6))

    told = fresh(operator).get(f"/bulk/{kept.pk}/").content.decode()

    assert ("承認されるまでは、申請を取り下げることができます。" in told) == asks_only
    assert ("承認されて返金されると、お客様には Smartpay からメールが届きます。" in told) == asks_only
    assert ("<strong>返金は取り消せません。</strong>" in told) != asks_only
    assert "似た返金のある行は「似た返金も含めて 2&nbsp;件…」を押したときだけ返金します。" in told


def test_who_decides_a_file_is_told_that_it_can_not_be_taken_back(
    payments: list[Payment], operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 50
    kept = started(operator, line_for(payments[0]))

    told = told_of(approver, kept)

    assert "返金は取り消せません。" in told
    assert "承認されるまでは" not in told


def test_part_of_a_file_renews_itself_and_is_one_look(payments: list[Payment], operator: User) -> None:
    kept = started(operator, *(line_for(payment) for payment in payments))
    browser, page = sign_in(operator), f"/bulk/{kept.pk}/"
    told = []
    for query in ("?state=ready&after=2", *["?state=ready&after=2&renew=1"] * 3, "?state=ready&renew=1"):
        shown = browser.get(page + query).content.decode()
        told.append((AuditEntry.objects.filter(action="bulk.viewed").count(), len(numbers(shown))))

    assert told == [(1, 3), (1, 3), (1, 3), (1, 3), (2, 4)]
    assert 'content="3; url=?state=ready&amp;renew=1"' in shown
