"""要調査: two people decide by what Smartpay shows, neither of them who asked; and the switch for sending."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.html import escape

from dashboard.models import User
from refunds import services, smartpay
from refunds.models import AuditEntry, Control, Payment, Refund, ReviewDecision, SmartpayRefund
from refunds.services import control
from tests.conftest import Clock, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh
from tests.test_control import lost
from tests.test_services import ask, at_smartpay, mirrored, observe, refund, shown, unknown, work

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


@pytest.fixture
def second(db: None) -> User:
    return make_user("approver", "承認 二郎")


@pytest.fixture
def contradicted(payment: Payment, operator: User, sandbox: Sandbox) -> Refund:
    """Done, as asked; but the answer named one yen more."""
    sandbox.fault("wrong_amount")
    return refund(payment, operator)


def decide(case: Refund, by: User, smartpay_id: str = "", **other: Any) -> Refund:
    facts = {"verdict": "succeeded" if smartpay_id else "not_executed", "note": "確認済み"} | other
    return services.decide_case(case.pk, smartpay_id=smartpay_id, by=by, client=smartpay.client(), **facts)


def case_without_reference(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> tuple[Refund, dict[str, Any]]:
    """Not executed, but somebody refunded as much in Smartpay's own dashboard meanwhile: it could be it."""
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator, similar_reason="別件")
    there = sandbox.refund_elsewhere(payment.pk, 1000)
    for _turn in range(4):
        at.advance(hours=7)
        sandbox.advance(7 * 3600)
        work()
    made.refresh_from_db()
    assert made.state == State.REVIEW
    return made, there


def test_evidence_settles_a_case_without_people(contradicted: Refund, sandbox: Sandbox) -> None:
    assert contradicted.state == State.REVIEW

    services.look_again(contradicted.pk, client=smartpay.client())

    contradicted.refresh_from_db()
    assert contradicted.state == State.SUCCEEDED


def test_two_who_agree_that_it_is_this_refund_settle_the_case(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    payment.refresh_from_db()
    left, [there] = payment.refundable(), at_smartpay(sandbox, payment)

    assert decide(case, approver, there["id"]).state == State.REVIEW
    settled = decide(case, second, there["id"])

    payment.refresh_from_db()
    assert (settled.state, settled.smartpay_id) == (State.SUCCEEDED, there["id"])
    # It was counted as made elsewhere, and reserved as well.
    assert (payment.refunded, payment.external, payment.reserved) == (1000, 0, 0)
    assert payment.refundable() == left + 1000
    assert AuditEntry.objects.filter(action="refund.judged").count() == 2


def test_two_who_agree_that_there_is_none_settle_the_case(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)

    decide(case, approver)
    settled = decide(case, second)

    payment.refresh_from_db()
    assert (settled.state, payment.external, payment.reserved) == (State.NOT_EXECUTED, 1000, 0)


def test_case_stays_open_while_two_differ_and_the_last_word_counts(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    [there] = at_smartpay(sandbox, payment)

    assert decide(case, approver).state == State.REVIEW
    assert decide(case, approver).state == State.REVIEW  # twice the same person
    assert decide(case, second, there["id"]).state == State.REVIEW
    assert decide(case, approver, there["id"]).state == State.SUCCEEDED


def test_requester_and_who_is_no_approver_decide_nothing(
    payment: Payment, approver: User, viewer: User, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, approver, sandbox, at)
    gone = make_user("approver")
    gone.is_active = False

    for person in (approver, viewer, operator, gone):
        with pytest.raises(PermissionDenied):
            decide(case, person)

    assert not ReviewDecision.objects.exists()


def test_nothing_is_decided_without_a_reason_or_twice(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    with pytest.raises(services.NoReason):
        decide(case, approver, note="")
    decide(case, approver)
    decide(case, second)

    with pytest.raises(services.NotWaiting):
        decide(case, approver)


@pytest.fixture
def hidden(payment: Payment, operator: User, sandbox: Sandbox) -> Refund:
    """Never done, as far as anybody can read; and the answer named another mode."""
    sandbox.fault("wrong_mode")
    made = refund(payment, operator)
    sandbox.switch(read_lag_seconds=10**6)
    return made


def test_absence_is_not_decided_before_two_readings_proved_it(
    hidden: Refund, approver: User, second: User, at: Clock
) -> None:
    assert hidden.first_sent_at is not None
    with pytest.raises(services.NotProved, match="早くて"):
        decide(hidden, approver)
    at.now = hidden.first_sent_at + timedelta(hours=6, minutes=30)
    with pytest.raises(services.NotProved, match="早くて"):
        decide(hidden, approver)  # the first reading that counts
    at.advance(minutes=14)
    with pytest.raises(services.NotProved, match="早くて"):
        decide(hidden, approver)
    assert not ReviewDecision.objects.exists()

    at.advance(minutes=1)
    assert decide(hidden, approver).state == State.REVIEW
    assert decide(hidden, second).state == State.NOT_EXECUTED
    assert hidden.evidence.filter(found=False).count() == 2  # pages may be read again and again


def test_absence_of_a_payment_without_a_list_takes_three_scans_and_no_more(
    hidden: Refund, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    at.advance(minutes=1)
    assert not services.needs_full_scan()
    services.look_again(hidden.pk, client=smartpay.client())
    scans = []

    for hour in range(72):
        for minute in (0, 20, 40):
            if services.needs_full_scan():
                scans.append((hour, minute))
            work()
            at.advance(minutes=20)

    assert scans == [(0, 0), (6, 40), (7, 0)]  # what there is now; and twice from when it counts
    assert services.review_case(hidden).why_not_absent
    decide(hidden, approver)
    assert decide(hidden, second).state == State.NOT_EXECUTED


def test_case_of_a_payment_without_a_list_is_settled_by_the_scan_that_people_ask_for(
    contradicted: Refund, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    at.advance(minutes=1)

    services.look_again(contradicted.pk, client=smartpay.client())
    work()

    contradicted.refresh_from_db()
    assert contradicted.state == State.SUCCEEDED


def test_refund_that_failed_alone_was_not_executed(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    observe(shown(made, status="failed"))  # sent by a life that the database forgot, and refused
    made.refresh_from_db()
    assert (made.state, made.first_sent_at) == (State.REVIEW, None)

    decide(made, approver)
    assert decide(made, second).state == State.NOT_EXECUTED


def test_what_smartpay_shows_of_it_can_not_be_absent(
    larger: tuple[Refund, dict[str, Any]], approver: User, at: Clock
) -> None:
    at.advance(hours=24)

    with pytest.raises(services.NotProved, match="番号がある返金が示されている"):
        decide(larger[0], approver)


@pytest.fixture
def larger(payment: Payment, operator: User, sandbox: Sandbox, at: Clock) -> tuple[Refund, dict[str, Any]]:
    """Done under our reference, and Smartpay shows 300 yen more than was asked for."""
    sandbox.fault("reset")
    made = refund(payment, operator)
    [there] = at_smartpay(sandbox, payment)
    sandbox.set(there["id"], amount=1300)
    at.advance(hours=1)
    sandbox.advance(3600)
    work()
    made.refresh_from_db()
    assert made.state == State.REVIEW
    return made, there


def test_refund_larger_than_asked_leaves_less(
    larger: tuple[Refund, dict[str, Any]], payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    case, there = larger
    payment.refresh_from_db()
    assert payment.refundable() == payment.captured - 1300  # while it is a case, too
    shown_to_people = sign_in(approver).get(page(case)).content.decode()
    assert re.search(r'<span class="tag">\s*返金済み\s*</span>', shown_to_people)
    assert "異なります" in shown_to_people

    assert decide(case, approver, there["id"]).state == State.REVIEW
    settled = decide(case, second, there["id"])

    payment.refresh_from_db()
    assert (settled.state, settled.reviews) == (State.SUCCEEDED, case.reviews)  # one round: nothing was news
    assert (payment.refunded, payment.external, payment.reserved) == (1000, 300, 0)
    assert payment.refundable() == payment.captured - 1300
    told = sign_in(approver).get(f"/refunds/{case.pk}/").content.decode()
    assert "¥1,300" in told
    assert "承認 二郎&nbsp;さん" in told


def test_refund_smaller_than_asked_is_never_told_too_high(
    larger: tuple[Refund, dict[str, Any]], payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    case, there = larger
    sandbox.set(there["id"], amount=900)

    for person in (approver, second):
        decide(case, person, there["id"])

    payment.refresh_from_db()
    assert (payment.refunded, payment.external, payment.reserved) == (1000, 0, 0)


def test_of_two_executions_the_one_that_is_not_chosen_counts_as_made_elsewhere(
    larger: tuple[Refund, dict[str, Any]], payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    case, there = larger
    other = sandbox.refund_elsewhere(payment.pk, 200, reference=str(case.pk))
    services.look_again(case.pk, client=smartpay.client())

    for person in (approver, second):
        settled = decide(case, person, there["id"])

    payment.refresh_from_db()
    assert (settled.state, settled.smartpay_id) == (State.SUCCEEDED, there["id"])
    assert (payment.refunded, payment.external) == (1000, 300 + 200)
    assert SmartpayRefund.objects.get(pk=other["id"]).ours_id == case.pk


def test_refund_that_was_chosen_is_not_read_again_for_ever(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, there = case_without_reference(payment, operator, sandbox, at)
    for person in (approver, second):
        decide(case, person, there["id"])
    sandbox.forget_requests()

    services.read_payment(payment.pk, client=smartpay.client())

    assert [each["path"] for each in sandbox.requests("GET")] == [f"/v1/payments/{payment.pk}"]


def test_what_is_another_rows_nobodys_failed_or_older_is_not_this_one(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    older = sandbox.refund_elsewhere(payment.pk, 10)
    services.read_payment(payment.pk, client=smartpay.client())
    at.advance(hours=1)
    sandbox.advance(3600)
    case, _there = case_without_reference(payment, operator, sandbox, at)
    elsewhere = refund(mirrored(sandbox, "refundable", min_amount=2000, skip=1), operator)
    failed = sandbox.refund_elsewhere(payment.pk, 20)
    sandbox.set(failed["id"], status="failed")
    odd = sandbox.refund_elsewhere(payment.pk, 30)
    sandbox.set(odd["id"], status="processing")

    words = []
    for smartpay_id in (
        str(elsewhere.smartpay_id),
        "refund_test_0000000000000000000000",
        "refund_live_0000000000000000000000",
        "",
        failed["id"],
        odd["id"],
        older["id"],
    ):
        with pytest.raises(services.NotProved) as refused:
            decide(case, approver, smartpay_id, verdict="succeeded")
        words.append(str(refused.value))

    assert words == [
        "別の支払いの返金です。",
        "Smartpay にこの返金はありません。",
        "Smartpay の返金を選んでください。",
        "Smartpay の返金を選んでください。",
        "Smartpay は返金不可と示しています。",
        "Smartpay は返金済みとも返金不可とも示していません。",
        "この返金を送るより前の返金です。",
    ]
    assert not ReviewDecision.objects.exists()


def test_refund_that_names_another_row_is_that_rows(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    other = services.request_refund(ask(payment, 100), refundable=payment.refundable(), by=operator)
    services.withdraw(other.pk, by=operator)
    case, _there = case_without_reference(payment, operator, sandbox, at)
    named = sandbox.refund_elsewhere(payment.pk, 100, reference=str(other.pk))

    with pytest.raises(services.NotProved, match="このツールの別の返金です"):
        decide(case, approver, named["id"])


def test_word_of_somebody_who_left_settles_nothing(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    decide(case, approver)
    approver.groups.clear()

    assert decide(case, second).state == State.REVIEW
    assert decide(case, make_user("approver")).state == State.NOT_EXECUTED


def test_what_was_said_before_the_evidence_changed_counts_no_longer(
    larger: tuple[Refund, dict[str, Any]], approver: User, second: User, sandbox: Sandbox
) -> None:
    case, there = larger
    decide(case, approver, there["id"])
    sandbox.set(there["id"], amount=1200)

    with pytest.raises(services.NotProved, match="内容が変わりました"):
        decide(case, second, there["id"], at_round=case.reviews)
    assert decide(case, second, there["id"]).state == State.REVIEW
    assert decide(case, approver, there["id"]).state == State.SUCCEEDED


def test_what_made_it_a_case_is_told(
    larger: tuple[Refund, dict[str, Any]], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    nameless, _there = case_without_reference(
        mirrored(sandbox, "refundable", min_amount=2000, skip=1), operator, sandbox, at
    )
    unread = unknown(mirrored(sandbox, "refundable", min_amount=2000, skip=2), operator, sandbox)
    sandbox.fault("html", method="GET", path="", times=None)
    at.advance(hours=13)
    services.settle_due(client=smartpay.client())

    told = [
        services.review_case(Refund.objects.get(pk=each.pk)).why for each in (larger[0], nameless, unread)
    ]

    assert told == [
        ["Smartpay が示す返金は、金額が申請と異なります(申請 ¥1,000、Smartpay ¥1,300)。"],
        ["この返金の受付番号がある返金はありませんが、受付番号のない同じ金額の返金があります。"],
        ["送信したあと、Smartpay を長いあいだ読み取れませんでした。"],
    ]


@pytest.mark.parametrize(
    ("who", "round_", "words"),
    [
        ("operator", 1, "never by who asked"),
        ("approver", 0, "while it is one"),
        ("approver", 2, "while it is one"),
    ],
)
def test_database_takes_no_decision_of_the_requester_or_of_another_round(
    hidden: Refund, operator: User, approver: User, at: Clock, who: str, round_: int, words: str
) -> None:
    person = {"operator": operator, "approver": approver}[who]

    with pytest.raises(IntegrityError, match=words), transaction.atomic():
        ReviewDecision.objects.create(
            refund=hidden, round=round_, person=person, verdict="not_executed", note="x", at=at.now
        )


def test_database_wants_two_people_for_not_executed(hidden: Refund, approver: User, at: Clock) -> None:
    for _time in range(2):
        ReviewDecision.objects.create(
            refund=hidden, round=1, person=approver, verdict="not_executed", note="x", at=at.now
        )

    with pytest.raises(IntegrityError, match="two people decide"), transaction.atomic():
        Refund.objects.filter(pk=hidden.pk).update(state=State.NOT_EXECUTED)


# --- The pages ----------------------------------------------------------------------------------------------


def page(case: Refund) -> str:
    return reverse("refunds:refund_review", args=[case.pk])


@pytest.mark.parametrize(("mode", "state"), [("wrong_amount", State.REVIEW), ("reset", State.UNKNOWN)])
def test_order_says_beside_its_figures_what_an_open_refund_means_for_them(
    payment: Payment, operator: User, sandbox: Sandbox, mode: str, state: State
) -> None:
    """The refund's own notice above tells the rest."""
    sandbox.fault(mode)
    assert refund(payment, operator).state == state
    sandbox.fault("html", method="GET", path="", times=None)  # what it would show settles them

    page = sign_in(operator).get(f"/orders/{payment.order.order_id}/").content.decode()

    assert re.search(r'<p class="blocked">.*<span>いまは返金できません。</span></p>', page)
    assert "結果が確定していない返金があります" not in page
    assert ("<small>判定後に確定</small>" in page) == (state == State.REVIEW)
    assert ("<small>結果が分かると確定</small>" in page) == (state == State.UNKNOWN)


def test_two_approvers_settle_a_case_on_its_page(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)

    for person in (approver, second):
        browser = fresh(person)
        shown = browser.get(page(case)).content.decode()
        assert "番号のない同じ金額の返金があります" in shown
        assert "Smartpay に表示なし" in shown
        assert ("ほかの承認者が判定しています" in shown) == (person == second)
        answer = browser.post(page(case), {"choice": "not_executed", "note": "店舗に確認", "round": "1"})
        assert answer.status_code == 303

    case.refresh_from_db()
    assert case.state == State.NOT_EXECUTED
    assert "この返金は確定しています" in fresh(approver).get(page(case)).content.decode()


def test_bad_decision_is_told_beside_the_field_and_loses_nothing(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(approver)

    nothing = browser.post(page(case), {"note": "店舗に確認"})
    wrong = browser.post(page(case), {"choice": "refund_test_0000000000000000000000", "note": "店舗に確認"})

    assert nothing.status_code == wrong.status_code == 422
    assert "data-focus>" in nothing.content.decode()
    assert '<a href="#id_choice">判定</a>: 判定を選んでください。' in nothing.content.decode()
    assert "判定を選んでください" in nothing.content.decode()
    assert "この返金はありません" in wrong.content.decode()
    assert all("店舗に確認</textarea>" in answer.content.decode() for answer in (nothing, wrong))


def test_case_is_decided_by_a_fresh_sign_in_only(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)

    answer = sign_in(approver).post(page(case), {"choice": "not_executed", "note": "x"})

    assert answer.status_code == 302
    assert answer["Location"].startswith("/oidc/step-up/?next=")
    assert not ReviewDecision.objects.exists()


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_others_see_the_evidence_and_decide_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, role: str
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(make_user(role))

    assert "判定できるのは承認者だけです" in browser.get(page(case)).content.decode()
    assert browser.post(page(case), {"choice": "not_executed", "note": "x"}).status_code == 403


def test_page_of_a_case_shows_the_last_copy_while_smartpay_is_silent(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    sandbox.fault("html", method="GET", path="", times=None)
    browser = fresh(approver)

    shown = browser.get(page(case))
    posted = browser.post(page(case), {"choice": "not_executed", "note": "店舗に確認"})

    assert (shown.status_code, posted.status_code) == (200, 503), posted.headers
    assert "読み取れません" in shown.content.decode()
    assert "店舗に確認</textarea>" in posted.content.decode()


def test_page_of_a_refund_that_was_lost_shows_the_reason_that_smartpay_has(
    payment: Payment, approver: User, sandbox: Sandbox
) -> None:
    for reason in ("", "of Smartpay's own"):
        seen = lost(payment, refund_id=f"refund_test_{len(reason):022d}", reason=reason)
        observe(seen)
        made = Refund.objects.get(smartpay_id=seen.id)

        page = sign_in(approver).get(reverse("refunds:refund_review", args=[made.pk]))

        assert page.status_code == 200
        assert escape(reason) in page.content.decode()


def test_cases_wait_on_the_start_page_and_among_the_approvals(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(approver)

    assert "要調査)が 1&nbsp;件" in browser.get(reverse("refunds:start")).content.decode()
    assert str(case.pk) in browser.get(reverse("refunds:approvals")).content.decode()


def test_case_that_was_settled_meanwhile_is_told(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(make_user("approver"))
    for person in (approver, second):
        decide(case, person)

    answer = browser.post(page(case), {"choice": "not_executed", "note": "x"}, follow=True)

    assert "すでに確定しています" in answer.content.decode()


# --- The switch ---------------------------------------------------------------------------------------------


def test_approver_stops_and_resumes_sending(approver: User, operator: User) -> None:
    browser = fresh(approver)
    sends = reverse("refunds:sends")

    refused = browser.post(sends, {"stop": "1", "reason": ""})
    assert refused.status_code == 422
    assert '<a href="#id_reason">理由</a>: 理由を入力してください。' in refused.content.decode()
    assert browser.post(sends, {"stop": "1", "reason": "点検のため"}).status_code == 303
    assert not Control.sends_are_on()
    resuming = browser.get(reverse("refunds:approvals")).content.decode()
    assert '<p class="hint" id="sends_reason_help">監査記録に残ります。</p>' in resuming
    assert "点検のため" in sign_in(operator).get(reverse("refunds:start")).content.decode()
    assert browser.post(sends, {"resume": "1", "reason": "終わり"}).status_code == 303
    assert Control.sends_are_on()
    assert fresh(operator).post(sends, {"stop": "1", "reason": "x"}).status_code == 403


def test_sending_is_not_resumed_before_everything_was_read(approver: User) -> None:
    control.remember(1)
    services.watch()

    answer = fresh(approver).post(reverse("refunds:sends"), {"resume": "1", "reason": "確認済み"})

    assert answer.status_code == 422
    assert "読み取り(自動)が終わってから再開できます" in answer.content.decode()
    assert "データベースが古い状態" in answer.content.decode()
    assert 'value="確認済み"' in answer.content.decode()


def test_judged_case_is_marked_for_who_judged_it_and_says_which_amount_was_meant(
    larger: tuple[Refund, dict[str, Any]],
    approver: User,
    second: User,
    django_assert_num_queries: Any,
) -> None:
    case, there = larger
    mark = '<span class="tag">あなたは判定済み</span>'
    for person in (approver, second):
        assert mark not in sign_in(person).get("/approvals/").content.decode()
    with CaptureQueriesContext(connection) as asked:
        sign_in(second).get("/approvals/")
    queries = len(asked)

    decide(case, approver, there["id"])

    assert mark in sign_in(approver).get("/approvals/").content.decode()
    with django_assert_num_queries(queries):
        assert mark not in sign_in(second).get("/approvals/").content.decode()
    meant = r'<strong>返金済み <b class="num">¥1,300</b></strong>'
    assert re.search(meant, sign_in(second).get(page(case)).content.decode())
    assert re.search(meant, sign_in(second).get(f"/refunds/{case.pk}/").content.decode())


def test_mark_of_who_judged_goes_with_the_round(
    larger: tuple[Refund, dict[str, Any]], approver: User
) -> None:
    case, there = larger
    decide(case, approver, there["id"])
    Refund.objects.filter(pk=case.pk).update(reviews=case.reviews + 1)

    assert "あなたは判定済み" not in sign_in(approver).get("/approvals/").content.decode()
