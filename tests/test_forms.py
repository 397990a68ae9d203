"""What people type: folded to what was meant, or turned away with a word on why. And how amounts are shown."""

import time
import unicodedata
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ValidationError
from hypothesis import example, given, settings, strategies

from refunds.forms import (
    OrderFilterForm,
    PeriodForm,
    PlainText,
    RefundFilterForm,
    RefundForm,
    SimilarForm,
    YenField,
)
from refunds.models import Order, Payment
from refunds.services import RefundRequest
from refunds.wording import ago, money, short_id
from tests.conftest import make_order

REQUIRED = "返金額を入力してください。"
NUMBER = "返金額は数字で入力してください(例: 1000)。"
WHOLE = "1円未満は返金できません。整数で入力してください。"
POSITIVE = "返金額は1円以上で入力してください。"
HUGE = "返金額が大きすぎます。"
CONTROL = "使えない文字(改行・制御文字・見えない文字など)が含まれています。"


def form(payment: Payment, /, **typed: Any) -> RefundForm:
    """The form of an order with this payment, filled in well but for what is given; None leaves a field out."""
    data = {
        "request_id": str(uuid.uuid4()),
        "payment": payment.pk,
        "amount": "1000",
        "reason": "requested_by_customer",
    } | typed
    return RefundForm({name: value for name, value in data.items() if value is not None}, payments=[payment])


def refused(form: RefundForm) -> dict[str, list[str]]:
    return {name: list(map(str, errors)) for name, errors in form.errors.items()}


# --- Amounts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "yen"),
    [
        ("1", 1),
        ("1000", 1000),
        ("0001000", 1000),
        ("1,000", 1000),
        ("12,345,678", 12_345_678),
        ("999999999999", 999_999_999_999),
        ("999,999,999,999", 999_999_999_999),
        ("１０００", 1000),
        ("１，０００", 1000),
        ("1０0０", 1000),
        ("¥1,000", 1000),
        ("￥１，０００", 1000),
        ("1000円", 1000),
        ("¥1,000円", 1000),
        ("  1000  ", 1000),
        ("\u30001000\u3000", 1000),
        ("1000\n", 1000),
        ("¥ 1,000", 1000),
        ("1,000 円", 1000),
        ("１０００　円", 1000),
    ],
)
def test_amount_is_read_as_people_type_it(typed: str, yen: int) -> None:
    assert YenField().clean(typed) == yen


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        *[(typed, REQUIRED) for typed in ("", " ", "\u3000", "\n", None)],
        *[(typed, POSITIVE) for typed in ("0", "000", "０", "¥0", "0円", "-0")],
        *[(typed, POSITIVE) for typed in ("-1", "－１０００", "−1000", "△1000", "▲1,000", "-¥1,000", "¥-1,000", "- 5")],
        *[(typed, WHOLE) for typed in ("0.5", "1000.0", "１０．５", "1000.00円", "-1.5")],
        *[(typed, NUMBER) for typed in ("1,00", "10,00", "1,0000", ",100", "100,", "1,,000", "1000,000", "0,100")],
        *[(typed, NUMBER) for typed in ("1,000.5", "1.000,00", "1.", ".5", "1、000", "1٬000", "1'000", "1_000")],
        *[(typed, NUMBER) for typed in ("1 000", "1000 2000", "10\t00", "1\u00a0000", "1\u200b000", "1000\u202e")],
        *[(typed, NUMBER) for typed in ("1e3", "1E3", "0x3e8", "0b1", "0o7", "+1000", "1000-", "(1000)", "1/2", "=1")],
        *[(typed, NUMBER) for typed in ("inf", "NaN", "none", "true", "千", "一千", "1千", "1万", "壱", "百円", "円", "¥")],
        *[(typed, NUMBER) for typed in ("1²", "²", "①", "⑩", "½", "㍘", "㏠", "⒈", "１⁰", "𝟏𝟎", "𝟙", "🔟", "₁")],
        *[(typed, NUMBER) for typed in ("٣", "١٠٠٠", "۱۰", "१००", "๑", "៣", "༣", "1٣")],
        *[(typed, NUMBER) for typed in ("$1000", "1000USD", "JPY1000", "\\1000", "1000円円", "円1000", "ー1000", "–1")],
        *[(typed, HUGE) for typed in ("1000000000000", "1,000,000,000,000", "９" * 13, "9" * 5000, str(2**63))],
    ],
)  # fmt: skip
def test_amount_that_is_none_is_refused_with_a_reason(typed: str, why: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        YenField().clean(typed)

    assert refusal.value.messages == [why]


def test_nul_in_an_amount_is_refused() -> None:
    with pytest.raises(ValidationError):
        YenField().clean("10\x0000")


@given(strategies.integers(min_value=1, max_value=10**12 - 1))
@settings(max_examples=300, deadline=None)
def test_every_way_to_write_an_amount_means_the_same(yen: int) -> None:
    wide = str(yen).translate({ord(str(digit)): chr(ord("０") + digit) for digit in range(10)})
    ways = [
        str(yen),
        f"{yen:,}",
        f"¥{yen:,}",
        f"￥{yen}",
        f"{yen}円",
        f" {yen:,} 円 ",
        wide,
        f"{wide}円",
        money(yen),
    ]

    assert {YenField().clean(way) for way in ways} == {yen}


@given(
    strategies.text(alphabet="0123456789０９,，.．-−△▲¥￥円 \u3000eExX²٣①一千+_/\u200b", max_size=12)
    | strategies.text(max_size=30)
)
@example("1²")
@settings(max_examples=3000, deadline=None)
def test_whatever_is_typed_is_refused_or_is_an_amount_that_reads_as_itself(typed: str) -> None:
    try:
        yen = YenField().clean(typed)
    except ValidationError:
        return

    assert type(yen) is int
    assert 1 <= yen < 10**12
    assert yen == YenField().clean(str(yen)) == YenField().clean(money(yen))
    # No digit but those of a Japanese keyboard makes it, and each counts as itself.
    digits = [character for character in typed if unicodedata.category(character)[0] == "N"]
    assert all(character in "0123456789０１２３４５６７８９" for character in digits)
    assert yen == int("".join(map(str, map(unicodedata.digit, digits))))


# --- Texts --------------------------------------------------------------------------------------------------

A_LINE = PlainText(limit=80, required=False)
LINES = PlainText(limit=1000, required=False, lines=True)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("サイズ交換のため", "サイズ交換のため"),
        ("  前後の空白\u3000", "前後の空白"),
        ("", ""),
        ("   ", ""),
        ("\u3000\u3000", ""),
        (" \r\n\t", ""),
        (None, ""),
        ("か\u3099す", "がす"),
        ("ﾊﾝｶｸ ①", "ﾊﾝｶｸ ①"),  # NFC, not NFKC: what was typed is shown
        ("髙﨑 𠮷野 葛\U000e0100", "髙﨑 𠮷野 葛\U000e0100"),
        ("🎁<b>&\"'=1+1", "🎁<b>&\"'=1+1"),
        ("字" * 80, "字" * 80),
        ("𠮷" * 80, "𠮷" * 80),
        ("か\u3099" * 80, "が" * 80),
        (" " + "字" * 80 + " ", "字" * 80),
    ],
)
def test_text_is_trimmed_and_composed_and_else_left_alone(typed: str | None, text: str) -> None:
    assert A_LINE.clean(typed) == LINES.clean(typed) == text


@pytest.mark.parametrize(
    "character",
    ["\0", "\t", "\x0b", "\x1b", "\x7f", "\x85", "\r", "\u00ad", "\u061c", "\u200b", "\u200d", "\u200e", "\u202a",
     "\u202e", "\u2028", "\u2029", "\u2060", "\u2066", "\ufeff", "\ue000", "\U000f0000", "\ud800", "\ufdd0", "\uffff",
     "\U000e0001"],
    ids=lambda character: f"U+{ord(character):04X}",
)  # fmt: skip
@pytest.mark.parametrize("field", [A_LINE, LINES], ids=["a line", "lines"])
def test_what_is_not_seen_or_turns_the_text_around_is_refused(field: PlainText, character: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        field.clean(f"返金{character}です")

    assert refusal.value.messages == [CONTROL]


def test_line_breaks_are_for_memos_only() -> None:
    assert LINES.clean("一行目\r\n二行目\n\n三行目\r\n") == "一行目\n二行目\n\n三行目"
    for broken in ("一行目\n二行目", "一行目\r\n二行目"):
        with pytest.raises(ValidationError, match="使えない文字"):
            A_LINE.clean(broken)


@pytest.mark.parametrize(
    ("field", "typed", "limit", "length"),
    [
        (A_LINE, "字" * 81, 80, 81),
        (A_LINE, "𠮷" * 81, 80, 81),
        (A_LINE, "e\u0323\u0301" * 41, 80, 82),
        (LINES, "字" * 1001, 1000, 1001),
        (LINES, "\n".join(["字"] * 501), 1000, 1001),
    ],
)
def test_text_that_is_too_long_is_refused_with_its_length(
    field: PlainText, typed: str, limit: int, length: int
) -> None:
    with pytest.raises(ValidationError) as refusal:
        field.clean(typed)

    assert refusal.value.messages == [f"{limit}文字以内で入力してください(現在 {length}文字)。"]


def test_text_far_too_long_is_refused_before_it_is_normalised() -> None:
    """NFC sorts marks in a time that grows by their square: these take half a minute."""
    began = time.process_time()

    with pytest.raises(ValidationError, match="文字以内"):
        A_LINE.clean("a" + "\u0301" * 60_000 + "\u0323" * 60_000)

    assert time.process_time() - began < 1


def test_text_of_just_the_length_may_be_typed_in_as_many_parts_as_there_are() -> None:
    assert LINES.clean(unicodedata.normalize("NFD", "ᾂ") * 1000) == "ᾂ" * 1000


def test_lines_count_as_they_are_kept_not_as_a_browser_sends_them() -> None:
    assert len(LINES.clean("\r\n".join(["字"] * 500) + "字")) == 1000


@given(strategies.text(strategies.characters(), max_size=90))
@settings(max_examples=1500, deadline=None)
def test_cleaned_text_is_clean_for_good(typed: str) -> None:
    for field in (A_LINE, LINES):
        try:
            text = field.clean(typed)
        except ValidationError:
            continue
        assert text == field.clean(text) == unicodedata.normalize("NFC", text) == text.strip()
        assert len(text) <= field.limit
        seen = {
            unicodedata.category(character) for character in text.replace("\n", "" if field.lines else "\n")
        }
        assert not seen & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


# --- The form of a refund -----------------------------------------------------------------------------------


def test_form_asks_for_what_was_typed(payment: Payment) -> None:
    request_id = uuid.uuid4()

    filled = form(
        payment,
        request_id=str(request_id),
        amount="￥１，０００",
        reason="fraudulent",
        description=" 返品のため ",
        memo="電話あり\r\n担当: 田中",
    )

    assert filled.is_valid(), filled.errors
    assert filled.request() == RefundRequest(
        request_id, payment.pk, 1000, "fraudulent", "返品のため", "電話あり\n担当: 田中"
    )
    assert filled.chosen == payment


def test_description_and_memo_may_be_absent(payment: Payment) -> None:
    for blank in (None, "", "  ", "\u3000"):
        filled = form(payment, description=blank, memo=blank)

        assert filled.is_valid()
        assert (filled.request().description, filled.request().memo) == ("", "")


@pytest.mark.parametrize(
    ("typed", "errors"),
    [
        ({"amount": None}, {"amount": [REQUIRED]}),
        ({"amount": "1²"}, {"amount": [NUMBER]}),
        ({"payment": None}, {"payment": ["返金する支払いを選んでください。"]}),
        ({"payment": "payment_test_another"}, {"payment": ["この注文の支払いを選んでください。"]}),
        ({"reason": None}, {"reason": ["理由を選んでください。"]}),
        (
            {"reason": "because"},
            {"reason": ["理由は「お客様からの依頼」か「不正利用」から選んでください。"]},
        ),
        ({"reason": "REQUESTED_BY_CUSTOMER"}, {"reason": ["理由は「お客様からの依頼」か「不正利用」から選んでください。"]}),
        ({"description": "一\n二"}, {"description": [CONTROL]}),
        ({"description": "字" * 81}, {"description": ["80文字以内で入力してください(現在 81文字)。"]}),
        ({"memo": "一\x00二"}, {"memo": [CONTROL]}),
        (
            {"amount": "0", "reason": None, "memo": "\u202e字"},
            {"amount": [POSITIVE], "reason": ["理由を選んでください。"], "memo": [CONTROL]},
        ),
    ],
)  # fmt: skip
def test_form_says_in_japanese_what_is_wrong_with_it(
    payment: Payment, typed: dict[str, Any], errors: dict[str, list[str]]
) -> None:
    assert refused(form(payment, **typed)) == errors


@pytest.mark.parametrize("request_id", [None, "", "17", "not-a-uuid", "0" * 33])
def test_form_without_the_id_it_was_drawn_with_is_refused(payment: Payment, request_id: str | None) -> None:
    assert list(form(payment, request_id=request_id).errors) == ["request_id"]


def test_payment_of_another_order_is_none_of_this_form(order: Order) -> None:
    here, elsewhere = order.payments.get(), make_order(5000).payments.get()

    filled = form(here, payment=elsewhere.pk)

    assert refused(filled) == {"payment": ["この注文の支払いを選んでください。"]}
    assert filled.chosen is None


def test_nothing_but_the_fields_of_the_form_is_taken(payment: Payment) -> None:
    extra = {
        "state": "succeeded",
        "requested_by": "1",
        "currency": "USD",
        "decided_by": "1",
        "id": "x",
        "body": "{}",
    }

    filled = form(payment, **extra)

    assert filled.is_valid()
    assert set(filled.cleaned_data) == {"request_id", "payment", "amount", "reason", "description", "memo"}


def test_similar_refund_wants_a_reason_in_words() -> None:
    for blank in ({}, {"similar_reason": "  "}):
        assert list(SimilarForm(blank).errors["similar_reason"]) == [
            "似た返金があります。それでも返金する理由を入力してください。"
        ]
    assert SimilarForm({"similar_reason": "別の商品"}).is_valid()


# --- Filters ------------------------------------------------------------------------------------------------


def test_filters_of_amounts_may_be_left_empty(db: None) -> None:
    filters = RefundFilterForm({"min_amount": "", "max_amount": "￥１，０００"})

    assert filters.is_valid(), filters.errors
    assert (filters.cleaned_data["min_amount"], filters.cleaned_data["max_amount"]) == (None, 1000)


@pytest.mark.usefixtures("half_past_one_in_japan")
@pytest.mark.parametrize(("period", "days"), [("today", 0), ("week", 6), ("month", 29), ("year", 364)])
def test_period_begins_at_midnight_in_japan(period: str, days: int) -> None:
    filters = PeriodForm({"period": period})
    assert filters.is_valid()

    since = filters.since()

    assert since is not None
    assert since.astimezone(UTC) == datetime(2026, 3, 9, 15, tzinfo=UTC) - timedelta(days=days)


@pytest.mark.parametrize("period", ["", "decade", None])
def test_no_period_is_no_limit(period: str | None) -> None:
    filters = PeriodForm({"period": period} if period else {})
    filters.is_valid()

    assert filters.since() is None


@pytest.fixture
def half_past_one_in_japan() -> Iterator[None]:
    """Of the 10th of March, in the morning: in UTC it is the 9th."""
    with time_machine.travel(datetime(2026, 3, 9, 16, 30, tzinfo=UTC), tick=False):
        yield


def test_filter_that_cannot_be_read_is_taken_as_not_given() -> None:
    filters = OrderFilterForm({"status": "nonsense", "refund_status": "full", "period": "decade"}).filters()

    assert (filters.status, filters.refund_status, filters.period_from) == ("", "full", None)


# --- How it is shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (0, "JPY", "¥0"),
        (1, "JPY", "¥1"),
        (1000, "JPY", "¥1,000"),
        (999_999_999_999, "JPY", "¥999,999,999,999"),
        (-500, "JPY", "−¥500"),
        (1250, "USD", "USD 12.50"),
        (5, "EUR", "EUR 0.05"),
        (-1250, "USD", "−USD 12.50"),
        (100_000, "KRW", "KRW 100,000"),
        (None, "JPY", "–"),
        ("", "JPY", "–"),
    ],
)
def test_money_is_shown_in_its_currency(amount: Any, currency: str, shown: str) -> None:
    assert money(amount, currency) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order_test_bA1znhGULw5lROfDTpHChv", "order_test_bA1z…HChv"),
        ("payment_live_a7zPsUYt1CZPEZ7xtbUYB", "payment_live_a7zP…bUYB"),
        ("refund_test_123456789", "refund_test_123456789"),
        ("refund_test_1234567890", "refund_test_1234…7890"),
        ("0c2ab4c7-9a0c-4f0e-9a3c-0d4b8d6c1f11", "0c2a…1f11"),
        ("", ""),
        (None, "None"),
    ],
)
def test_id_is_shortened_so_that_both_ends_stay(text: Any, shown: str) -> None:
    assert short_id(text) == shown


NO_BREAK = "\N{NO-BREAK SPACE}"  # 「3 分前」 is never broken at a line's end


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "1 秒前"),
        (0, "1 秒前"),
        (12, "12 秒前"),
        (59.9, "59 秒前"),
        (60, "1 分前"),
        (3599, "59 分前"),
        (3600, "1 時間前"),
        (86_399, "23 時間前"),
        (86_400, "2026/03/09 01:30"),
    ],
)
def test_moment_is_told_by_how_long_ago_it_was(seconds: float, shown: str) -> None:
    now = datetime(2026, 3, 9, 16, 30, tzinfo=UTC)

    assert ago(now - timedelta(seconds=seconds), now) == shown.replace(" ", NO_BREAK)


def test_no_moment_is_told_by_nothing() -> None:
    assert ago(None) == ""
    assert ago(datetime.now(tz=UTC) - timedelta(minutes=3)) == f"3{NO_BREAK}分前"
