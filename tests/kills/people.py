"""People at the dashboard: over HTTP, with a session, as insistent as people are when a page does not come."""

import html
import re
import time
import uuid
from collections.abc import Callable

import requests

HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')
PATIENCE = 120  # seconds until a person gives up


class Person:
    """One browser. `answers`: (status, seconds) of each final POST that was answered.

    `pressed`: of each refund whose last button was pressed, the status of the last answer to it; 0 while none came.
    """

    def __init__(self, url: str, session: str) -> None:
        self.url = url
        self.answers: list[tuple[int, float]] = []
        self.pressed: dict[uuid.UUID, int] = {}
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.cookies.set("session", session)

    def refund(
        self,
        order: str,
        payment: str,
        amount: int,
        *,
        before: Callable[[uuid.UUID], None] = lambda _: None,
        patience: float = PATIENCE,
    ) -> uuid.UUID:
        """Fill in the form, look at the confirmation, press the last button, until it is answered with a refund.

        `before` is given the refund's id before the button is pressed for the first time.
        """
        address, told = f"{self.url}/orders/{order}/refund/", False
        ends = time.monotonic() + patience
        page = self._get(address)
        while time.monotonic() < ends:
            if page.status_code == 200 and page.url == address:
                typed = hidden(page.text) | {
                    "payment": payment, "amount": str(amount), "reason": "requested_by_customer",
                    "description": "", "memo": "",
                }  # fmt: skip
                refund_id = uuid.UUID(typed["request_id"])
                shown = self._post(address, typed)
                if (
                    shown is not None
                    and shown.status_code == 200
                    and "signature" in (last := hidden(shown.text))
                ):
                    if not told:
                        before(refund_id)
                        told = True
                    answer = self._insist(address, last | {"confirm": "1"}, shown.text, ends)
                    if answer.status_code in (302, 303):  # 302: this very form had made its refund already
                        assert answer.headers["Location"] == f"/refunds/{refund_id}/", answer.headers[
                            "Location"
                        ]
                        return refund_id
            # Blocked by an earlier refund, the balance moved, Smartpay or the site away: a person looks again.
            time.sleep(0.2)
            page = self._get(address)
        raise TimeoutError(f"no refund of {payment} in {patience} s")

    def _insist(self, address: str, fields: dict[str, str], page: str, ends: float) -> requests.Response:
        """Press the last button; again, if the site dies meanwhile: the very same form, as a reload sends it."""
        if "similar_reason" in page:
            fields["similar_reason"] = "別の商品の返品"
        refund_id = uuid.UUID(fields["request_id"])
        while True:
            began = time.monotonic()
            self.pressed.setdefault(refund_id, 0)
            answer = self._post(address, fields)
            if answer is not None:
                self.pressed[refund_id] = answer.status_code
                self.answers.append((answer.status_code, time.monotonic() - began))
                if answer.status_code < 500 or time.monotonic() > ends:
                    return answer
            time.sleep(0.2)

    def look(self, address: str) -> str:
        """The page, as soon as the site is up."""
        while (page := self._get(address)).status_code >= 500:
            time.sleep(0.2)
        page.encoding = "utf-8"
        return page.text

    def upload(self, address: str, data: bytes) -> str:
        """Upload a file; the page that it leads to."""
        fields = {"csrfmiddlewaretoken": hidden(self.look(address))["csrfmiddlewaretoken"]}
        answer = self._http.post(
            address, fields, files={"file": ("refunds.csv", data)}, timeout=60, allow_redirects=False
        )
        return self.url + answer.headers["Location"]

    def act(self, page: str, fields: dict[str, str]) -> None:
        """Press a button of the page's form."""
        token = {"csrfmiddlewaretoken": hidden(self.look(page))["csrfmiddlewaretoken"]}
        answer = self._http.post(page, token | fields, timeout=60, allow_redirects=False)
        assert answer.status_code in (302, 303), answer.status_code

    def _get(self, address: str) -> requests.Response:
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                return self._http.get(address, timeout=30)
            except requests.RequestException:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)

    def _post(self, address: str, fields: dict[str, str]) -> requests.Response | None:
        """None: the site died with it."""
        try:
            return self._http.post(address, fields, timeout=60, allow_redirects=False)
        except requests.RequestException:
            return None


def hidden(page: str) -> dict[str, str]:
    """The fields that a page carries for the next one."""
    return {html.unescape(name): html.unescape(value) for name, value in HIDDEN.findall(page)}
