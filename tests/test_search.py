"""What a telephone cannot hear is found; every answer equals that of a look at each row; no branch scans the table."""

import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from refunds import mirror, search, smartpay
from refunds.folding import fold, fold_reference
from refunds.models import Order
from refunds.search import ANY_STATUS, IN_PROGRESS, Filters, sql, tiers
from refunds.variants import FORMS
from tests.plain_search import Plain, draw_query, is_right

pytestmark = pytest.mark.django_db

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

FAMILIES = [  # written, kana, mail; the first ones are common, as in life
    *[("田中", "タナカ", "tanaka")] * 13,
    *[("佐藤", "サトウ", "sato")] * 9,
    *[("斎藤", "サイトウ", "saito"), ("齋藤", "さいとう", "saito"), ("斉藤", "ｻｲﾄｳ", "saitoh")] * 2,
    *[("髙橋", "タカハシ", "takahashi"), ("高橋", "タカハシ", "takahashi")] * 3,
    ("渡邉", "ワタナベ", "watanabe"),
    ("渡辺", "ワタナベ", "watanabe"),
    ("山﨑", "ヤマザキ", "yamazaki"),
    ("佐々木", "ササキ", "sasaki"),
    ("大野", "オオノ", "ono"),
    ("小野", "オノ", "ono"),
    ("田", "デン", "den"),
    ("田中丸", "タナカマル", "tanakamaru"),
    ("O'Brien", "オブライエン", "obrien"),
    ("", "", "guest"),
]
GIVENS = [
    ("太郎", "タロウ"),
    ("花子", "ハナコ"),
    ("花", "ハナ"),
    ("田中", "タナカ"),
    ("翔・太", "ショウタ"),
    ("梅", "ウメ"),
    ("ヴェラ", "ヴェラ"),
    ("", ""),
]


def order_of(  # one order as Smartpay would show it
    number: int,
    *,
    family: str = "",
    given: str = "",
    family_kana: str = "",
    given_kana: str = "",
    email: str = "",
    reference: str = "",
    status: str = "succeeded",
    order_id: str = "",
    created_at: datetime | None = None,
    amount: int = 1000,
) -> smartpay.CheckoutSession:
    order_id = order_id or f"order_test_{number:022d}"
    created_at = created_at or BEGIN + timedelta(minutes=number)
    payment = smartpay.Payment(
        id=order_id.replace("order", "payment"),
        order=order_id,
        amount=amount,
        currency="JPY",
        status="processed",
        description="",
        reference="",
        refund_ids=(),
        test=True,
        created_at=created_at,
    )
    order = smartpay.Order(
        id=order_id,
        amount=amount,
        currency="JPY",
        status=status,
        reference=reference,
        description="",
        token_id="",
        test=True,
        created_at=created_at,
        expires_at=None,
        payments=(payment,) if status == "succeeded" else (),
        line_items=(),
    )
    customer = smartpay.Customer(family, given, family_kana, given_kana, email)
    return smartpay.CheckoutSession(
        id=f"checkout_test_{number}", order=order, customer=customer, reference=""
    )


def store(*sessions: smartpay.CheckoutSession) -> None:
    by_id = {session.order.id: session for session in sessions if session.order}
    orders = [session.order for session in by_id.values() if session.order]
    mirror.record_orders(orders, read_at=datetime.now(tz=UTC), sessions=by_id)


def give_back(number: int, amount: int) -> None:
    """A refund made outside this tool, of the payment of that order."""
    refund = smartpay.Refund(
        id=f"refund_test_{number:022d}",
        payment=f"payment_test_{number:022d}",
        amount=amount,
        currency="JPY",
        status="succeeded",
        reason="",
        description="",
        reference="",
        metadata={},
        test=True,
        created_at=BEGIN,
    )
    mirror.record_refund(refund, read_at=datetime.now(tz=UTC))


def numbers(result: search.Result) -> list[int]:
    return [int(order.order_id[-22:]) for order in result.orders]


def found(text: str, **options: Any) -> list[int]:
    return numbers(search.find(text, **options))


# --- Folding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("田中　太郎", "田中太郎"),
        ("ﾀﾅｶ ﾀﾛｳ", "タナカタロオ"),
        ("たなか・たろう", "タナカタロオ"),
        ("ｶﾞ", "ガ"),
        ("髙﨑", "高崎"),
        ("渡邊渡邉", "渡辺渡辺"),
        ("齋齊斎斉", "斎斎斎斎"),
        ("濵濱浜", "浜浜浜"),
        ("安逹柗邨杤⻆𡈽㟢劔", "安達松村栃角土崎剣"),
        ("埼", "埼"),  # of another sound
        ("葛\U000e0100城", "葛城"),  # a variation selector
        ("神田", "神田"),  # a compatibility ideograph
        ("Ｔａｒｏ＠Example.JP", "taro@example.jp"),
        ("ジャン゠ポール O'Brien", "ジヤンポオルobrien"),
        ("ジャン-ポール", "ジヤンポオル"),
        ("José Müller x\u0302", "josemullerx"),
        ("佐々木 代々々木", "佐佐木代代代木"),
        ("みすゞ いすヾ かゝ", "ミスズイスズカカ"),
        ("鎌ヶ谷鎌ヵ谷", "鎌ケ谷鎌カ谷"),
        ("コ－ヒ―", "コオヒイ"),
        ("ＥＣー２０２４−０１", "ec-2024-01"),
        ("\x00\ud800田\u200b中", "田中"),
        (" ", ""),
    ],
)
def test_fold_brings_to_one_form_what_a_telephone_cannot_tell(typed: str, folded: str) -> None:
    assert fold(typed) == folded


@pytest.mark.parametrize(
    "alike",
    [
        ("オオノ", "オーノ", "おうの"),
        ("サトウ", "サトー", "ｻﾄｰ", "サトオ"),
        ("ショウコ", "シヨウコ", "ショーコ"),
        ("ユウコ", "ユーコ"),
        ("ケイコ", "ケーコ"),
        ("リイナ", "リーナ"),
        ("マアサ", "マーサ"),
        ("カヅヤ", "カズヤ"),
        ("ミヂカ", "ミジカ"),
        ("ミヲ", "ミオ"),
        ("イソガヰ", "イソガイ"),
        ("スヱ", "スエ"),
        ("ヴィクトリア", "ｳﾞｨｸﾄﾘｱ", "ビクトリア"),
        ("イヴ", "イブ"),
    ],
)
def test_kana_that_sounds_alike_is_one(alike: tuple[str, ...]) -> None:
    assert len({fold(kana) for kana in alike}) == 1


@pytest.mark.parametrize(
    "unlike", [("オノ", "オオノ"), ("ユキ", "ユウキ"), ("ケイ", "ケ"), ("キヨ", "キヨウ")]
)
def test_no_vowel_is_shortened(unlike: tuple[str, str]) -> None:
    assert fold(unlike[0]) != fold(unlike[1])


@pytest.mark.parametrize(
    ("written", "folded"),
    [
        ("#1002", "1002"),
        ("ＥＣ−2024/01_a.b:c", "ec202401abc"),
        ("田中-1", "田中1"),
        ("-/#", "-/#"),
        (" ", ""),
    ],
)
def test_reference_is_what_is_said_of_it_unless_that_is_nothing(written: str, folded: str) -> None:
    assert fold_reference(written) == folded


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.text())
@example("ー-アー-")
@example("İ")
@example("ヴヽーウンーウケーイ々々ヅヽ")
def test_fold_twice_is_fold_once_and_can_be_stored(text: str) -> None:
    once = fold(text)
    assert fold(once) == once
    once.encode()
    assert "\x00" not in once


HIRAGANA = st.text(st.characters(min_codepoint=0x3041, max_codepoint=0x3096))
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)} | {0x20: 0x3000}


@hypothesis_settings(max_examples=200, deadline=None)
@given(HIRAGANA, st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_fold_hears_neither_script_nor_width_nor_case_nor_blanks(kana: str, ascii_text: str) -> None:
    katakana = "".join(chr(ord(character) + 0x60) for character in kana)
    assert fold(kana) == fold(katakana) == fold(" ".join(katakana))
    assert fold(ascii_text) == fold(ascii_text.translate(WIDE)) == fold(ascii_text.upper())


KANA_AS_WRITTEN = st.text(
    st.sampled_from([chr(code) for code in range(0x30A1, 0x30F7)] + [*"ーヽヾ々佐ウオコエケ"])
)
LEANING = re.compile("[ゥウーヽヾ々]")  # on what stands before
V_BEGUN = re.compile("ヴ[ァアィイヰェエヱォオヲ]")


@hypothesis_settings(max_examples=300, deadline=None)
@given(KANA_AS_WRITTEN)
@example("サトウケイイチ")
@example("ゥヾァ")
@example("ヴ々ァ")
def test_a_name_is_found_as_it_is_typed_and_by_its_middle(name: str) -> None:
    """But between ヴ and its vowel, which one key writes, and from a sign on that only lengthens or repeats."""
    for at in range(len(name)):
        beginning, rest = name[:at], name[at:]
        if not V_BEGUN.match(name, max(at - 1, 0)):
            assert fold(name).startswith(fold(beginning))
            assert LEANING.match(rest) or fold(name).endswith(fold(rest))


def test_every_other_form_leads_to_a_form_that_stays() -> None:
    assert len(FORMS) == 473
    assert [form for form in FORMS.values() if ord(form) in FORMS] == []
    assert [chr(code) for code, form in FORMS.items() if fold(chr(code)) != form] == []


# --- What is found ------------------------------------------------------------------------------------------

TANAKA: dict[str, Any] = {
    "family": "田中",
    "given": "太郎",
    "family_kana": "タナカ",
    "given_kana": "タロウ",
    "email": "Tanaka@Example.jp",
}


@pytest.mark.parametrize(
    ("typed", "matched"),
    [
        ("田中", ["お客様名"]),
        ("太郎", ["お客様名"]),
        ("田中太郎", ["お客様名"]),
        ("太郎　田中", ["お客様名"]),
        ("田", ["お客様名"]),
        ("太", ["お客様名"]),
        ("田中太", ["お客様名"]),
        ("「田中」", ["お客様名"]),
        ("たなか", ["フリガナ"]),
        ("ﾀﾛｳ", ["フリガナ"]),
        ("タロウ タナカ", ["フリガナ"]),
        ("tanaka@example.jp", ["メールアドレス"]),
        ("TANA", ["メールアドレス"]),
        ("ec-2024", ["ショップ注文番号"]),
        ("EC-2024-0001", ["ショップ注文番号"]),
        ("#ec 2024/0001", ["ショップ注文番号"]),
        ("ＥＣ２０２４", ["ショップ注文番号"]),
        ("田中 EC20240001", ["お客様名", "ショップ注文番号"]),
        ("-", []),
        ("2024", []),
        ("order_test_00000000000000000000aB", ["注文ID"]),
        ("order_test_00000000000000000000a", ["注文ID"]),
        ("<https://dashboard.smartpay.co/orders/order_test_00000000000000000000aB?tab=1>", ["注文ID"]),
        ("00AB", ["注文ID"]),  # read out: nobody says which letters are capitals
        ("payment_test_00000000000000000000aB", ["支払いID"]),
        (" 'refund_test_1234' ", ["返金ID"]),
        ("田中 example", []),
        ("田中 tanaka@example.jp", ["お客様名", "メールアドレス"]),
        ("00ab 田 たな", ["注文ID", "お客様名", "フリガナ"]),
        ("太 田 たな", ["お客様名", "フリガナ"]),
        ("\x00田\ud800中", ["お客様名"]),
        ("中太", ["お客様名"]),  # across family and given name
        ("ナカタ", ["フリガナ"]),
        ("かた", ["フリガナ"]),
        ("田中様", ["お客様名"]),
        ("田中　太郎　様", ["お客様名"]),
        ("たなかさん", ["フリガナ"]),
        ("様", []),
        ("田中?", ["お客様名"]),
        ("田中 太郎様(タナカ タロウ様)", ["お客様名", "フリガナ"]),
        ("お名前: 田中様", ["お客様名"]),
        ("ec-2024-0001.", ["ショップ注文番号"]),
        ("ショップ注文番号：EC-2024-0001", ["ショップ注文番号"]),
        ("注文番号 EC-2024-0001", ["ショップ注文番号"]),
        ("mailto:tanaka@example.jp", ["メールアドレス"]),
        ('"Taro T." <tanaka@example.jp>', ["メールアドレス"]),
        ("order_test_0000…00aB", ["注文ID"]),  # as we shorten it
        ("…00aB", ["注文ID"]),
        ("order_test_00000000 00000000000000aB", ["注文ID"]),
        ("payment_test_00000000000 000000000aB", ["支払いID"]),
        ("example.jp", ["メールアドレス"]),
        ("@example.j", ["メールアドレス"]),
        ("田 @example.jp", ["お客様名", "メールアドレス"]),
        ("中", []),
        ("0AB", []),  # too short for an end of an id
        ("order_test_", []),
        ("payment_test_nobodys", []),
        ("refund_test_nobodys", []),
        ("鈴木", []),
        ("・", []),
        ("", []),
        ("\x00", []),
        ("\ud800", []),
        ("%", []),
        ("' OR 1=1 --", []),
    ],
)
def test_find_by_what_an_operator_may_type(typed: str, matched: list[str]) -> None:
    order_id = "order_test_00000000000000000000aB"
    store(
        order_of(1, **TANAKA, reference="EC-2024-0001", order_id=order_id),
        order_of(
            2,
            family="高橋",
            given="次郎",
            family_kana="タカハシ",
            given_kana="ジロウ",
            email="jiro@example.com",
        ),
    )
    refund = smartpay.Refund(
        id="refund_test_1234",
        payment="payment_test_00000000000000000000aB",
        amount=1,
        currency="JPY",
        status="",
        reason="",
        description="",
        reference="",
        metadata={},
        test=True,
        created_at=BEGIN,
    )
    mirror.record_refund(refund, read_at=datetime.now(tz=UTC))

    result = search.find(typed)

    assert [(order.order_id, order.matched) for order in result.orders] == (
        [(order_id, matched)] if matched else []
    )
    assert (result.newer, result.older, result.partial, result.hidden_by_filters) == ("", "", False, False)


def test_old_forms_find_new_ones_and_new_ones_old() -> None:
    forms = ["渡辺", "渡邉", "渡邊"], ["鶴田", "靏田", "靍田"], ["弁野", "辨野", "辯野"]
    store(*(order_of(number, family=family) for number, family in enumerate(chain(*forms))))
    assert [[found(family) for family in alike] for alike in forms] == [
        [newest_first] * 3 for newest_first in ([2, 1, 0], [5, 4, 3], [8, 7, 6])
    ]


def test_exact_comes_before_begins_and_words_together_where_neither_is() -> None:
    store(order_of(3, family="田", given="花子"))
    assert found("花 田") == [3]  # two words, each of its own
    store(order_of(2, family="花田川", given="丸子"))
    assert found("花 田") == [2]  # begins
    store(order_of(1, family="花", given="田"))
    assert found("花 田") == [1, 2]  # exact: the full name


def test_a_courtesy_is_cut_only_where_nothing_is_found_with_it() -> None:
    store(*(order_of(number, family="井", family_kana="イ") for number in range(3)))
    assert found("イさん") == [2, 1, 0]
    assert [numbers(page) for page in walk(lambda cursor: search.find("イさん", cursor=cursor, limit=2))] == [
        [2, 1],
        [0],
    ]
    store(order_of(3, family="李", family_kana="イ", given="山", given_kana="サン"))
    assert found("イさん") == [3]
    hidden = search.find("イさん", filters=Filters(period_to=BEGIN + timedelta(minutes=3)))
    assert (hidden.orders, hidden.hidden_by_filters) == ([], True)


def test_kanji_and_kana_in_one_word_are_two_where_nothing_is_called_so() -> None:
    store(order_of(1, **TANAKA))
    assert [found(text) for text in ("田中たろう", "たなか太郎様", "田中ﾀﾛ", "田た", "田中たろう郎")] == [
        [1]
    ] * 4 + [[]]
    store(order_of(2, family="田中", given="たろう"))
    assert found("田中たろう") == [2]


@pytest.mark.parametrize("typed", ["一ノ瀬はなこ", "はなこ一ノ瀬", "一の瀬ハナコ"])
def test_kanji_and_kana_in_one_word_are_two_also_beside_a_name_with_kana(typed: str) -> None:
    store(order_of(1, family="一ノ瀬", given="花子", family_kana="イチノセ", given_kana="ハナコ"))
    assert found(typed) == [1]


@pytest.mark.parametrize(
    ("text", "order_id"),
    [
        ("order_test_0000000000000001", "order_test_0000000000000001"),  # not seen yet
        (" 「order_live_0000000000000001」\n", "order_live_0000000000000001"),
        ("ｏｒｄｅｒ_test_0000000000000001", "order_test_0000000000000001"),
        ("https://example.jp/orders/order_test_0000000000000001/?a=b", "order_test_0000000000000001"),
        ("注文ID: order_test_0000000000000001", "order_test_0000000000000001"),
        ("Order ID order_test_0000000000000001", "order_test_0000000000000001"),
        ("https://example.jp/orders/order_test_1234/payments/payment_test_5678", "order_test_1234"),
        ("order_test_short", "order_test_short"),  # known
        ("ORDER_TEST_SHORT", "order_test_short"),
        ("order_test_shor", None),
        ("order_test_0000000000000aaa", "order_test_0000000000000aAa"),  # known
        ("ORDER_TEST_0000000000000AAA", "order_test_0000000000000aAa"),
        ("order_test_0000000000000aaA", "order_test_0000000000000aaA"),  # not seen yet
        ("order_test_0000000000000bbb", "order_test_0000000000000bbb"),  # known, as another is
        ("ORDER_TEST_0000000000000CCC", None),  # one of two
        ("ORDER_TEST_0000000000000002", None),  # not seen yet, and nothing that Smartpay knows
        ("order_test_1234 order_test_1234", None),
        ("order_test_0000000000000001 order_test_0000000000000002", None),
        ("order_test_0000000000000001 田中", None),
        ("payment_test_0000000000000001", None),
        ("order_test_", None),
        ("田中", None),
        ("", None),
    ],
)
def test_whole_order_id(text: str, order_id: str | None) -> None:
    known = ["short", "1234", *("0000000000000" + end for end in ("aAa", "bBb", "bbb", "cCc", "ccC"))]
    store(*(order_of(number, order_id=f"order_test_{end}") for number, end in enumerate(known)))
    assert search.whole_order_id(text) == order_id


# --- Filters ------------------------------------------------------------------------------------------------


@pytest.fixture
def of_each_kind() -> None:
    store(
        *(order_of(number, family="田中", status=status) for number, status in enumerate(Order.Status.values))
    )
    succeeded = list(Order.Status.values).index("succeeded")
    give_back(succeeded, 400)
    store(order_of(10, family="田中"))
    give_back(10, 1000)
    store(order_of(11, family="田中"))


@pytest.mark.usefixtures("of_each_kind")
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), [11, 10, 5, 4, 3]),
        (Filters(status=ANY_STATUS), [11, 10, 6, 5, 4, 3, 2, 1, 0]),
        (Filters(status=IN_PROGRESS), [1, 0]),
        (Filters(status="rejected"), [2]),
        (Filters(status="nonsense"), []),
        (Filters(refund_status="partial"), [4]),
        (Filters(refund_status="full"), [10]),
        (Filters(refund_status="none", status="succeeded"), [11]),
        (Filters(period_from=BEGIN + timedelta(minutes=4), period_to=BEGIN + timedelta(minutes=10)), [5, 4]),
        (Filters(period_from=BEGIN + timedelta(minutes=11)), [11]),
    ],
)
def test_filters_narrow_lists_and_each_tier_alike(filters: Filters, expected: list[int]) -> None:
    assert list(Order.Status.values)[4] == "succeeded"
    for result in (
        search.list_orders(filters),
        search.find("田中", filters=filters),
        search.find("田", filters=filters),
    ):
        assert numbers(result) == expected
        assert result.hidden_by_filters is (expected == [])


def test_hidden_by_filters_also_by_the_hiding_of_the_never_paid() -> None:
    assert search.list_orders(Filters()).hidden_by_filters is False
    store(order_of(1, family="田中", status="rejected"))
    for text in ("田中", "田", "order_test_0000000000000000000001", "田 中 田中"):
        assert search.find(text).hidden_by_filters is (text != "田 中 田中"), text
    assert search.list_orders(Filters()).hidden_by_filters is True
    assert search.list_orders(Filters(status=IN_PROGRESS)).hidden_by_filters is True
    assert search.find("鈴木").hidden_by_filters is False


def test_partial_is_told_where_candidates_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "CANDIDATES", 3)
    store(
        *(
            order_of(number, family="田中", given="一", email=f"mail{number}@example.jp")
            for number in range(4)
        )
    )

    assert search.find("mail").partial is True
    assert len(search.find("mail").orders) == 4  # the one beyond tells that there are more, and is shown
    assert search.find("mail1").partial is False
    assert search.find("田").partial is True
    assert search.find("田中", limit=3).partial is False  # the page was full before
    assert search.find("田中 mail1").partial is False
    assert search.find("田中 一 mail").partial is True
    store(
        *(order_of(number, family="佐藤木", given="花", email="sato@example.jp") for number in range(10, 15))
    )
    assert found("佐藤木 sato 花") == [14, 13, 12, 11]  # the newest are looked at


# --- Pages --------------------------------------------------------------------------------------------------


def walk(page: Any) -> Iterator[search.Result]:
    """All pages from the first to the last; checks on the way that each is found again from the next."""
    result = page("")
    assert result.newer == ""
    while True:
        yield result
        if not result.older:
            return
        older = page(result.older)
        again = page(older.newer)
        assert numbers(again) == numbers(result)
        assert (again.newer, again.older) == (result.newer, result.older)
        result = older


def test_pages_hold_every_row_once_both_ways() -> None:
    store(*(order_of(number, family="田中" if number % 3 else "田中丸", given="") for number in range(20)))
    expected = [n for n in range(19, -1, -1) if n % 3] + [n for n in range(19, -1, -1) if n % 3 == 0]
    for limit in (1, 3, 7, 19, 20, 21):
        pages = [
            numbers(p) for p in walk(lambda cursor, n=limit: search.find("田中", cursor=cursor, limit=n))
        ]
        assert [number for page in pages for number in page] == expected
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        pages = [
            numbers(p) for p in walk(lambda cursor, n=limit: search.list_orders(Filters(), cursor, limit=n))
        ]
        assert [number for page in pages for number in page] == list(range(19, -1, -1))


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "o0",
        "o9.5",
        "n1.zz",
        "o0.8000000000000000",
        "o0.-1",
        "o0.1\n",
        "'",
        "o2.7fffffffffffffff",
        "o0.0",
    ],
)
def test_a_cursor_that_is_not_ours_is_the_first_page(cursor: str) -> None:
    store(*(order_of(number, family="田中") for number in range(3)))
    for result in (
        search.list_orders(Filters(), cursor, limit=2),
        search.find("田中", cursor=cursor, limit=2),
    ):
        assert numbers(result) == [2, 1]
        assert result.newer == ""
        assert result.older


def test_a_page_of_newer_orders_that_is_not_full_is_the_first_page() -> None:
    store(*(order_of(number) for number in range(5)))
    second = search.list_orders(Filters(), search.list_orders(Filters(), limit=2).older, limit=2)
    store(order_of(9))
    newer = search.list_orders(Filters(), second.newer, limit=2)
    assert (numbers(second), numbers(newer)) == ([2, 1], [4, 3])
    newest = search.list_orders(Filters(), newer.newer, limit=2)
    assert (numbers(newest), newest.newer) == ([9, 4], "")


# --- Against a look at every row ----------------------------------------------------------------------------


def draw_orders(draw: random.Random, count: int) -> list[smartpay.CheckoutSession]:
    sessions = []
    for number in range(count):
        family, family_kana, mail = draw.choice(FAMILIES)
        given, given_kana = draw.choice(GIVENS)
        sessions.append(
            order_of(
                number,
                family=family,
                given=given,
                family_kana=family_kana if draw.random() < 0.7 else "",
                given_kana=given_kana if draw.random() < 0.7 else "",
                email=f"{mail}{draw.randrange(40)}@example.{draw.choice(['jp', 'com'])}"
                if draw.random() < 0.9
                else "",
                reference=draw.choice(["", f"EC-{draw.randrange(300):04d}", f"taro-{draw.randrange(50)}"]),
                status=draw.choice(["succeeded"] * 6 + list(Order.Status.values)),
                order_id="order_test_" + "".join(draw.choices(ALPHABET, k=22)),
                created_at=BEGIN + timedelta(milliseconds=draw.randrange(10**7)),
            )
        )
    return sessions


@pytest.mark.parametrize("candidates", [3000, 20])
def test_find_equals_a_look_at_every_row(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "CANDIDATES", candidates)
    draw = random.Random(20261123)
    sessions = draw_orders(draw, 3000)
    for at in range(0, len(sessions), 100):
        store(*sessions[at : at + 100])
    rows = list(Order.objects.all())
    assert len(rows) == 3000
    plain = Plain([row for row in rows if row.status not in Order.UNPAID])
    differences, partial = [], 0
    for _ in range(400):
        text = draw_query(draw, rows)
        right, cut = is_right(plain, text, draw.choice([5, 50]))
        partial += cut
        if not right:
            differences.append(text)
    assert differences == []
    assert bool(partial) is (candidates == 20)


def test_every_page_of_a_search_is_right_however_few_candidates_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(20261130)
    store(*draw_orders(draw, 500))
    rows = list(Order.objects.all())
    plain = Plain([row for row in rows if row.status not in Order.UNPAID])
    wrong = []
    for _ in range(150):
        monkeypatch.setattr(tiers, "CANDIDATES", draw.choice([3, 5, 10, 20]))
        monkeypatch.setattr(tiers, "WALK", draw.choice([10, 50]))
        text, limit = draw_query(draw, rows), draw.choice([3, 5, 20])
        page = search.find(text, limit=limit)
        pages = [page]
        while page.older and len(pages) < 200:
            page = search.find(text, limit=limit, cursor=page.older)
            pages.append(page)
        got, expected = [order.order_id for page in pages for order in page.orders], plain.found(text)
        partial = any(page.partial for page in pages)
        right = set(got) <= set(expected) and len(got) == len(set(got)) if partial else got == expected
        if not right or page.older or not all(order.matched for page in pages for order in page.orders):
            wrong.append(text)
    assert wrong == []


def test_who_begins_like_a_common_family_is_found_among_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "CANDIDATES", 3)
    store(*(order_of(number, family="田中", given="一") for number in range(4)))
    store(
        order_of(4, family="田中丸", given="一"),
        order_of(5, family="田", given="中子"),
        order_of(6, family="小", given="田中子"),
        order_of(7, family="大田", given="中"),
    )

    result = search.find("田中")

    assert (numbers(result), result.partial) == ([3, 2, 1, 0, 6, 5, 4, 7], False)


def test_several_common_words_are_paged_beyond_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "CANDIDATES", 50)
    domains = ("example.jp", "example.com")
    store(*(order_of(n, family="田中", given="太郎", email=f"t{n}@{domains[n % 2]}") for n in range(120)))
    found, page = [], search.find("田中 example.jp", limit=5)
    while True:
        found += [order.order_id for order in page.orders]
        if not page.older:
            break
        page = search.find("田中 example.jp", limit=5, cursor=page.older)

    assert found == [f"order_test_{n:022d}" for n in range(118, -1, -2)]


def test_word_that_is_a_domain_may_begin_something_else_among_many_of_the_domain() -> None:
    store(*(order_of(n, family="田中", email=f"t{n}@example.jp") for n in range(100)))
    store(*(order_of(n, family="田中", email=f"t{n}@example.com") for n in range(100, 200)))
    assert numbers(search.find("田中 example.jp")) == list(range(99, 49, -1))
    store(
        order_of(200, family="田中", reference="example.jp-1"),
        order_of(201, family="田中", email="example.jp@elsewhere.com"),
        order_of(202, family="田中", email="t@not-example.jp"),
    )

    assert numbers(search.find("田中 example.jp")) == [201, 200, *range(99, 51, -1)]


def test_order_that_changes_while_it_is_looked_for_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looks at 田中 are cut here, and find some orders twice."""
    monkeypatch.setattr(tiers, "CANDIDATES", 3)
    store(*(order_of(n, family="田中", given="一") for n in range(4)))
    store(order_of(4, family="田", given="中子"), *(order_of(n, family="田中子") for n in range(5, 9)))
    store(*(order_of(n, family="田", given="中子一") for n in range(10, 14)))
    asked, amounts = sql.fetch, count(2000)

    def ask_while_the_mirror_is_written(statement: str, parameters: Any) -> list[Any]:
        found = asked(statement, parameters)
        Order.objects.update(amount=next(amounts))
        return found

    with patch("refunds.search.sql.fetch", ask_while_the_mirror_is_written):
        shown = numbers(search.find("田中", limit=20))

    assert shown[:4] == [3, 2, 1, 0]
    assert shown[4:] == sorted({*shown[4:]}, reverse=True)
    assert len(shown) > 4


def test_empty_page_is_partial_where_the_look_without_filters_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "CANDIDATES", 3)
    store(order_of(0, family="田中", email="t@elsewhere.jp"))
    store(*(order_of(n, family="田中", email=f"t{n}@example.jp") for n in range(1, 10)))

    result = search.find("田中 @elsewhere.jp", filters=Filters(period_to=BEGIN))

    assert (result.orders, result.partial, result.hidden_by_filters) == ([], True, False)


# --- What it costs ------------------------------------------------------------------------------------------


def test_many_words_cost_no_more_for_each_candidate() -> None:
    store(*(order_of(n, family="田中", email=f"t{n}@example.jp") for n in range(100)))

    def asked(text: str) -> str:
        with CaptureQueriesContext(connection) as queries:
            search.find(text)
        return " ".join(query["sql"] for query in queries)

    two, forty = asked("田中 0.jp 1.jp"), asked("田中 " + " ".join(f"{number}.jp" for number in range(40)))
    assert forty.count("refunds_fragment WHERE text") == two.count("refunds_fragment WHERE text") > 0
    one, one_forty_times = asked("田中 0.jp"), asked("田中 " + "0.jp " * 40)
    assert one_forty_times.count("substr(") == one.count("substr(")
    assert search.find("zz " * 1100).orders == []


QUERIES = [
    "田中",
    "田",
    "田中 太郎",
    "タナカ mail1 田",
    "order_test_00",
    "payment_test_1",
    "refund_test_1",
    "mail1",
    "山の",
    "nowhere.example",
    "田中 nowhere.example",
]


def test_as_many_queries_for_one_row_as_for_many() -> None:
    def counts() -> list[int]:
        counted = []
        for read in [lambda: search.list_orders(Filters()), *(lambda q=q: search.find(q) for q in QUERIES)]:
            with CaptureQueriesContext(connection) as queries:
                read()
            counted.append(len(queries))
        return counted

    store(order_of(1, **TANAKA | {"email": "mail1@example.jp"}))
    for_one = counts()
    store(*(order_of(number, **TANAKA | {"email": f"mail{number}@example.jp"}) for number in range(2, 40)))
    assert counts() == for_one
    # Five of the tiers, one more where there are candidates to judge, two where only the last of them fit, one more where
    # fragments are frequent; for an empty page the tiers again.
    assert max(for_one) <= 12


def test_page_that_candidates_hardly_fill_asks_few_queries() -> None:
    """All but one of a page are the newest, and none of the thousand behind them is the last."""
    for at in range(0, tiers.CANDIDATES, 100):
        store(*(order_of(n, email=f"mail{n:04d}@example.jp") for n in range(at, at + 100)))
    newest = range(tiers.CANDIDATES, tiers.CANDIDATES + search.PAGE)
    store(*(order_of(n, email=f"mail{n:04d}@example.jp", status="pending") for n in newest))

    with CaptureQueriesContext(connection) as queries:
        result = search.find("mail", filters=Filters(status=IN_PROGRESS))

    assert len(result.orders) == search.PAGE
    assert result.partial
    assert len(queries) <= 14


def plan_of(statement: str, parameters: dict[str, Any], *, for_all_values: bool) -> str:
    """How the database goes about it. for_all_values: on PostgreSQL, by the plan that a search keeps."""
    if connection.vendor != "postgresql" or not for_all_values:
        with connection.cursor() as cursor:
            cursor.execute(
                f"EXPLAIN {'' if connection.vendor == 'postgresql' else 'QUERY PLAN'} {statement}", parameters
            )
            return "\n".join(str(row[-1]) for row in cursor.fetchall())
    names: dict[str, int] = {}
    numbered = re.sub(r"%\((\w+)\)s", lambda name: f"${names.setdefault(name[1], len(names) + 1)}", statement)
    values = f"({', '.join(f'%({name})s' for name in names)})" if names else ""
    with psycopg.ClientCursor(connection.connection) as cursor:
        cursor.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        cursor.execute(f"PREPARE searched AS {numbered}")
        cursor.execute(f"EXPLAIN EXECUTE searched{values}", parameters)
        plan = "\n".join(row[0] for row in cursor.fetchall())
        cursor.execute("DEALLOCATE searched")
        return plan


def test_plans_of_others_are_made_for_their_values_whatever_became_of_a_search() -> None:
    def mode() -> str:
        if connection.vendor != "postgresql":
            return "auto"
        with connection.cursor() as cursor:
            cursor.execute("SHOW plan_cache_mode")
            return str(cursor.fetchone()[0])

    def fail(*_args: Any, **_options: Any) -> None:
        assert mode() == ("force_generic_plan" if connection.vendor == "postgresql" else "auto")
        with connection.cursor() as cursor:
            cursor.execute("SELECT one FROM nowhere")

    search.find("田中")
    assert mode() == "auto"
    with (
        pytest.raises(DatabaseError, match="nowhere"),
        transaction.atomic(),
        patch("refunds.search.pages._page", fail),
    ):
        search.find("田中")
    assert mode() == "auto"


def test_name_that_many_have_is_looked_through_for_so_long_where_a_filter_leaves_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store(
        *(
            order_of(n, family="田中", given=f"{n}郎", status="canceled" if n < 2 else "succeeded")
            for n in range(10)
        )
    )
    canceled = Filters(status="canceled")
    assert len(search.find("田中", filters=canceled).orders) == 2
    assert len(search.find("田中", filters=canceled, limit=1).orders) == 1
    monkeypatch.setattr(tiers, "WALK", 50)

    monkeypatch.setattr(tiers, "FILTERED", 9)
    cut = search.find("田中", filters=canceled)
    monkeypatch.setattr(tiers, "FILTERED", 10)
    whole = search.find("田中", filters=canceled)

    assert ([len(cut.orders), cut.partial], [len(whole.orders), whole.partial]) == ([1, True], [2, False])


def test_what_a_filter_leaves_of_two_columns_is_found_newest_first_and_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds = [("given", n, 4) for n in range(600)] + [("family", n, 60) for n in range(1200)]
    store(
        *(
            order_of(
                number,
                **{f"{part}_kana": "ミナミ"},  # type: ignore[arg-type]
                status="succeeded" if n % every else "canceled",
                created_at=BEGIN
                + (timedelta(hours=4 * n) if part == "given" else timedelta(days=100, hours=n)),
            )
            for number, (part, n, every) in enumerate(kinds)
        )
    )
    expected = [int(row.order_id[-22:]) for row in Order.objects.filter(status="canceled")]  # newest first

    pages = [search.find("ミナミ", filters=Filters(status="canceled"))]
    while pages[-1].older:
        pages.append(search.find("ミナミ", filters=Filters(status="canceled"), cursor=pages[-1].older))

    assert not any(page.partial for page in pages)
    assert [number for page in pages for number in numbers(page)] == expected
    # Where no more may be looked at, the full page says that something may be missing between its rows.
    monkeypatch.setattr(tiers, "FILTERED", 500)
    page = search.find("ミナミ", filters=Filters(status="canceled"))
    assert (len(page.orders), page.partial) == (search.PAGE, True)


@pytest.mark.parametrize(
    "filters", [Filters(), Filters(status=ANY_STATUS), Filters(period_from=BEGIN, status=IN_PROGRESS)]
)
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("fragments", [1, tiers.CANDIDATES + 1])
def test_every_branch_is_a_range_of_an_index(filters: Filters, older: bool, fragments: int) -> None:
    statements: list[tuple[str, dict[str, Any]]] = []

    def explain(statement: str, parameters: dict[str, Any]) -> list[Any]:
        statements.append((statement, parameters))
        if statement.startswith("SELECT branch, key, "):
            return [(0, 1, True)]  # a candidate, to be judged
        return [(fragments,)] if statement.startswith("SELECT sum(1) FROM (") else []

    for at in range(0, 2000, 100):
        store(
            *(
                order_of(n, family=f"山{n}", given=f"{n}郎", email=f"{n}@example.jp")
                for n in range(at, at + 100)
            )
        )
    with patch("refunds.search.sql.fetch", explain):
        for text in QUERIES:
            search.find(text, filters=filters, cursor="" if older else "n2.5")
        listed_from = len(statements)
        search.list_orders(filters, "" if older else "n0.5")
    assert statements
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute("ANALYZE refunds_order")
        for number, (statement, parameters) in enumerate(statements):
            assert not re.search(r"\b(COUNT|OFFSET|LIKE|UPPER)\b", statement, re.IGNORECASE)
            searched = number < listed_from
            plan = plan_of(statement, parameters, for_all_values=searched)
            assert not re.search(r"(Seq Scan on|SCAN) refunds_", plan), f"{statement}\n{plan}"
            if searched and "SELECT order_id FROM" not in statement:
                # Nor is the key's own index walked for what only some rows have; one row may be looked up in it.
                walked = (
                    r"sqlite_autoindex_refunds_order_1 (?!\(key=\?\))"
                    r"|refunds_order_pkey.*\n(?!.*\(key = (\w+\.key|1)\))"
                )
                assert not re.search(walked, plan), f"{statement}\n{plan}"
                assert not re.search("Hash Join|Hash Semi|Merge", plan), f"{statement}\n{plan}"
