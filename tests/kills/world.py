"""The whole product with processes that can be killed: the sandbox Smartpay, web, workers, and who restarts them.

What is asked of the ledger here is asked in SQL and of the sandbox: nothing of the product is imported.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import requests

import tests.environment  # noqa: F401  the settings of all tests, where pytest has not loaded them
from scripts.embedded import signing_secret
from scripts.postgres import free_port
from tests.kills.databases import Database
from tests.kills.people import Person
from tests.sandbox import ROOT, Sandbox

QUICK = {  # leases and calls as short as two busy cores allow; a lease outlasts two calls
    "SMARTPAY_DEADLINE": "1.9",
    "SMARTPAY_READ_TIMEOUT": "1.9",
    "SMARTPAY_CONNECT_TIMEOUT": "1",
    "REFUND_LEASE_SECONDS": "4",
    "REFUND_BACKOFF_SECONDS": "0.2",
}
OPEN = ("queued", "sending", "unknown", "review", "awaiting_approval")
FOUNDING = """
import json, sys, time
from django.contrib.auth.models import Group
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from dashboard.models import User
call_command("migrate", verbosity=0)
call_command("collectstatic", interactive=False, verbosity=0)
call_command("sync_orders", stdout=sys.stderr)
sessions, now = [], time.time()
for number in range(%d):
    user = User.objects.create(username=f"operator-{number}", issuer="https://idp.example", subject=f"operator-{number}")
    user.groups.set([Group.objects.get(name="operator")])
    session = SessionStore()
    session.update({
        "_auth_user_id": str(user.pk), "_auth_user_backend": "dashboard.sso.StrictOIDCBackend",
        "_auth_user_hash": user.get_session_auth_hash(), "auth_time": now,
        "signed_in_at": now, "seen_at": now, "oidc_id_token_expiration": now + 86400,
    })
    session.create()
    sessions.append(session.session_key)
print(json.dumps(sessions))
"""


NOTICED = "SELECT 1 FROM refunds_control WHERE restored_at IS NOT NULL"
AGED = (
    "from datetime import timedelta; from django.db.models import F; from refunds.models import Control; "
    "Control.objects.update(restored_at=F('restored_at') - timedelta(minutes=45))"
)


class Death(NamedTuple):
    """at: seconds since 1970. `role` is "web" or "worker"."""

    refund: uuid.UUID
    role: str
    point: str
    at: float


@dataclass
class Tally:
    """What the ledger and Smartpay disagree about; everything 0 but the first two, or the product is wrong."""

    kills: int = 0
    refunds: int = 0
    twice: int = 0
    lost: int = 0
    wrong: int = 0
    stuck: int = 0
    untold: int = 0
    slowest_recovery: float = 0
    faults: list[str] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, about: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.faults.append(f"{what}: {about}")

    @property
    def right(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        return (
            f"kills={self.kills} refunds={self.refunds} twice={self.twice} lost={self.lost} wrong={self.wrong} "
            f"stuck={self.stuck} untold={self.untold} slowest_recovery={self.slowest_recovery:.1f}"
        )

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            kills=self.kills + other.kills,
            refunds=self.refunds + other.refunds,
            twice=self.twice + other.twice,
            lost=self.lost + other.lost,
            wrong=self.wrong + other.wrong,
            stuck=self.stuck + other.stuck,
            untold=self.untold + other.untold,
            slowest_recovery=max(self.slowest_recovery, other.slowest_recovery),
            faults=self.faults + other.faults,
            deaths=self.deaths + other.deaths,
            states=self.states + other.states,
        )


class World:
    def __init__(
        self,
        home: Path,
        database: Database,
        *,
        workers: int = 2,
        people: int = 6,
        web: Sequence[str] = ("--workers", "2", "--threads", "8"),
        settings: dict[str, str] = QUICK,
    ) -> None:
        self.home, self.database = home, database
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        secret = signing_secret()
        self.sandbox = Sandbox("--webhook", f"{self.url}/webhooks/smartpay/", "--webhook-secret", secret)
        self.sandbox.switch(webhook_copies=0)
        self.deaths_dir = home / "deaths"
        for name in ("armed", "died"):
            (self.deaths_dir / name).mkdir(parents=True)
        self.environment = {
            **os.environ,
            "DATABASE_URL": database.url,
            "STATE_DIR": str(home / "state"),
            "STATIC_ROOT": str(home / "static"),
            "SMARTPAY_API_URL": self.sandbox.url,
            "SMARTPAY_SECRET_KEY": self.sandbox.secret_key,
            "SMARTPAY_WEBHOOK_SECRETS": secret,
            "DEATHS": str(self.deaths_dir),
            "LOG_LEVEL": "INFO",
            **settings,
        }
        serve = [
            "web", "--bind", f"127.0.0.1:{port}", "--no-control-socket", "--preload", "--worker-class", "gthread",
            "--log-level", "warning", "--graceful-timeout", "40", *web,
        ]  # fmt: skip
        self._commands = {"web": serve} | {f"worker-{number}": ["worker"] for number in range(workers)}
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self._lock = threading.RLock()
        self._told: set[str] = set()  # who was told to end, and is not started again
        self._closing = threading.Event()
        self.ended_by_themselves: list[str] = []
        self.killed_from_outside = 0
        self._lock_payments = threading.Lock()
        self._free: list[dict[str, Any]] = []
        try:
            told = self.manage("shell", "-v", "0", "-c", FOUNDING % people).splitlines()[-1]
            self.people = [Person(self.url, session) for session in json.loads(told)]
            self._free = self.sandbox.find_all("refundable", limit=200, min_amount=3000)
            self._supervisor = threading.Thread(target=self._supervise, daemon=True)
            self._supervisor.start()
            self.wait_until_up()
        except BaseException:
            self.close()
            raise

    # --- Processes ------------------------------------------------------------------------------------------

    def manage(self, *arguments: str, check: bool = True) -> str:
        """One command of manage.py; what it prints, errors included where they are expected."""
        command = [sys.executable, "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, check=False, capture_output=True, text=True
        )
        if check and done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout if check else done.stdout + done.stderr

    def _supervise(self) -> None:
        """Start what is not running, as systemd or a container platform does; the only thread that starts anything,
        since the processes end with it."""
        while not self._closing.wait(0.05):
            with self._lock:
                for name in self._commands:
                    process = self._processes.get(name)
                    if process is not None and process.poll() is None:
                        continue
                    if (
                        process is not None
                        and name not in self._told
                        and process.returncode != -signal.SIGKILL
                    ):
                        said = self.log(name)[-2000:]
                        self.ended_by_themselves.append(f"{name}: {process.returncode}, having said {said}")
                    if name not in self._told and not self._closing.is_set():
                        self._start(name)
        with self._lock:
            for process in self._processes.values():
                self._kill(process)

    def _start(self, name: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.kills.dying", *self._commands[name]],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kill(self, process: subprocess.Popen[Any]) -> None:
        if process.poll() is None:
            os.killpg(
                process.pid, signal.SIGKILL
            )  # a group of its own: gunicorn's workers go with their master
            process.wait(30)

    def names(self, role: str = "") -> list[str]:
        return [name for name in self._commands if name.startswith(role)]

    def kill(self, name: str) -> None:
        """SIGKILL from outside, at no point in particular: a worker, or the whole web server."""
        with self._lock:
            process = self._processes.get(name)
            if process is None or process.poll() is not None:
                return
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if name.startswith("worker") and children.exists():
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            else:
                self._kill(process)
            self.killed_from_outside += 1

    def stop(
        self, role: str = "", by: signal.Signals = signal.SIGTERM, patience: float = 60
    ) -> dict[str, int]:
        """Tell processes to end, and do not start them again; what they ended with."""
        with self._lock:
            named = {name: self._processes[name] for name in self.names(role)}
            self._told |= named.keys()
            for process in named.values():
                process.send_signal(by)
        return {name: process.wait(patience) for name, process in named.items()}

    def start(self, role: str = "") -> None:
        with self._lock:
            named = self._told & set(self.names(role))
            begun = {name: self._begun(name) for name in named if name != "web"}
            for name in named:
                self._told.remove(name)
                del self._processes[name]
        self.wait_until_up()
        self.until(lambda: all(self._begun(name) > before for name, before in begun.items()), "workers begin")

    def _begun(self, name: str) -> int:
        return self.log(name).count("worker.started")

    def wait_until_up(self) -> None:
        if "web" in self._told:
            return
        self.until(self._is_up, "the site is up", patience=60)

    def _is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def log(self, role: str) -> str:
        return "".join(file.read_text() for file in sorted(self.home.glob(f"{role}*.log")))

    def close(self) -> None:
        self._closing.set()
        if hasattr(self, "_supervisor"):
            self._supervisor.join(60)
        self.sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- Deaths ---------------------------------------------------------------------------------------------

    def arm(self, refund_id: uuid.UUID, plan: Sequence[str]) -> None:
        """Have processes die at points of this refund's life: "web attempt.begun", "worker refund.read"."""
        for step in plan:
            (self.deaths_dir / "armed" / f"{refund_id} {step}").touch()

    def disarm(self, refund_id: uuid.UUID) -> None:
        """Forget the points that were not reached."""
        for file in (self.deaths_dir / "armed").glob(f"{refund_id} *"):
            file.unlink(missing_ok=True)

    def deaths(self) -> list[Death]:
        found = []
        for file in (self.deaths_dir / "died").iterdir():
            refund, role, point = file.name.split(" ")
            found.append(Death(uuid.UUID(refund), role, point, file.stat().st_mtime))
        return found

    @property
    def kills(self) -> int:
        return len(self.deaths()) + self.killed_from_outside

    # --- People ---------------------------------------------------------------------------------------------

    @contextmanager
    def payment(self) -> Iterator[dict[str, Any]]:
        """An order of one payment with something left, for one person at a time: {order, payments: [{id}]}."""
        with self._lock_payments:
            order = self._free.pop(0)
        try:
            yield order
        finally:
            with self._lock_payments:
                self._free.append(order)

    def together(self, work: Callable[[Person], None], people: Sequence[Person] | None = None) -> None:
        """Everybody does it at once; the first error is raised after all have ended."""
        errors: list[BaseException] = []

        def run(person: Person) -> None:
            try:
                work(person)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=run, args=(person,))
            for person in (self.people if people is None else people)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    # --- The ledger and Smartpay ----------------------------------------------------------------------------

    def refund(self, refund_id: uuid.UUID) -> dict[str, Any]:
        """The ledger's row; {} for none."""
        found = self.database.rows("SELECT * FROM refunds_refund WHERE id = %s", refund_id)
        return found[0] if found else {}

    def is_settled(self, refund_id: uuid.UUID) -> bool:
        return self.refund(refund_id).get("state", "queued") not in OPEN

    def until(self, true: Callable[[], Any], what: str, patience: float = 90) -> None:
        ends = time.monotonic() + patience
        while not true():
            if time.monotonic() > ends:
                raise TimeoutError(what)
            time.sleep(0.15)

    def until_settled(self, refund_id: uuid.UUID, patience: float = 90) -> None:
        self.until(lambda: self.is_settled(refund_id), f"{refund_id}: {self.refund(refund_id)}", patience)

    def pass_three_quarters(self) -> None:
        """As though the restore had been noticed so long ago that what was sent before can be seen by now."""
        self.until(lambda: self.database.rows(NOTICED), "the restore is noticed")
        self.manage("shell", "-v", "0", "-c", AGED)

    def at_smartpay(self) -> list[dict[str, Any]]:
        """All refunds that there are, as Smartpay shows them."""
        found: list[dict[str, Any]] = []
        token = ""
        while True:
            query = {"maxResults": "100"} | ({"pageToken": token} if token else {})
            page = self.sandbox.api("GET", "/refunds", params=query).json()
            found += page["data"]
            token = page.get("nextPageToken") or ""
            if not token:
                return found

    def tally(self, asked: Sequence[uuid.UUID]) -> Tally:
        """Hold the ledger against Smartpay. `asked`: the refunds that people were told about."""
        deaths = self.deaths()
        ledger = {
            uuid.UUID(str(row["id"])): row for row in self.database.rows("SELECT * FROM refunds_refund")
        }
        tally = Tally(kills=self.kills, refunds=len(ledger))
        tally.deaths = Counter(f"{death.role} {death.point}" for death in deaths)
        tally.deaths["from outside"] = self.killed_from_outside
        tally.states = Counter(row["state"] for row in ledger.values())
        done: dict[uuid.UUID, list[dict[str, Any]]] = {refund_id: [] for refund_id in ledger}
        elsewhere: Counter[str] = Counter()
        for seen in self.at_smartpay():
            claim = (seen.get("metadata") or {}).get("refund_dashboard_id")
            if seen["status"] == "failed":
                continue
            if claim is None:
                elsewhere[seen["payment"]] += seen["amount"]
            elif uuid.UUID(claim) not in ledger:
                tally.add("lost", f"{seen['id']} of {claim} is not in the ledger")
            else:
                done[uuid.UUID(claim)].append(seen)
        for refund_id in set(asked) - ledger.keys():
            tally.add("lost", f"{refund_id} was asked for and is not in the ledger")
        for refund_id, row in ledger.items():
            self._judge(tally, refund_id, row, done[refund_id])
        for payment in self.database.rows("SELECT * FROM refunds_payment"):
            ours = sum(
                row["amount"]
                for row in ledger.values()
                if row["payment_id"] == payment["id"] and row["state"] == "succeeded"
            )
            sums = (payment["refunded"], payment["external"], payment["reserved"])
            if sums != (ours, elsewhere[payment["id"]], 0) or sum(sums) > payment["captured"]:
                tally.add("wrong", f"{payment['id']}: {sums}, not {(ours, elsewhere[payment['id']], 0)}")
        self._judge_attempts(tally)
        self._judge_alarms(tally)
        return tally

    def _judge(
        self, tally: Tally, refund_id: uuid.UUID, row: dict[str, Any], done: list[dict[str, Any]]
    ) -> None:
        state = row["state"]
        if len(done) > 1:
            tally.add("twice", f"{refund_id}: {[seen['id'] for seen in done]}")
        elif state in OPEN:
            tally.add("stuck", f"{refund_id}: {state}")
        elif (state == "succeeded") != bool(done):
            tally.add("lost" if done else "wrong", f"{refund_id}: {state}, and at Smartpay {done}")
        elif done and (row["smartpay_id"], row["amount"], row["payment_id"]) != (
            done[0]["id"],
            done[0]["amount"],
            done[0]["payment"],
        ):
            tally.add("wrong", f"{refund_id}: {row}, and at Smartpay {done}")

    def _judge_attempts(self, tally: Tally) -> None:
        """Every request that Smartpay saw was committed before as an attempt; no two of a refund overlap."""
        attempts: dict[uuid.UUID, list[dict[str, Any]]] = {}
        for attempt in self.database.rows("SELECT * FROM refunds_attempt ORDER BY refund_id, number"):
            attempts.setdefault(uuid.UUID(str(attempt["refund_id"])), []).append(attempt)
        for refund_id, made in attempts.items():
            for before, after in itertools.pairwise(made):
                if before["finished_at"] and str(before["finished_at"]) > str(after["started_at"]):
                    tally.add("wrong", f"{refund_id}: two attempts at once")
        sent = Counter(
            uuid.UUID(seen["headers"]["idempotency-key"])
            for seen in self.sandbox.requests("POST", "/v1/refunds")
        )
        recovered = {
            uuid.UUID(str(row["id"]))
            for row in self.database.rows("SELECT id FROM refunds_refund WHERE recovered")
        }
        for refund_id, times in sent.items():
            if times > len(attempts.get(refund_id, [])) and refund_id not in recovered:
                tally.add(
                    "wrong", f"{refund_id}: {times} requests, {len(attempts.get(refund_id, []))} attempts"
                )

    def _judge_alarms(self, tally: Tally) -> None:
        """What no death may bring about, told by the product's own log."""
        for line in self.log("").splitlines():
            if any(word in line for word in ("refund.two_executions", "refund.executed_unasked")):
                tally.add("wrong", line[:300])
        for ended in self.ended_by_themselves:
            tally.add("wrong", f"ended by itself: {ended}")


class Faults:
    """Smartpay misbehaves now and then; never so often that sending would be given up as hopeless."""

    MODES = (
        {"mode": "silent"},
        {"mode": "silent", "executed": False},
        {"mode": "error", "executed": False},
        {"mode": "error"},
        {"mode": "reset"},
        {"mode": "truncated"},
        {"mode": "held"},
        {"mode": "doubled"},
        {"mode": "slow", "seconds": 1.0},
        {"mode": "html"},
        {"mode": "status_failed"},
    )

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world, self._rng = world, rng
        self._lock = threading.Lock()
        self._late: list[threading.Timer] = []

    def maybe(self) -> None:
        """One fault at the next request, one time in three."""
        world = self._world
        with self._lock:
            if self._rng.random() > 1 / 3 or world.sandbox.overview()["faults"]:
                return
            # Five silences in a row would have the product wait a minute (its circuit breaker): other tests' subject.
            last = world.database.rows(
                "SELECT outcome FROM refunds_attempt WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 2"
            )
            if any(row["outcome"] in ("AMBIGUOUS", "NOT_SENT") for row in last):
                return
            mode = self._rng.choice(self.MODES)
            world.sandbox.fault(**mode)
            if mode["mode"] == "held":
                # It arrives much later than anybody waited for it.
                self._late.append(threading.Timer(self._rng.uniform(0.5, 4), world.sandbox.release))
                self._late[-1].start()

    def end(self) -> None:
        """What was held back has arrived; nothing more comes."""
        self._world.sandbox.clear_faults()
        for timer in self._late:
            timer.join()
