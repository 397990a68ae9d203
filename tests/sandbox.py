"""A handle on the sandbox, Smartpay's API over real HTTP in a process of its own."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 30  # seconds; nothing here should take one


class Sandbox:
    """Starts a sandbox, or takes one that runs already; ends what it started when closed.

    url: base address with /v1, for SMARTPAY_API_URL
    secret_key: a test key that it takes
    control: address of the control door; on a port of its own, it answers even while the API refuses
    """

    def __init__(
        self, *arguments: str, orders: int = 300, seed: int = 1, port: int = 0, control: str | None = None
    ) -> None:
        """`arguments`: more of the command line, such as "--state", path. `control`: of a running one."""
        self._process: subprocess.Popen[str] | None = None
        self._http = requests.Session()
        self._http.trust_env = False  # neither ~/.netrc nor a proxy may touch what the tests send
        if control is not None:
            self.control = control
            self.url, self.secret_key = self.overview()["url"], self.overview()["secret_key"]
            return
        options = ["--port", str(port), "--orders", str(orders), "--seed", str(seed), *arguments]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "refunds.sandbox", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        announcement = self._process.stdout.readline()
        told = dict(word.split("=", 1) for word in announcement.split() if "=" in word)
        if "url" not in told:
            raise RuntimeError(f"the sandbox did not start: {announcement!r}")
        self.url, self.control, self.secret_key = told["url"], told["control"], told["secret_key"]

    def close(self) -> None:
        """End the process, as a crash would: nothing is written on the way out."""
        self._http.close()
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # Smartpay's API, bare

    def api(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> requests.Response:
        """One request, such as api("POST", "/refunds", json={…}, idempotency_key="k")."""
        headers = {"Authorization": f"Basic {key or self.secret_key}"} | options.pop("headers", {})
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        options.setdefault("timeout", TIMEOUT)
        return self._http.request(method, self.url + path, headers=headers, allow_redirects=False, **options)

    def refund(
        self,
        payment: str,
        amount: int | None = None,
        *,
        idempotency_key: str,
        timeout: float = TIMEOUT,
        **fields: Any,
    ) -> requests.Response:
        """POST /refunds with the fields every refund needs, and others."""
        body = {"payment": payment, "amount": amount, "currency": "JPY", "reason": "requested_by_customer"}
        return self.api(
            "POST", "/refunds", json=body | fields, idempotency_key=idempotency_key, timeout=timeout
        )

    # The control door

    def fault(
        self, mode: str, *, method: str | None = "POST", path: str = "/v1/refunds", **options: Any
    ) -> None:
        """Misbehave at the next request that matches: see MODES and Fault in refunds/sandbox/scenarios.py."""
        self._door("POST", "faults", json={"mode": mode, "method": method, "path": path, **options})

    def go_silent(self, *, executed: bool = True, **options: Any) -> None:
        """Take the next refund request and never answer it; executed or not."""
        self.fault("silent", executed=executed, **options)

    def clear_faults(self) -> None:
        """Behave again; connections kept silent end, refused ports listen."""
        self._door("DELETE", "faults")

    def switch(self, **switches: Any) -> dict[str, Any]:
        """Turn Smartpay's unknowns to one side or the other: see Switches in refunds/sandbox/model.py."""
        return self._door("POST", "switches", json=switches)

    def requests(self, method: str | None = None, path: str | None = None) -> list[dict[str, Any]]:
        """What came in, oldest first: method, path, query, headers, body, at (ms), connection (a number)."""
        found: list[dict[str, Any]] = self._door("GET", "requests", params={"method": method, "path": path})[
            "requests"
        ]
        return found

    def forget_requests(self) -> None:
        self._door("DELETE", "requests")

    def reset(self) -> None:
        """Back to the seeded world: no faults, no requests, clock and switches as at the start."""
        self._door("POST", "reset")

    def advance(self, seconds: float) -> None:
        """Move Smartpay's clock on."""
        self._door("POST", "clock", json={"advance": seconds})

    def now(self) -> int:
        """Smartpay's time, in ms since 1970."""
        return int(self._door("GET", "clock")["now"])

    def refund_elsewhere(self, payment: str, amount: int | None = None, **fields: Any) -> dict[str, Any]:
        """A refund made in Smartpay's own dashboard; no amount is all that is left."""
        return self._door("POST", "refunds", json={"payment": payment, "amount": amount, **fields})

    def set(self, id: str, **values: Any) -> dict[str, Any]:
        """Give an order, payment, refund or session other values, such as status="pending"."""
        return self._door("POST", "objects", json={"id": id, "values": values})

    def release(self) -> list[int]:
        """Let requests held by the fault "held" arrive now; the statuses of the answers nobody reads."""
        statuses: list[int] = self._door("POST", "held")["statuses"]
        return statuses

    def find(self, kind: str = "refundable", **wanted: Any) -> dict[str, Any]:
        """The newest order of a kind: order, status, amount, payments, session, customerInfo, reference.

        wanted: name, min_amount, max_amount, skip. Kinds are listed in refunds/sandbox/control.py.
        """
        found = self.find_all(kind, limit=1, **wanted)
        assert found, f"no order of kind {kind} with {wanted}"
        return found[0]

    def find_all(self, kind: str = "refundable", *, limit: int = 20, **wanted: Any) -> list[dict[str, Any]]:
        params = {"kind": kind, "limit": limit, **wanted}
        found: list[dict[str, Any]] = self._door("GET", "find", params=params)["orders"]
        return found

    def deliveries(self) -> list[dict[str, Any]]:
        """Webhook deliveries tried so far: endpoint, event, type, attempt, status (0: no answer), at."""
        tried: list[dict[str, Any]] = self._door("GET", "deliveries")["deliveries"]
        return tried

    def overview(self) -> dict[str, Any]:
        return self._door("GET", "")

    def _door(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._http.request(method, self.control + path, timeout=TIMEOUT, **options)
        if response.status_code != 200:
            raise ValueError(response.json()["message"])
        answer: dict[str, Any] = response.json()
        return answer
