"""The shopper's side of Smartpay, as far as official tests use it to bring orders about.

No part of the merchant's contract: its host and path are UNKNOWN, so it lies beside /v1.
"""

import re
import secrets

from .api import Answer, Fields, Request, compact, refused, unauthorized
from .model import Refusal, Smartpay

_APPROVED = "pm_test_visaApproved"  # the one payment method seen in official tests; any other is rejected


class Consumer:
    def __init__(self, smartpay: Smartpay) -> None:
        self._smartpay = smartpay
        self._tokens: set[str] = set()

    def handle(self, request: Request) -> Answer | None:
        """Answer a shopper's request; None if it is none."""
        try:
            return self._route(request)
        except Refusal as refusal:
            return refused(refusal)

    def _route(self, request: Request) -> Answer | None:
        place = request.method, request.path
        if place == ("POST", "/consumers/auth/login"):
            body = Fields(request.body)
            body.needed("emailAddress"), body.needed("password")
            token = secrets.token_hex(16)
            self._tokens.add(token)
            return _ok({"accessToken": token})
        order = re.fullmatch(r"POST /orders/(order_(test|live)_\w+)/authorizations", " ".join(place))
        token_path = re.fullmatch(r"PUT /tokens/(paytok_(test|live)_\w+)/approve", " ".join(place))
        match = order or token_path
        if match is None:
            return None
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self._tokens:
            return unauthorized()
        id, smartpay = match[1], self._smartpay
        account = smartpay.accounts[match[2]]
        with smartpay.changing():
            if order:
                approved = Fields(request.body).needed("paymentMethod") == _APPROVED
                changed = smartpay.authorize(account, smartpay.get(account, "order", id), approved=approved)
            else:
                token_object = smartpay.get(account, "token", id)
                if token_object["status"] != "requires_authorization":
                    raise Refusal(409, "token.invalid", f"The token is {token_object['status']}")
                changed = smartpay.update(account, "token", token_object, status="active")
                smartpay.emit(account, "token.approved", changed)
            return _ok(smartpay.show(account, changed))


def _ok(value: dict[str, object]) -> Answer:
    return Answer(200, compact(value), {"Content-Type": "application/json; charset=utf-8"})
