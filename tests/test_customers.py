"""A file of the merchant's own names orders whose checkout told no name, says which lines it could not place, and no more."""

import json
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from refunds import customers, mirror, search, smartpay
from refunds.customer_import import ImportedCustomer, record_customers
from refunds.models import AuditEntry, Order
from refunds.search import Filters
from tests.test_mirror import AT, LATER, TANAKA, order_of, payment_of, session_of

pytestmark = pytest.mark.django_db

TEXT = (
    "注文ID,ショップ注文番号,氏名,フリガナ,メールアドレス,会員番号\r\n"
    "order_test_1,,髙橋 花子,タカハシ ハナコ,hanako@example.jp,7\r\n"
    ",EC-2,佐藤　次郎,,jiro@example.jp,8\r\n"
    ",,,,,\r\n"
    "order_test_9,EC-1,山本 三郎,,saburo@example.jp,9\r\n"
    ",EC-404,渡辺 四郎,,shiro@example.jp,10\r\n"
    ",,中村 五郎,,goro@example.jp,11\r\n"
)


@pytest.fixture(autouse=True)
def orders() -> None:
    mirror.record_orders(
        [order_of(f"order_test_{n}", reference=f"EC-{n}", token_id="paytok_test_1") for n in (1, 2, 3)],
        read_at=AT,
    )


def known() -> dict[str, tuple[str, str, str]]:
    return {
        row.order_id: (row.customer_source, row.customer_name, row.email)
        for row in Order.objects.order_by("order_id")
    }


def given(path: Path, data: bytes, *options: str) -> list[str]:
    file = path / "customers.csv"
    file.write_bytes(data)
    output = StringIO()
    call_command("import_customers", str(file), *options, stdout=output)
    return output.getvalue().splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
def test_customers_are_found_by_order_and_by_reference(tmp_path: Path, encoding: str) -> None:
    lines = given(tmp_path, TEXT.encode(encoding))

    assert known() == {
        "order_test_1": ("import", "髙橋 花子", "hanako@example.jp"),
        "order_test_2": ("import", "佐藤 次郎", "jiro@example.jp"),
        "order_test_3": ("", "", ""),
    }
    row = Order.objects.get(order_id="order_test_1")
    assert (row.family_kana, row.given_kana, row.kana_turned_folded, row.read_at) == (
        "タカハシ", "ハナコ", "ハナコタカハシ", AT,
    )  # fmt: skip
    assert lines == [
        "line 5: unknown",
        "line 6: unknown",
        "line 7: no order",
        "lines=5 no_order=1 unknown=2 written=2",
    ]


def test_the_trail_tells_of_an_import_and_not_whom_it_named(tmp_path: Path) -> None:
    given(tmp_path, TEXT.encode())
    entry = AuditEntry.objects.get(action="customers.imported")
    assert (entry.actor, entry.data["first_line"], entry.data["last_line"], entry.data["written"]) == (
        None,
        2,
        7,
        2,
    )
    assert not {"花子", "佐藤", "example.jp"} & set(json.dumps(entry.data, ensure_ascii=False).split('"'))
    assert given(tmp_path, TEXT.encode())[-1] == "lines=5 no_order=1 same=2 unknown=2"  # the same file again


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path) -> None:
    before = known()
    dry = given(tmp_path, TEXT.encode(), "--dry-run")
    assert (known(), AuditEntry.objects.filter(action="customers.imported").exists()) == (before, False)
    assert dry[-1].removeprefix("dry run: ") == given(tmp_path, TEXT.encode())[-1]


def test_a_name_from_the_checkout_is_kept(tmp_path: Path) -> None:
    mirror.record_order(order_of(), read_at=AT, session=session_of(order_of()))
    lines = given(tmp_path, TEXT.encode())
    assert known()["order_test_1"] == ("session", "田中 太郎", "Tanaka@Example.jp")
    assert lines[-1] == "lines=5 kept=1 no_order=1 unknown=2 written=1"


MAIL_ONLY = smartpay.Customer(email="other@example.jp")
SATO = smartpay.Customer(family_name="佐藤")


@pytest.mark.parametrize(
    ("session", "imported", "expected"),
    [
        (TANAKA, SATO, ("session", "田中 太郎", "Tanaka@Example.jp")),
        (MAIL_ONLY, SATO, ("import", "佐藤", "other@example.jp")),
        (MAIL_ONLY, smartpay.Customer(email="sato@example.jp"), ("session", "", "other@example.jp")),
        (MAIL_ONLY, smartpay.Customer(family_name="佐藤", email="sato@example.jp"), ("import", "佐藤", "sato@example.jp")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("session_first", [True, False])
def test_a_session_and_an_import_agree_in_either_order(
    session: smartpay.Customer,
    imported: smartpay.Customer,
    expected: tuple[str, str, str],
    session_first: bool,
) -> None:
    steps = [
        lambda: mirror.record_order(order_of(), read_at=LATER, session=session_of(order_of(), session)),
        lambda: record_customers([ImportedCustomer("order_test_1", "", imported)], seen={}),
    ]
    for step in steps if session_first else reversed(steps):
        step()
    assert known()["order_test_1"] == expected


PLAIN = smartpay.Customer("田中", "太郎")
FULL = smartpay.Customer(
    "田中太郎", "", "タナカ", "タロウ", "taro@example.jp"
)  # the same name, written otherwise


@pytest.mark.parametrize(
    ("session", "imported", "expected"),
    [
        (PLAIN, FULL, ("session", "田中", "タナカ タロウ", "taro@example.jp")),
        (TANAKA, FULL, ("session", "田中", "たなか タロウ", "Tanaka@Example.jp")),
        (smartpay.Customer("田中", "太郎", email="t@example.jp"), FULL, ("session", "田中", "タナカ タロウ", "t@example.jp")),
        (SATO, FULL, ("session", "佐藤", "", "")),
        (PLAIN, MAIL_ONLY, ("session", "田中", "", "")),
        (smartpay.Customer(family_kana="サトウ"), SATO, ("import", "佐藤", "サトウ", "")),
        (smartpay.Customer(family_kana="サトウ"), MAIL_ONLY, ("session", "", "サトウ", "other@example.jp")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("session_first", [True, False])
def test_a_checkout_and_an_import_of_one_name_complete_each_other(
    session: smartpay.Customer,
    imported: smartpay.Customer,
    expected: tuple[str, str, str, str],
    session_first: bool,
) -> None:
    def read(at: Any) -> None:
        mirror.record_order(order_of(), read_at=at, session=session_of(order_of(), session))

    if session_first:
        read(AT)
    record_customers([ImportedCustomer("order_test_1", "", imported)], seen={})
    read(LATER)  # as each sweep does

    row = Order.objects.get(order_id="order_test_1")
    assert (row.customer_source, row.family_name, row.customer_kana, row.email) == expected
    assert row.email_folded == expected[3].lower()


def test_an_import_that_completes_a_checkout_says_so_once(tmp_path: Path) -> None:
    mirror.record_order(order_of(), read_at=AT, session=session_of(order_of(), PLAIN))
    data = "order_id,name,email\norder_test_1,田中太郎,taro@example.jp\n".encode()
    assert given(tmp_path, data, "--dry-run") == ["dry run: lines=1 written=1"]
    assert [given(tmp_path, data), given(tmp_path, data)] == [["lines=1 written=1"], ["lines=1 kept=1"]]


def test_a_later_import_of_the_same_name_takes_no_kana_away() -> None:
    for imported in (FULL, PLAIN):
        record_customers([ImportedCustomer("order_test_1", "", imported)], seen={})
    row = Order.objects.get(order_id="order_test_1")
    assert (row.customer_name, row.customer_kana, row.email) == (
        "田中 太郎",
        "タナカ タロウ",
        "taro@example.jp",
    )
    record_customers([ImportedCustomer("order_test_1", "", SATO)], seen={})
    row.refresh_from_db()
    assert (row.customer_name, row.customer_kana, row.email) == ("佐藤", "", "")


def test_unpaid_attempts_share_a_reference_and_two_paid_orders_are_nobodys(tmp_path: Path) -> None:
    def other(order_id: str, status: str) -> None:
        order = order_of(
            order_id, payment_of(order_id, f"payment_{order_id}"), reference="EC-2", status=status
        )
        mirror.record_order(order, read_at=AT)

    data = "reference,family_name,given_name\nEC-2,佐藤,次郎\n".encode()
    other("order_test_attempt", "rejected")
    assert given(tmp_path, data) == ["lines=1 written=1"]
    assert known()["order_test_attempt"][1] == known()["order_test_2"][1] == "佐藤 次郎"
    other("order_test_second", "succeeded")
    assert given(tmp_path, data) == ["line 2: ambiguous", "lines=1 ambiguous=1"]
    assert known()["order_test_second"][1] == ""


def test_reference_names_with_its_signs_or_nobody(tmp_path: Path) -> None:
    lines = given(tmp_path, "reference,name\nec- 1,佐藤 次郎\nEC2,佐藤 次郎\n".encode())

    assert lines == ["line 3: unknown", "lines=2 unknown=1 written=1"]
    assert known()["order_test_1"][1] == "佐藤 次郎"


def test_an_imported_name_is_found(tmp_path: Path, viewer: Any) -> None:
    given(tmp_path, TEXT.encode())
    for typed in ("高橋花子", "橋花", "ハシハナ"):
        assert [row.order_id for row in search.find(typed, filters=Filters(status="any")).orders] == [
            "order_test_1"
        ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "空です"),
        ("注文ID,金額\n1,2\n".encode(), "列の名前"),
        (b"\xff\xfe\x00", "CSV|文字コード"),
        (b'reference,name\n"EC-1,x\n', "引用符"),
    ],
)
def test_a_file_that_can_not_be_read_says_why(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        given(tmp_path, data)
    assert not Order.objects.exclude(customer_source="").exists()


def test_a_line_that_is_too_long_is_told_and_left(tmp_path: Path) -> None:
    lines = given(tmp_path, f"order,name\norder_test_1,{'x' * 300}\norder_test_2,佐藤\n".encode())
    assert lines == ["line 2: too long", "lines=2 too_long=1 written=1"]


def test_a_long_file_is_read_by_and_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(customers, "LINES_AT_ONCE", 2)
    told: list[tuple[int, str]] = []
    fates = customers.import_file(
        BytesIO(TEXT.encode()), dry_run=False, report=lambda number, fate: told.append((number, fate))
    )
    assert told == [(5, "unknown"), (6, "unknown"), (7, "no order")]
    assert fates == {"written": 2, "unknown": 2, "no order": 1}
    assert AuditEntry.objects.filter(action="customers.imported").count() == 3


@pytest.mark.parametrize(
    "text",
    [
        # of EC-CUBE 4
        """注文ID,注文番号,会員ID,お名前(姓),お名前(名),お名前(セイ),お名前(メイ),メールアドレス
17,EC-1,3,髙橋,花子,タカハシ,ハナコ,hanako@example.jp""",
        """注文番号,お名前（姓）,お名前（名）,姓（フリガナ）,名（フリガナ）,メール
EC-1,髙橋,花子,ﾀｶﾊｼ,ﾊﾅｺ,hanako@example.jp""",
        """order_number,氏名,フリガナ(姓),フリガナ(名),email
EC-1,髙橋 花子,タカハシ,ハナコ,hanako@example.jp""",
        """注文ID,注文番号,氏名,フリガナ,メール
https://example.com/orders/order_test_1?a=payment_test_1,EC-2,髙橋 花子,タカハシ ハナコ,hanako@example.jp""",
    ],
)
def test_a_file_as_a_shop_writes_it_names_the_order(tmp_path: Path, text: str) -> None:
    assert given(tmp_path, text.encode("cp932")) == ["lines=1 written=1"]
    assert known()["order_test_1"] == ("import", "髙橋 花子", "hanako@example.jp")
    assert Order.objects.get(order_id="order_test_1").kana_folded == "タカハシハナコ"


def test_a_number_of_the_shops_own_is_no_order_of_smartpays(tmp_path: Path) -> None:
    assert given(tmp_path, "注文ID,氏名\n17,佐藤\npayment_test_1,佐藤\n".encode()) == [
        "line 2: no order",
        "line 3: no order",
        "lines=2 no_order=2",
    ]


SAYING_TWICE = (
    "order_id,reference,name,kana,email\n"
    "order_test_1,,田中 太郎,タナカ タロウ,t@example.jp\n"
    ",EC-1,田中　太郎,たなか たろう,T@example.jp\n"  # the same order, and the same customer
    ",EC-1,佐藤 花子,,hanako@example.jp\n"
    "order_test_2,,佐藤 花子,,\n"
    "order_test_1,,田中 太郎,タナカ タロウ,other@example.jp\n"
    "order_test_1,,田中 太郎,タナカ タロウ,t@example.jp\n"
).encode()


@pytest.mark.parametrize("lines_at_once", [500, 1])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_of_two_customers_for_one_order_the_first_stays_and_the_other_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines_at_once: int, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(customers, "LINES_AT_ONCE", lines_at_once)

    lines = given(tmp_path, SAYING_TWICE, *options)

    assert [line.removeprefix("dry run: ") for line in lines] == [
        "line 4: differs from line 2",
        "line 6: differs from line 2",
        "lines=6 differs=2 same=2 written=2",
    ]
    if not options:
        assert known()["order_test_1"] == ("import", "田中 太郎", "t@example.jp")
        assert given(tmp_path, SAYING_TWICE)[-1] == "lines=6 differs=2 same=4"


def test_attempts_under_one_reference_of_which_one_was_named_already_are_named_alike(tmp_path: Path) -> None:
    mirror.record_order(order_of("order_test_attempt", reference="EC-2", status="rejected"), read_at=AT)

    lines = given(
        tmp_path, "order_id,reference,name\norder_test_attempt,,佐藤\n,EC-2,佐藤\n,EC-2,鈴木\n".encode()
    )

    assert lines == ["line 4: differs from line 2", "lines=3 differs=1 written=2"]
    assert known()["order_test_2"][1] == known()["order_test_attempt"][1] == "佐藤"


def test_an_order_whose_customer_is_removed_by_age_is_not_named_again(tmp_path: Path, settings: Any) -> None:
    settings.RETENTION_DAYS = 1

    lines = given(tmp_path, TEXT.encode())

    assert lines[-1] == "lines=5 no_order=1 too_old=2 unknown=2"
    assert {source for source, _name, _email in known().values()} == {""}
