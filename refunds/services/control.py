"""Whether anything may be sent at all: the switch, the restore fence, the circuit breaker. Reading always goes on."""

import json
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from django.db import connection, transaction
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, roles, scanning, smartpay, state_file
from refunds.models import Attempt, Control, Refund
from refunds.services.errors import NotReconciled
from refunds.services.states import ABSENT_AFTER_LAST_SENDING, alarm, make_due
from refunds.wording import minute

log = structlog.get_logger(__name__)

FILE = "ledger-mark"  # See Note [The restore fence]
BREAKS_AFTER = 5  # sendings in a row without an answer
PROBE_EVERY = timedelta(minutes=1)  # one sending, then, to see whether Smartpay answers again
SILENT = (Attempt.Outcome.AMBIGUOUS, Attempt.Outcome.NOT_SENT)


def why_nothing_is_sent(now: datetime) -> str:
    """Why no refund may be sent at this moment, for the log; "" if it may. Inside the transaction of an attempt."""
    # The file first: what it tells was committed before, so that the database can only be further.
    mark = _mark()
    control = Control.current()
    if not control.sends_enabled:
        return "sending is stopped"
    if _is_behind(control, mark):
        return "the database was restored"
    if smartpay_is_silent() and Attempt.objects.filter(started_at__gt=now - PROBE_EVERY).exists():
        return "Smartpay does not answer"
    return ""


def react_to_error(answer: smartpay.SmartpayError, refund: Refund) -> None:
    """Raise the alarm where Smartpay did not take a request at all; stop sending where it refuses the key."""
    if isinstance(answer, smartpay.Unauthorized) and Control.sends_are_on():
        set_sends(enabled=False, reason="", cause=Control.Cause.KEY_REFUSED)
    if isinstance(answer, smartpay.NotAccepted):
        alarm("smartpay.not_accepted", refund, http_status=answer.http_status)
    if answer.outcome in SILENT and smartpay_is_silent():
        alarm("smartpay.silent", refund)


def smartpay_is_silent() -> bool:
    """The circuit breaker: whether the last sendings all went without an answer."""
    answered = Attempt.objects.filter(finished_at__isnull=False).order_by("-pk")
    outcomes = answered.values_list("outcome", flat=True)[:BREAKS_AFTER]
    return len(outcomes) == BREAKS_AFTER and all(outcome in SILENT for outcome in outcomes)


# --- The switch ---------------------------------------------------------------------------------------------


def set_sends(
    *, enabled: bool, reason: str, by: User | None = None, cause: Control.Cause = Control.Cause.PERSON
) -> None:
    """Stop or resume all sending, with a reason; reading and settling go on either way.

    Resuming also lifts the restore fence, once all of Smartpay's refunds have been read since it rose.

    `by`: None is the machine, or whoever types the command. `cause`: what the machine noticed; `reason` is "" then.

    Raises: PermissionDenied, NotReconciled.
    """
    if by is not None:
        roles.require(by, roles.APPROVE_REFUND)
    if enabled:
        with transaction.atomic():
            _notice_restore()  # nobody else may have looked since
    with transaction.atomic():
        control = _locked_control()
        now = clock.now()
        if enabled and control.restored_at:
            _check_reconciled(control.restored_at)
            control.restored_at, control.restore_accepted_at = None, now
            control.cluster, _newest = _ledger()
        before = control.sends_enabled
        control.sends_enabled, control.reason, control.cause = enabled, reason[:200], cause
        control.changed_at, control.changed_by = now, by
        control.save()
        audit.record(
            by,
            "sends.resumed" if enabled else "sends.stopped",
            None,
            **({"cause": cause} if cause else {"reason": control.reason}),
            sends_before=before,
        )
    if enabled:
        # After the commit: whoever holds a refund may be waiting for the switch.
        waiting = Refund.objects.filter(
            state__in=[Refund.State.QUEUED, Refund.State.UNKNOWN], lease_until=None, next_check_at__gt=now
        )
        for refund_id in waiting.values_list("pk", flat=True):
            make_due(refund_id)


def _locked_control() -> Control:
    Control.objects.bulk_create([Control()], ignore_conflicts=True)
    return Control.objects.select_for_update().get(one=True)


# --- The restore fence --------------------------------------------------------------------------------------

# Note [The restore fence]
# A database that was restored, or that took over without the last commits, has forgotten refunds that were sent. It
# shows in two ways: PostgreSQL's cluster or timeline is another one; or the newest attempt is older than one that a
# process has seen, which every sender writes down in a file outside the database (STATE_DIR) before its request
# leaves. Sending then stops until all of Smartpay's refunds were read, and a person resumes it. The reading that counts
# begins no sooner than what was sent last, and forgotten, is shown by it: see Note [Proof of absence]. A restore that a
# person accepted is told from a further one by its moment, which both the database and the file keep.


class Mark(NamedTuple):
    """The newest state of the ledger that this machine has seen: the last accepted restore, the newest attempt."""

    restore_accepted_at: str = ""  # in ISO 8601, UTC; "" for never
    attempt: int = 0


def watch() -> None:
    """Look whether the database was restored, and remember how far the ledger is. Called by workers every round."""
    with transaction.atomic(durable=True):
        _notice_restore()
    if Control.objects.filter(restored_at__isnull=False).exists():
        return
    _cluster, newest = _ledger()
    remember(newest)


def remember(attempt: int) -> None:
    """Write down, outside the database, that this attempt was committed. Before its request leaves."""
    mark = Mark(_accepted(), attempt)
    with state_file.locked(FILE):
        if mark > _mark():
            state_file.replace(FILE, json.dumps(mark))


def _notice_restore() -> bool:
    """Whether the fence is up; raises it, in the caller's transaction, where the ledger is older than was seen."""
    mark = _mark()  # first: see why_nothing_is_sent()
    return _is_behind(Control.current(), mark)


def _is_behind(control: Control, mark: Mark) -> bool:
    """_notice_restore() for what was read just now: first what the file says, then the row."""
    if control.restored_at:
        return True
    cluster, newest = _ledger()
    behind = Mark(_iso(control.restore_accepted_at), newest) < mark
    if behind or control.cluster not in ("", cluster):
        _raise_fence(newest, mark)
        return True
    if control.cluster != cluster:
        control = _locked_control()
        control.cluster = cluster
        control.save()
    return False


def _raise_fence(newest: int, mark: Mark) -> None:
    control = _locked_control()
    if control.restored_at:
        return  # another process noticed it at the same time
    control.restored_at = control.changed_at = clock.now()
    before, control.sends_enabled = control.sends_enabled, False
    control.cause, control.reason, control.changed_by = Control.Cause.RESTORED, "", None
    control.save()
    audit.record(
        None,
        "sends.stopped",
        None,
        cause=control.cause,
        attempt=newest,
        seen=mark.attempt,
        sends_before=before,
    )
    log.error("ledger.restored", alarm=True, attempt=newest, seen=mark.attempt)


def _mark() -> Mark:
    """What the file says. One that can't be read raises: nothing is sent by who can't tell."""
    try:
        return Mark(*json.loads(state_file.path(FILE).read_text()))
    except FileNotFoundError:
        return Mark()


def _accepted() -> str:
    return _iso(Control.objects.values_list("restore_accepted_at", flat=True).first())


def _iso(moment: datetime | None) -> str:
    return moment.isoformat(timespec="microseconds") if moment else ""


# In SQL: all that sending asks of the ledger as a whole, in one statement. SQLite has neither clusters nor timelines.
LEDGER = {
    "sqlite": "SELECT '', COALESCE(MAX(id), 0) FROM refunds_attempt",
    "postgresql": "SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), "
    "(SELECT COALESCE(MAX(id), 0) FROM refunds_attempt) FROM pg_control_system()",
}


def _ledger() -> tuple[str, int]:
    """Which PostgreSQL this is and which of its timelines, "" for none; and the newest attempt, 0 for none."""
    with connection.cursor() as cursor:
        cursor.execute(LEDGER[connection.vendor])
        cluster, newest = cursor.fetchone()
    return cluster, newest


def _check_reconciled(restored_at: datetime) -> None:
    scanned_at, seen_from = scanning.scanned_at(), restored_at + ABSENT_AFTER_LAST_SENDING
    if scanned_at is None or scanned_at < seen_from:
        raise NotReconciled(
            _(
                "データベースの復元の直前に送信された返金は、%(at)s より前の読み取りには表示されないことがあります。"
                "そのあとに始まる Smartpay の返金の読み取り(自動)が終わってから再開できます。"
            )
            % {"at": minute(seen_from)}
        )
