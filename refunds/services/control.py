"""Decide whether anything may be sent at all: the switch, the restore fence, the circuit breaker. Reads go on."""

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
BREAKS_AFTER = 5  # attempts in a row without a clear answer
PROBE_EVERY = timedelta(minutes=1)  # after that, one attempt a minute tests whether Smartpay answers again
SILENT = (Attempt.Outcome.AMBIGUOUS, Attempt.Outcome.NOT_SENT)


def why_nothing_is_sent(now: datetime) -> str:
    """Return why no refund may be sent now, for the log; "" if one may.

    Called inside the transaction that begins an attempt.
    """
    # Read the file first. What it says was committed before, so the database can only be further on.
    mark = _mark()
    control = Control.current()
    if not control.sends_enabled:
        return "sending is stopped"
    if _raise_fence_if_behind(control, mark):
        return "the database was restored"
    if smartpay_is_silent() and Attempt.objects.filter(started_at__gt=now - PROBE_EVERY).exists():
        return "Smartpay does not answer"
    return ""


def react_to_error(answer: smartpay.SmartpayError, refund: Refund) -> None:
    """Stop sending if Smartpay refuses the API key; raise an alarm if it accepts no request, or no longer answers."""
    if isinstance(answer, smartpay.Unauthorized) and Control.sends_are_on():
        set_sends(enabled=False, reason="", cause=Control.Cause.KEY_REFUSED)
    if isinstance(answer, smartpay.NotAccepted):
        alarm("smartpay.not_accepted", refund, http_status=answer.http_status)
    if answer.outcome in SILENT and smartpay_is_silent():
        alarm("smartpay.silent", refund)


def smartpay_is_silent() -> bool:
    """Return whether the circuit breaker is open: the last BREAKS_AFTER attempts all had no clear answer."""
    answered = Attempt.objects.filter(finished_at__isnull=False).order_by("-pk")
    outcomes = answered.values_list("outcome", flat=True)[:BREAKS_AFTER]
    return len(outcomes) == BREAKS_AFTER and all(outcome in SILENT for outcome in outcomes)


# --- The switch ---------------------------------------------------------------------------------------------


def set_sends(
    *, enabled: bool, reason: str, by: User | None = None, cause: Control.Cause = Control.Cause.PERSON
) -> None:
    """Stop or resume all sending, with a reason; reading and settling go on either way.

    Resuming also lifts the restore fence, once all of Smartpay's refunds have been read since it rose.

    Args:
        by: None for the machine, or for the management command.
        cause: what the machine noticed; `reason` is "" then.

    Raises: PermissionDenied, NotReconciled.
    """
    if by is not None:
        roles.require(by, roles.APPROVE_REFUND)
    if enabled:
        with transaction.atomic():
            _notice_restore()  # no worker may have looked since the restore
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
        # After the commit: a process that has locked a refund may be waiting for the lock on the switch.
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
# A database that was restored, or a standby that took over without the last commits, has forgotten refunds that were
# sent. This shows in two ways. PostgreSQL's cluster or timeline is another one. Or the newest attempt is older than the
# one in a file outside the database (STATE_DIR): every sender writes its attempt down there before the request leaves.
# Sending then stops until all of Smartpay's refunds have been read and a person resumes it. That read counts only if it
# begins late enough to show the last refund that may have been sent and forgotten: see Note [Proof of absence]. The
# database and the file both keep the moment at which a person accepted a restore; a later restore differs in it.


class Mark(NamedTuple):
    """The newest state of the ledger that this machine has seen: the last accepted restore and the newest attempt."""

    restore_accepted_at: str = ""  # in ISO 8601, UTC; "" for never
    attempt: int = 0


def watch() -> None:
    """Raise the fence if the database was restored, else remember how far the ledger is. Workers call it each round."""
    with transaction.atomic(durable=True):
        _notice_restore()
    if Control.objects.filter(restored_at__isnull=False).exists():
        return
    _cluster, newest = _ledger()
    remember(newest)


def remember(attempt: int) -> None:
    """Write down outside the database that this attempt was committed. Called before its request leaves."""
    mark = Mark(_accepted(), attempt)
    with state_file.locked(FILE):
        if mark > _mark():
            state_file.replace(FILE, json.dumps(mark))


def _notice_restore() -> None:
    """Raise the fence, in the caller's transaction, if the ledger is older than was seen."""
    mark = _mark()  # first: see why_nothing_is_sent()
    _raise_fence_if_behind(Control.current(), mark)


def _raise_fence_if_behind(control: Control, mark: Mark) -> bool:
    """Raise the fence, in the caller's transaction, if the ledger is older than the mark; return whether it is up.

    The mark must have been read before the row of the switch.
    """
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
    """Return what the file says. A file that can't be read raises, so that nothing is sent while nobody can tell."""
    try:
        return Mark(*json.loads(state_file.path(FILE).read_text()))
    except FileNotFoundError:
        return Mark()


def _accepted() -> str:
    return _iso(Control.objects.values_list("restore_accepted_at", flat=True).first())


def _iso(moment: datetime | None) -> str:
    return moment.isoformat(timespec="microseconds") if moment else ""


# In SQL, so that one statement tells both. SQLite has neither clusters nor timelines.
LEDGER = {
    "sqlite": "SELECT '', COALESCE(MAX(id), 0) FROM refunds_attempt",
    "postgresql": "SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), "
    "(SELECT COALESCE(MAX(id), 0) FROM refunds_attempt) FROM pg_control_system()",
}


def _ledger() -> tuple[str, int]:
    """Return PostgreSQL's cluster and timeline ("" on SQLite), and the newest attempt's id (0 if there is none)."""
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
