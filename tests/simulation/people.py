"""What people do in a shop, and what the world does to it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied

from dashboard.models import User
from refunds import services, smartpay
from refunds.models import Payment, Refund
from tests.simulation.network import Client
from tests.simulation.rules import NOT_MADE
from tests.simulation.shop import Shop, Visit
from tests.simulation.weather import HOUR, LARGEST_CLOCK_ERROR, LONGEST_LAG, LONGEST_OUTAGE, MINUTE

OPERATORS, APPROVERS = ("operator-1", "operator-2"), ("approver-1", "approver-2")
REASONS = ("requested_by_customer", "fraudulent")


def person(name: str) -> User:
    """Who is signed in, read anew in every visit."""
    return User.objects.get(username=name)


@dataclass
class Form:
    """A form as it was drawn: sent twice, it is the same request."""

    request: services.RefundRequest
    refundable: int
    similar_reason: str = ""


class Person:
    """Somebody with refunds to make, one after the other. Each is a decision, to be carried out once: they insist,
    but never ask anew while it may have been made."""

    def __init__(self, shop: Shop, number: int, *, name: str, payment: str, ends: float) -> None:
        self.shop, self.number, self.name, self.payment, self.ends = shop, number, name, payment, ends
        self.random: Random = shop.random_for(f"person {number}")
        self.impatience = self.random.choice((0.0, 0.3, 0.9))
        self.wanted = 0

    def live(self) -> None:
        for _ in range(self.random.choice((1, 1, 2, 4))):
            captured = self.shop.captured[self.payment]
            self.wanted = self.random.choice((1, captured // 5 or 1, captured // 2 or 1, captured))
            self._have_it_made()
            self.number += 100
            self._wait(self.random.choice((10, 10 * MINUTE, 2 * HOUR)))

    def _have_it_made(self) -> None:
        """Ask, and ask anew whenever told for certain that nothing was made."""
        for _ in range(6):
            form = self._draw_form()
            if form is None or not self._ask(form) or not self._follow(form):
                return
            self._wait(self.random.choice((10, 5 * MINUTE, 2 * HOUR)))

    def _wait(self, seconds: float) -> None:
        self.shop.scheduler.pause(self.random.uniform(0, 2 * seconds))

    @property
    def _has_time(self) -> bool:
        return self.shop.scheduler.now < self.ends

    def _visit(self, name: str, do: Callable[[Client], Any]) -> Visit:
        return self.shop.visit(f"{name} ({self.name}, decision {self.number})", do)

    def _draw_form(self) -> Form | None:
        """Open the payment's page until it shows something to refund."""
        reads = self.random.random() < 0.5
        for _ in range(6):
            if not self._has_time:
                break
            seen = self.shop.wait_for(self._visit("looks", lambda client: self._look(client, reads=reads)))
            if seen.value:
                amount = min(self.wanted, seen.value)
                request = services.RefundRequest(
                    uuid.uuid4(), self.payment, amount, self.random.choice(REASONS)
                )
                return Form(request, seen.value)
            self._wait(20 * MINUTE)
        return None

    def _look(self, client: Client, *, reads: bool) -> int:
        if reads:
            order_id, quick = self.shop.orders[self.payment], client.within(settings.SMARTPAY_VIEW_DEADLINE)
            with suppress(smartpay.SmartpayError):  # the page shows what the mirror has
                services.read_order(order_id, client=quick)
        return Payment.objects.get(pk=self.payment).refundable()

    def _ask(self, form: Form) -> bool:
        """Send the form until the site says what became of it; return whether there is a refund to follow."""
        request_id = form.request.request_id.hex
        self.shop.rules.intents[request_id] = self.number
        while self._has_time:
            self._wait(5)
            visits = [self._send(form)]
            while self.random.random() < self.impatience and len(visits) < 4:
                self._wait(self.random.choice((0.05, 3, 40)))
                visits.append(self._send(form))
            for visit in visits:
                self.shop.wait_for(visit)
            if any(visit.value for visit in visits) or request_id in self.shop.rules.rows:
                return True
            match visits[0].error:
                case services.SimilarRefund():
                    form.similar_reason = "another one"
                case services.AmountTooHigh() | services.BalanceMoved():
                    return self._ask_again_with_what_is_left(form)
                case services.RefundUnsettled():
                    self._wait(30 * MINUTE)
                case services.RefundError():
                    return False
                case None:
                    self._wait(self.random.choice((1, MINUTE, 20 * MINUTE)))  # no answer: the same form again
                case PermissionDenied():
                    return False
                case _:
                    self._wait(MINUTE)
        return False

    def _ask_again_with_what_is_left(self, form: Form) -> bool:
        new = self._draw_form() if self.random.random() < 0.7 else None
        if new is None:
            return False
        form.request, form.refundable = new.request, new.refundable
        return self._ask(form)

    def _send(self, form: Form) -> Visit:
        request, refundable, reason = form.request, form.refundable, form.similar_reason
        if self.random.random() < 0.03:
            request = replace(request, amount=request.amount + 1)  # the form was tampered with

        def send(client: Client) -> bool:
            refund = services.refund_payment(
                request, refundable=refundable, by=person(self.name), similar_reason=reason, client=client
            )
            self.shop.tell(f"is told: {refund.pk.hex} {refund.state}")
            self.shop.rules.was_told(refund)
            return True

        return self._visit(f"asks for {request.amount}", send)

    def _follow(self, form: Form) -> bool:
        """Watch the refund; return whether it is certain that nothing was made, and it is wanted still."""
        withdraws_after = (
            self.random.choice((0.5, 60, HOUR, 8 * HOUR)) if self.random.random() < 0.3 else None
        )
        row_id = form.request.request_id.hex
        began = self.shop.scheduler.now
        while self._has_time:
            row = self.shop.rules.rows.get(row_id)
            if row is None or row.state == "succeeded":
                return False
            if row.state in NOT_MADE:
                return self.random.random() < 0.8
            if withdraws_after is not None and self.shop.scheduler.now - began >= withdraws_after:
                withdraws_after = None
                self.shop.wait_for(self._visit("withdraws", lambda client: self._withdraw(form)))
                continue
            self._wait(withdraws_after or self.random.choice((MINUTE, 20 * MINUTE)))
        return False

    def _withdraw(self, form: Form) -> None:
        refund = services.withdraw(form.request.request_id, by=person(self.name))
        self.shop.rules.was_told(refund)


class Approver:
    """Decides about what waits for a second person: mostly yes, sometimes twice, sometimes about their own."""

    def __init__(self, shop: Shop, name: str, *, ends: float) -> None:
        self.shop, self.name, self.ends = shop, name, ends
        self.random = shop.random_for(name)

    def live(self) -> None:
        while self.shop.scheduler.now < self.ends:
            self.shop.scheduler.pause(
                self.random.uniform(0, self.random.choice((5 * MINUTE, HOUR, 4 * HOUR)))
            )
            waiting = [row.id for row in self.shop.rules.rows.values() if row.state == "awaiting_approval"]
            for row_id in waiting:
                visits = [self._decide(uuid.UUID(row_id)) for _ in range(self.random.choice((1, 1, 2)))]
                for visit in visits:
                    self.shop.wait_for(visit)

    def _decide(self, refund_id: uuid.UUID) -> Visit:
        agrees = self.random.random() < 0.8

        def decide(client: Client) -> None:
            if agrees:
                refund = services.approve(refund_id, by=person(self.name), client=client)
            else:
                refund = services.reject(refund_id, by=person(self.name), note="no")
            self.shop.rules.was_told(refund)

        return self.shop.visit(f"{'approves' if agrees else 'rejects'} {refund_id} ({self.name})", decide)


class Judge:
    """Decides cases with another, by what Smartpay shows: a refund that names the row is it, and no other."""

    def __init__(self, shop: Shop, name: str) -> None:
        self.shop, self.name = shop, name
        self.random = shop.random_for(f"judge {name}")

    def live(self) -> None:
        while True:
            self.shop.scheduler.pause(self.random.uniform(0, self.random.choice((HOUR, 3 * HOUR))))
            for row in list(self.shop.rules.rows.values()):
                if row.state == "review":
                    self.shop.wait_for(
                        self.shop.visit(f"judges {row.id} ({self.name})", partial(self._judge, row.id))
                    )

    def _judge(self, row_id: str, client: Client) -> None:
        refund_id = uuid.UUID(row_id)
        complete_at = services.look_again(refund_id, client=client)
        case = services.review_case(Refund.objects.get(pk=refund_id), complete_at=complete_at)
        it = [candidate for candidate in case.candidates if candidate.is_named and not candidate.why_not]
        if not it and case.why_not_absent:
            return
        refund = services.decide_case(
            refund_id,
            verdict="succeeded" if it else "not_executed",
            smartpay_id=it[0].mirrored.pk if it else "",
            note="by what Smartpay shows",
            by=person(self.name),
            client=client,
            at_round=case.refund.reviews,
        )
        self.shop.count("judged", refund.state)
        self.shop.rules.was_told(refund)


class Fortune:
    """What befalls the shop from outside, until the world heals."""

    def __init__(self, shop: Shop, *, ends: float) -> None:
        self.shop, self.ends = shop, ends
        self.random = shop.random_for("fortune")
        deeds = {
            "clock": self._step_clock,
            "smartpay": self._smartpay_is_out,
            "ours": self._we_are_out,
            "key": self._rotate_key,
            "lag": self._change_lag,
            "list": self._change_list,
            "elsewhere": self._refund_elsewhere,
            "role": self._change_role,
            "switch": self._stop_sends,
        }
        self.deeds = self.random.sample(list(deeds.values()), self.random.choice((0, 1, 3, 5, len(deeds))))
        self.pace = self.random.choice((5 * MINUTE, 30 * MINUTE, 2 * HOUR))

    def live(self) -> None:
        while self.shop.scheduler.now < self.ends:
            self.shop.weather = self.shop.climate.weather(self.random)
            for _ in range(self.random.choice((1, 2, 4))):
                self._wait(self.pace)
                if self.deeds and self.shop.scheduler.now < self.ends:
                    self.random.choice(self.deeds)()

    def _wait(self, seconds: float) -> None:
        """But never past the end."""
        left = max(0.0, self.ends - self.shop.scheduler.now)
        self.shop.scheduler.pause(min(left, self.random.uniform(0, 2 * seconds)))

    def _befalls(self, what: str) -> None:
        self.shop.tell(what)
        self.shop.count("fault", what.split(":", maxsplit=1)[0])

    def _outage(self) -> None:
        began = self.shop.scheduler.now
        self._wait(self.random.choice((MINUTE, HOUR, LONGEST_OUTAGE / 2, LONGEST_OUTAGE / 2)))
        self.shop.outages.append((began, self.shop.scheduler.now))

    def _step_clock(self) -> None:
        self.shop.clock_error = (
            self.random.choice((0, 1, -1, self.random.uniform(-1, 1))) * LARGEST_CLOCK_ERROR
        )
        self._befalls(f"clock step: {self.shop.clock_error:+.0f} s")
        self.shop.ledger_changed()

    def _wait_for_the_worst_moment(self) -> None:
        """As often as not: when something is on its way."""
        if self.random.random() < 0.6:
            self.shop.wait_for_a_refund(max(0, min(self.ends - self.shop.scheduler.now, 2 * HOUR)))

    def _smartpay_is_out(self) -> None:
        self._wait_for_the_worst_moment()
        self.shop.network.down = self.random.choice(("no connection", "silent", "a proxy's page"))
        self._befalls(f"outage of Smartpay: {self.shop.network.down}")
        self._outage()
        self.shop.network.down = ""
        self._befalls("end of the outage")

    def _we_are_out(self) -> None:
        self._wait_for_the_worst_moment()
        self._befalls("outage of ours")
        self.shop.close()
        self._outage()
        self._befalls("end of our outage")
        self.shop.open()

    def _rotate_key(self) -> None:
        self._befalls("key rotated")
        self.shop.network.key_refused = True
        self._wait(20 * MINUTE)
        self.shop.network.key_refused = False
        self._wait(20 * MINUTE)
        self.resume_sends()

    def _stop_sends(self) -> None:
        self._befalls("sends stopped")
        self._switch(enabled=False)
        self._wait(30 * MINUTE)
        self.resume_sends()

    def resume_sends(self) -> None:
        self._befalls("sends resumed")
        self._switch(enabled=True)

    def _switch(self, *, enabled: bool) -> None:
        def switch(client: Client) -> bool:
            services.set_sends(enabled=enabled, reason="simulated")
            return True

        while not self.shop.wait_for(self.shop.visit("switches sending", switch)).value:
            self.shop.scheduler.pause(self.random.uniform(0, 10 * MINUTE))

    def _change_lag(self) -> None:
        lag = self.random.choice((0, 5, self.random.uniform(0, LONGEST_LAG), LONGEST_LAG))
        self.shop.smartpay.switches.read_lag_seconds = lag
        self._befalls(f"read lag: {lag:.0f} s")

    def _change_list(self) -> None:
        switches = self.shop.smartpay.switches
        switches.payments_list_refunds = not switches.payments_list_refunds
        self._befalls(f"payments list refunds: {switches.payments_list_refunds}")

    def _refund_elsewhere(self) -> None:
        """In Smartpay's own dashboard, whose people do not look into ours."""
        model, account = self.shop.smartpay, self.shop.account
        payment = account.objects[self.random.choice(list(self.shop.captured))]
        assert payment is not None
        left = model.refundable(account, payment)
        amount = min(left, self.random.choice((1, left // 2 or 1, payment["amount"] // 2 or 1, left)))
        if amount:
            self._befalls("refund elsewhere")
            with model.changing():
                model.refund(account, payment, amount, reason=REASONS[0], metadata={})

    def _change_role(self) -> None:
        """Somebody leaves, loses their role, or gets it back."""
        name = self.random.choice((*OPERATORS, *APPROVERS))
        what = self.random.choice(("leaves", "loses the role", "is back"))
        self._befalls(f"roles change: {name} {what}")

        def change(client: Client) -> None:
            user = person(name)
            user.is_active = what != "leaves"
            user.save()
            groups = Group.objects.filter(name=name.split("-")[0] if what != "loses the role" else "viewer")
            user.groups.set(list(groups))

        self.shop.wait_for(self.shop.visit(f"{name} {what}", change))
