"""Orders and refunds as files for Excel: what was filtered, all of it, with nothing that a spreadsheet would calculate."""

import csv
import io
from typing import Any

import pytest

from dashboard.models import User
from refunds import audit
from refunds.models import AuditEntry, Order, Payment, Refund, Search
from refunds.search import tiers
from refunds.views import exports
from tests.conftest import make_order, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_services import mirrored, refund


def rows_of(person: User, address: str) -> list[dict[str, str]]:
    answer = sign_in(person).get(address)
    assert answer.status_code == 200, answer.status_code
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer["Content-Disposition"]
    data = b"".join(answer.streaming_content)  # type: ignore[attr-defined]
    assert data.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


def test_all_pages_of_the_orders_are_in_the_file(
    viewer: User, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr(exports, "CHUNK", 3)
    made = [make_order(1000 + number, age=100 - number) for number in range(8)]

    # Signing in and three pages, each with its entry, take 37 on PostgreSQL; a query for each row would make 45 of them.
    with django_assert_max_num_queries(41):
        rows = rows_of(viewer, "/orders/export/")

    assert [row["注文ID"] for row in rows] == [order.order_id for order in reversed(made)]
    assert (rows[0]["お客様名"], rows[0]["金額"], rows[0]["状態"]) == ("田中 太郎", "1007", "支払い済み")


def test_file_holds_what_was_filtered_and_searched(viewer: User) -> None:
    make_order(1000, name="佐藤 花子")
    wanted = make_order(2000, name="田中 太郎")
    make_order(3000, name="田中 次郎", status="canceled")
    kept = Search.objects.create(person=viewer, text="田中", created_at=wanted.created_at)

    found = rows_of(viewer, f"/orders/export/?search={kept.pk}&status=succeeded&page=older~9~9")

    assert [row["注文ID"] for row in found] == [wanted.order_id]
    assert sign_in(make_user("viewer")).get(f"/orders/export/?search={kept.pk}").status_code == 404


def test_no_order_is_in_the_file_twice_though_those_behind_it_change_meanwhile(
    viewer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "CHUNK", 2)
    newest, second, oldest = (make_order(1000, age=age) for age in (1, 2, 3))
    answer = sign_in(viewer).get("/orders/export/?status=succeeded")
    stream = iter(answer.streaming_content)  # type: ignore[attr-defined]

    sent = [next(stream) for _line in ("the heading", "an order", "the last of its page")]
    Order.objects.filter(pk=oldest.pk).update(status="canceled")
    sent += stream

    rows = csv.DictReader(io.StringIO(b"".join(sent).decode("utf-8-sig")))
    assert [row["注文ID"] for row in rows] == [newest.order_id, second.order_id]


@pytest.mark.parametrize("bound", [2, 1000])
def test_file_of_a_search_says_where_it_is_not_all(
    viewer: User, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(tiers, "CANDIDATES", bound)
    monkeypatch.setattr(exports, "CHUNK", 2)
    made = [make_order(1000, name=f"田中{number} 太郎", age=number) for number in range(8)]
    kept = Search.objects.create(person=viewer, text="田中", created_at=made[0].created_at)

    *rows, last = rows_of(viewer, f"/orders/export/?search={kept.pk}")

    if bound < len(made):
        assert (last["注文日時"], last["注文ID"][:7]) == ("一部のみ", "一致が多いため")
    else:
        assert [row["注文ID"] for row in (*rows, last)] == [order.order_id for order in made]


def test_refunds_are_in_the_file_with_who_asked(payment: Payment, operator: User, viewer: User) -> None:
    made = [refund(payment, operator, amount, similar_reason="別の商品") for amount in (100, 200)]

    rows = rows_of(viewer, "/refunds/export/")
    assert [row["返金額"] for row in rows] == ["200", "100"]
    assert (rows[0]["受付番号"], rows[0]["状態"], rows[0]["申請者"]) == (
        str(made[1].pk),
        "返金済み",
        "返金 花子",
    )
    assert rows[0]["Smartpay 返金ID"] == made[1].smartpay_id
    assert [row["返金額"] for row in rows_of(viewer, "/refunds/export/?min_amount=150")] == ["200"]
    assert rows_of(viewer, "/refunds/export/?state=review") == []


def test_refunds_of_a_person_who_left_can_still_be_asked_for(
    payment: Payment, operator: User, viewer: User
) -> None:
    gone = make_user("operator", name="退職 次郎")
    refund(payment, operator, 100)
    refund(payment, gone, 200, similar_reason="x")
    gone.groups.clear()

    assert "退職 次郎" in sign_in(viewer).get("/refunds/").content.decode()
    assert [row["返金額"] for row in rows_of(viewer, f"/refunds/export/?person={gone.pk}")] == ["200"]


def test_many_refunds_are_read_in_few_queries(
    payment: Payment,
    operator: User,
    viewer: User,
    monkeypatch: pytest.MonkeyPatch,
    django_assert_max_num_queries: Any,
) -> None:
    monkeypatch.setattr(exports, "CHUNK", 4)
    for _number in range(9):
        refund(payment, operator, 1, similar_reason="x")

    with django_assert_max_num_queries(36):  # three pages, each with its entry
        assert len(rows_of(viewer, "/refunds/export/")) == 9
    assert Refund.objects.count() == 9


def test_file_that_was_taken_along_is_on_the_trail_and_what_was_typed_is_not(viewer: User) -> None:
    make_order(1000)
    rows_of(
        viewer, "/orders/export/?status=succeeded&name=%E7%94%B0%E4%B8%AD&refund_status=tanaka@example.jp"
    )

    asked, part = AuditEntry.objects.filter(action="orders.exported").order_by("id")
    assert asked.data == {"filters": {"status": "succeeded"}}
    assert part.data.keys() == {"entries", "shown"}


def test_each_part_is_on_the_trail_with_its_rows_before_it_leaves(
    viewer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "CHUNK", 2)
    made = [make_order(1000, age=age).order_id for age in range(5)]
    entries = AuditEntry.objects.filter(action="orders.exported").order_by("id")
    answer = sign_in(viewer).get("/orders/export/")
    stream = iter(answer.streaming_content)  # type: ignore[attr-defined]

    assert [entry.data for entry in entries] == [{"filters": {}}]
    next(stream)  # the heading
    for number in range(3):  # and there the download breaks off, in its second part
        assert made[number] in next(stream).decode()
        parts = [{"entries": 2, "shown": made[:2]}, {"entries": 2, "shown": made[2:4]}]
        assert [entry.data for entry in entries.all()][1:] == parts[: number // 2 + 1]

    [(ip, request_id, session)] = entries.order_by().values_list("ip", "request_id", "session").distinct()
    assert (ip, bool(request_id), bool(session)) == ("127.0.0.1", True, True)
    assert {entry.actor for entry in entries.all()} == {viewer}


def test_what_can_not_be_recorded_does_not_leave(
    payment: Payment, operator: User, viewer: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = refund(payment, operator, 100)
    answer = sign_in(viewer).get("/refunds/export/")
    stream = iter(answer.streaming_content)  # type: ignore[attr-defined]
    next(stream)  # the heading

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "_append", full)
        with pytest.raises(OSError, match="no space left"):
            next(stream)
    rows_of(viewer, "/refunds/export/")

    assert AuditEntry.objects.filter(action="refunds.exported").latest("id").data == {
        "entries": 1,
        "shown": [str(made.pk)],
    }


def test_whose_names_were_taken_along_can_be_asked_when_the_search_is_gone(viewer: User) -> None:
    """The file alone, without a look at its page: a search is kept for a month, its hash as long as the trail."""
    browser = sign_in(viewer)
    found = browser.post("/orders/search/", {"q": "田中"})["Location"]

    browser.get(found.replace("/orders/", "/orders/export/"))

    data = AuditEntry.objects.filter(action="orders.exported").earliest("id").data
    assert data["words"] == audit.keyed_hash("田中")


def test_nothing_in_the_file_is_a_formula(viewer: User) -> None:
    make_order(1000, name="=cmd|' /C calc'!A0 太郎", email="@x.jp")

    [row] = rows_of(viewer, "/orders/export/")

    assert (row["お客様名"][:2], row["メールアドレス"]) == ("'=", "'@x.jp")
