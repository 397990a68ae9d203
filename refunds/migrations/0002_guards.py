"""What the database refuses, whoever asks: the rules of money and of the trail, alike on SQLite and PostgreSQL.

Each guard is a trigger with a portable condition; where it holds, the statement fails with the guard's words
(IntegrityError in Django). The counters are moved by triggers as well, and nothing else can move them.
"""

from collections.abc import Iterable

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

REFUND, PAYMENT, ORDER = "refunds_refund", "refunds_payment", "refunds_order"
ATTEMPT, EVIDENCE, AUDIT = "refunds_attempt", "refunds_evidence", "refunds_auditentry"
DECISION, SEEN = "refunds_reviewdecision", "refunds_smartpayrefund"
BULK, LINE = "refunds_bulk", "refunds_bulkline"

KEPT = (REFUND, ATTEMPT, EVIDENCE, DECISION, BULK, LINE, AUDIT)
RESERVING = "('awaiting_approval', 'queued', 'sending', 'unknown', 'review')"

TRANSITIONS = (
    "awaiting_approval>queued",
    "awaiting_approval>cancelled",
    "awaiting_approval>review",
    "queued>sending",
    "queued>cancelled",
    "queued>review",
    "sending>succeeded",
    "sending>rejected",
    "sending>unknown",
    "sending>review",
    "unknown>sending",
    "unknown>succeeded",
    "unknown>rejected",
    "unknown>not_executed",
    "unknown>review",
    "review>succeeded",
    "review>not_executed",
    "rejected>review",
    "not_executed>review",
)

BULK_TRANSITIONS = (
    "checking>checked",
    "checked>awaiting_approval",
    "checked>running",
    "awaiting_approval>running",
    "awaiting_approval>rejected",
    "running>paused",
    "paused>running",
    "running>done",
    *(f"{state}>cancelled" for state in ("checking", "checked", "awaiting_approval", "running", "paused")),
)


def changed(*columns: str) -> str:
    return " OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in columns)


RESERVED = (
    f"(SELECT COALESCE(SUM(amount), 0) FROM {REFUND} WHERE payment_id = {{row}} AND state IN {RESERVING})"
)
REFUNDED = (
    f"(SELECT COALESCE(SUM(amount), 0) FROM {REFUND} WHERE payment_id = {{row}} AND state = 'succeeded')"
)
# Of the ledger's rows, not of the counters: PostgreSQL moves those only after the last row of a statement.
LEFT = (
    f"(SELECT captured - external - {REFUNDED.format(row='NEW.payment_id')} "
    f"- {RESERVED.format(row='NEW.payment_id')} FROM {PAYMENT} WHERE id = NEW.payment_id)"
)
ORDER_SUM = f"(SELECT COALESCE(SUM({{what}}), 0) FROM {PAYMENT} WHERE order_id = {{row}})"
# How many people say so of the case that the refund is now; the last word of each.
SAY = (
    f"(SELECT COUNT(DISTINCT person_id) FROM {DECISION} AS word WHERE refund_id = NEW.id AND round = NEW.reviews "
    f"AND {{so}} AND NOT EXISTS (SELECT 1 FROM {DECISION} AS later WHERE later.refund_id = NEW.id "
    "AND later.round = NEW.reviews AND later.person_id = word.person_id AND later.id > word.id))"
)

CHECKING = f"EXISTS (SELECT 1 FROM {BULK} WHERE id = NEW.bulk_id AND state = 'checking')"
OF_A_FILE = f"EXISTS (SELECT 1 FROM {LINE} WHERE request_id = NEW.id) AND "

MOVED = changed("key", "captured", "refunded", "reserved")

# (table, event, condition that is refused, words)
GUARDS = (
    # The ledger: how a refund begins.
    (
        REFUND,
        "INSERT",
        "NOT NEW.recovered AND (NEW.state NOT IN ('awaiting_approval', 'queued') OR NEW.attempt_no <> 0 "
        "OR NEW.first_sent_at IS NOT NULL OR NEW.last_sent_at IS NOT NULL OR NEW.smartpay_id IS NOT NULL "
        "OR NEW.settled_at IS NOT NULL OR NEW.reviews <> 0)",
        "a refund begins unsent",
    ),
    (
        REFUND,
        "INSERT",
        "NEW.recovered AND (NEW.state <> 'succeeded' OR NEW.attempt_no <> 0 OR NEW.first_sent_at IS NOT NULL "
        "OR NEW.last_sent_at IS NOT NULL OR NEW.settled_at IS NULL OR NEW.reviews <> 0 OR NOT EXISTS "
        f"(SELECT 1 FROM {SEEN} WHERE id = NEW.smartpay_id AND payment_id = NEW.payment_id "
        "AND amount = NEW.amount AND currency = NEW.currency AND status <> 'failed' AND ours_id IS NULL))",
        "a recovered refund is one that Smartpay shows",
    ),
    (
        REFUND,
        "INSERT",
        f"NEW.currency IS DISTINCT FROM (SELECT currency FROM {PAYMENT} WHERE id = NEW.payment_id)",
        "a refund has the currency of its payment",
    ),
    (
        REFUND,
        "INSERT",
        "NOT NEW.recovered AND NEW.decided_by_id IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM {LINE} AS line JOIN {BULK} AS bulk ON bulk.id = line.bulk_id WHERE line.request_id = NEW.id "
        "AND line.payment_id = NEW.payment_id AND line.amount = NEW.amount AND bulk.state = 'running' "
        "AND bulk.uploaded_by_id = NEW.requested_by_id AND bulk.decided_by_id = NEW.decided_by_id)",
        "only a line of an approved file begins decided",
    ),
    (
        REFUND,
        "INSERT",
        f"{OF_A_FILE}NOT NEW.recovered AND NOT EXISTS (SELECT 1 FROM {LINE} AS line "
        f"JOIN {BULK} AS bulk ON bulk.id = line.bulk_id WHERE line.request_id = NEW.id AND bulk.state = 'running' "
        "AND bulk.uploaded_by_id = NEW.requested_by_id)",
        "a line is refunded while its file is running",
    ),
    # SQLite would keep half a yen, or a word, in a column of integers.
    (REFUND, "INSERT", "NEW.amount <> CAST(NEW.amount AS bigint)", "an amount is a whole number"),
    (REFUND, "INSERT", f"NOT NEW.recovered AND NEW.amount > {LEFT}", "more than is left of the payment"),
    # The ledger: what never changes, and what changes once.
    (
        REFUND,
        "UPDATE",
        changed(
            "id",
            "payment_id",
            "amount",
            "currency",
            "reason",
            "description",
            "memo",
            "similar_reason",
            "refundable_before",
            "external_before",
            "body",
            "requested_by_id",
            "requested_at",
            "recovered",
        ),
        "the request of a refund never changes",
    ),
    (
        REFUND,
        "UPDATE",
        " OR ".join(
            f"(OLD.{column} IS NOT NULL AND {changed(column)})"
            for column in ("first_sent_at", "decided_by_id", "decided_at")
        ),
        "first_sent_at and the decision are written once",
    ),
    (
        REFUND,
        "UPDATE",
        f"OLD.smartpay_id IS NOT NULL AND {changed('smartpay_id')} "
        "AND NOT (OLD.state = 'review' AND NEW.state = 'succeeded' AND NEW.smartpay_id IS NOT NULL AND "
        + SAY.format(so="verdict = 'succeeded' AND smartpay_id = NEW.smartpay_id")
        + " >= 2)",
        "smartpay_id is written once, unless people decide which of two it is",
    ),
    (
        REFUND,
        "UPDATE",
        "NEW.attempt_no < OLD.attempt_no OR NEW.last_sent_at < OLD.last_sent_at "
        "OR (OLD.last_sent_at IS NOT NULL AND NEW.last_sent_at IS NULL)",
        "attempts only go up",
    ),
    (
        REFUND,
        "UPDATE",
        "NEW.attempt_no > OLD.attempt_no AND (NEW.state <> 'sending' OR NEW.last_sent_at IS NULL OR {window_over})",
        "the send window is over",
    ),
    (
        REFUND,
        "UPDATE",
        "OLD.state <> 'sending' AND NEW.state = 'sending' AND NEW.attempt_no = OLD.attempt_no",
        "every sending is a further attempt",
    ),
    (
        REFUND,
        "UPDATE",
        "OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN "
        + "("
        + ", ".join(f"'{transition}'" for transition in TRANSITIONS)
        + ")",
        "no such change of state",
    ),
    (
        REFUND,
        "UPDATE",
        "OLD.state <> 'rejected' AND NEW.state = 'rejected' AND NEW.smartpay_id IS NULL AND (NEW.attempt_no <> 1 "
        f"OR NOT EXISTS (SELECT 1 FROM {ATTEMPT} WHERE refund_id = NEW.id AND outcome = 'REFUSED'))",
        "Smartpay refuses the first attempt, or shows the refund as failed",
    ),
    (
        REFUND,
        "UPDATE",
        "OLD.state = 'unknown' AND NEW.state = 'not_executed' AND NEW.absent_since IS NULL",
        "absence is seen before it is proved",
    ),
    (
        REFUND,
        "UPDATE",
        "OLD.state = 'awaiting_approval' AND NEW.state = 'queued' AND NEW.decided_by_id IS NULL",
        "somebody approves",
    ),
    (
        REFUND,
        "UPDATE",
        "OLD.state = 'review' AND NEW.state = 'not_executed' AND "
        + SAY.format(so="verdict = 'not_executed'")
        + " < 2",
        "two people decide that nothing was executed",
    ),
    (
        REFUND,
        "UPDATE",
        "NEW.reviews < OLD.reviews OR (OLD.state <> 'review' AND NEW.state = 'review' AND NEW.reviews = OLD.reviews)",
        "rounds of review only go up, and every case is a further one",
    ),
    (REFUND, "DELETE", "TRUE", "refunds are never deleted"),
    # The account: only the triggers below move the counters.
    (PAYMENT, "INSERT", "NEW.reserved <> 0 OR NEW.refunded <> 0", "counters begin at 0"),
    (
        PAYMENT,
        "UPDATE",
        f"NEW.reserved <> {RESERVED.format(row='NEW.id')} OR NEW.refunded <> {REFUNDED.format(row='NEW.id')}",
        "counters are the sums of the ledger",
    ),
    (PAYMENT, "UPDATE", changed("id", "order_id", "currency"), "a payment stays the payment of its order"),
    (ORDER, "INSERT", "NEW.captured <> 0 OR NEW.refunded <> 0 OR NEW.reserved <> 0", "sums begin at 0"),
    (
        ORDER,
        "UPDATE",
        f"({MOVED}) "
        f"AND (NEW.captured <> {ORDER_SUM.format(what='captured', row='NEW.key')} "
        f"OR NEW.refunded <> {ORDER_SUM.format(what='refunded + external', row='NEW.key')} "
        f"OR NEW.reserved <> {ORDER_SUM.format(what='reserved', row='NEW.key')})",
        "the sums of an order are those of its payments",
    ),
    # Attempts and evidence.
    (
        ATTEMPT,
        "UPDATE",
        f"OLD.finished_at IS NOT NULL OR {changed('id', 'refund_id', 'number', 'started_at')}",
        "an attempt is finished once",
    ),
    (ATTEMPT, "DELETE", "TRUE", "attempts are never deleted"),
    (EVIDENCE, "UPDATE", "TRUE", "evidence never changes"),
    (EVIDENCE, "DELETE", "TRUE", "evidence is never deleted"),
    # What people decide about a case.
    (
        DECISION,
        "INSERT",
        f"NOT EXISTS (SELECT 1 FROM {REFUND} WHERE id = NEW.refund_id AND state = 'review' "
        "AND reviews = NEW.round AND requested_by_id <> NEW.person_id)",
        "a case is decided while it is one, and never by who asked for the refund",
    ),
    (DECISION, "UPDATE", "TRUE", "a decision never changes"),
    (DECISION, "DELETE", "TRUE", "a decision is never deleted"),
    # Files of refunds: what was looked at, and decided, is what happens.
    (
        BULK,
        "INSERT",
        "NEW.state <> 'checking' OR NEW.decided_by_id IS NOT NULL OR NEW.total IS NOT NULL",
        "a file begins unchecked and undecided",
    ),
    (
        BULK,
        "UPDATE",
        "OLD.state = 'awaiting_approval' AND NEW.state IN ('running', 'rejected') AND NEW.decided_by_id IS NULL",
        "somebody decides about a file",
    ),
    (
        BULK,
        "UPDATE",
        changed("id", "digest", "lines_count", "uploaded_by_id", "uploaded_at")
        + " OR (OLD.state NOT IN ('checking', 'checked') AND ("
        + changed("total", "similar_reason", "started_at")
        + ")) OR (OLD.decided_by_id IS NOT NULL AND ("
        + changed("decided_by_id", "decided_at", "decision_note")
        + "))",
        "a file of refunds never changes",
    ),
    (
        BULK,
        "UPDATE",
        "OLD.state <> NEW.state AND OLD.state || '>' || NEW.state NOT IN ("
        + ", ".join(f"'{transition}'" for transition in BULK_TRANSITIONS)
        + ")",
        "no such change of a file",
    ),
    (BULK, "DELETE", "TRUE", "files of refunds are never deleted"),
    (
        LINE,
        "INSERT",
        f"NEW.state <> 'unchecked' OR NOT {CHECKING} "
        # In two: each is the end of an index, however many lines there are already.
        f"OR EXISTS (SELECT 1 FROM {LINE} WHERE bulk_id = NEW.bulk_id AND state < 'unchecked') "
        f"OR EXISTS (SELECT 1 FROM {LINE} WHERE bulk_id = NEW.bulk_id AND state > 'unchecked')",
        "a line comes with its file",
    ),
    (
        LINE,
        "UPDATE",
        f"OLD.state <> NEW.state AND NEW.state IN ('similar', 'problem') AND NOT {CHECKING}",
        "a line is judged while its file is checked",
    ),
    (
        LINE,
        "UPDATE",
        changed("id", "bulk_id", "number", "request_id")
        + " OR (OLD.state NOT IN ('unchecked', 'problem') AND ("
        + changed("payment_id", "amount", "refundable", "description", "reason", "is_similar")
        + ")) OR (OLD.state <> NEW.state AND OLD.state NOT IN ('unchecked', 'ready', 'similar'))",
        "a line never changes",
    ),
    (LINE, "DELETE", "TRUE", "lines are never deleted"),
    # The trail.
    (AUDIT, "INSERT", "NEW.seal IS NOT NULL OR NEW.previous_seal IS NOT NULL", "entries begin unsealed"),
    (
        AUDIT,
        "UPDATE",
        "OLD.seal IS NOT NULL OR NEW.seal IS NULL OR NEW.previous_seal IS NULL OR "
        + changed(
            "id",
            "at",
            "actor_id",
            "roles",
            "action",
            "outcome",
            "object_type",
            "object_id",
            "order_id",
            "ip",
            "session",
            "request_id",
            "text",
        )
        + " OR CAST(OLD.data AS text) <> CAST(NEW.data AS text)",
        "an entry is sealed once and never changes",
    ),
    (AUDIT, "DELETE", "TRUE", "the trail is never deleted"),
    # SQLite's INSERT OR REPLACE deletes without a word to the triggers above.
    *(
        (
            table,
            "INSERT",
            f"EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)",
            "what is kept is never replaced",
        )
        for table in KEPT
    ),
)

MOVE_COUNTERS = (
    f"UPDATE {PAYMENT} SET reserved = {RESERVED.format(row='NEW.payment_id')}, "
    f"refunded = {REFUNDED.format(row='NEW.payment_id')} WHERE id = NEW.payment_id;"
)
SUM_ORDER = (
    f"UPDATE {ORDER} SET captured = {ORDER_SUM.format(what='captured', row='NEW.order_id')}, "
    f"refunded = {ORDER_SUM.format(what='refunded + external', row='NEW.order_id')}, "
    f"reserved = {ORDER_SUM.format(what='reserved', row='NEW.order_id')} WHERE key = NEW.order_id;"
)
# A reading of Smartpay that brings nothing new moves no sum.
SUMMED = changed("captured", "refunded", "external", "reserved")
# (table, event, when, what follows, what is locked first on PostgreSQL so that the sums are made of committed rows)
FOLLOWERS = (
    (
        REFUND,
        "INSERT",
        "TRUE",
        MOVE_COUNTERS,
        f"PERFORM 1 FROM {PAYMENT} WHERE id = NEW.payment_id FOR UPDATE;",
    ),
    (
        REFUND,
        "UPDATE",
        "TRUE",
        MOVE_COUNTERS,
        f"PERFORM 1 FROM {PAYMENT} WHERE id = NEW.payment_id FOR UPDATE;",
    ),
    (PAYMENT, "INSERT", "TRUE", SUM_ORDER, f"PERFORM 1 FROM {ORDER} WHERE key = NEW.order_id FOR UPDATE;"),
    (PAYMENT, "UPDATE", SUMMED, SUM_ORDER, f"PERFORM 1 FROM {ORDER} WHERE key = NEW.order_id FOR UPDATE;"),
)


def names(rules: Iterable[tuple[str, ...]], word: str) -> list[str]:
    return [f"{rule[0]}_{word}_{number}" for number, rule in enumerate(rules, start=1)]


FUNCTIONS = (*names(GUARDS, "guard"), *names(FOLLOWERS, "follow"), "refunds_never_emptied")


def install_sqlite() -> Iterable[str]:
    # Days are floating-point numbers: only the rounded milliseconds can be compared.
    over = "ROUND((julianday(NEW.last_sent_at) - julianday(NEW.first_sent_at)) * 86400000) >= 18000000"
    for name, (table, event, condition, words) in zip(names(GUARDS, "guard"), GUARDS, strict=True):
        yield (
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW "
            f"WHEN {condition.format(window_over=over)} BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )
    for name, (table, event, when, then, _lock) in zip(names(FOLLOWERS, "follow"), FOLLOWERS, strict=True):
        yield f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW WHEN {when} BEGIN {then} END"


OVER = "NEW.last_sent_at >= NEW.first_sent_at + interval '5 hours'"


def triggers_postgresql() -> Iterable[str]:
    """Have the guards called, each only where the columns of its own row do not say yet that nothing is refused.

    To call a function takes PostgreSQL longer than to write a row. A trigger itself can ask no table.
    """
    for name, (table, event, condition, _words) in zip(names(GUARDS, "guard"), GUARDS, strict=True):
        if "SELECT" not in condition:
            when = condition.format(window_over=OVER)
        else:
            when = MOVED if condition.startswith(f"({MOVED})") else "TRUE"
        yield (
            f"CREATE OR REPLACE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW "
            f"WHEN ({when}) EXECUTE FUNCTION {name}()"
        )


# Note [What a function of the database finds]
# Whoever may make a temporary table could make one called refunds_payment, and it would be found before ours. So each
# function is told where to look: in the schema of the tables, and only then among what is temporary.
#
# Those that move the counters run as the owner of the tables: the application's own role may not touch the counters
# (see grants.py). All others run as whoever asks. Nobody may call them: a trigger asks nobody.


def install_postgresql(schema: str) -> Iterable[str]:
    """`schema`: of the tables, quoted."""
    look_in = f"SET search_path = {schema}, pg_temp"  # See Note [What a function of the database finds].
    for name, (_table, event, condition, words) in zip(names(GUARDS, "guard"), GUARDS, strict=True):
        lock = ""
        if condition.endswith(LEFT):
            # Two requests for the last yen of a payment meet at this lock, also where the application took none.
            lock = f"PERFORM 1 FROM {PAYMENT} WHERE id = NEW.payment_id FOR UPDATE;"
        elif condition.startswith(OF_A_FILE):
            # And here a line meets who stops its file: one of them sees what the other did.
            lines = f"SELECT bulk_id FROM {LINE} WHERE request_id = NEW.id"
            lock = f"PERFORM 1 FROM {BULK} WHERE id IN ({lines}) FOR SHARE;"
        row = "OLD" if event == "DELETE" else "NEW"
        yield (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql {look_in} AS $$ BEGIN {lock} "
            f"IF {condition.format(window_over=OVER)} THEN "
            f"RAISE EXCEPTION '{words}' USING ERRCODE = 'check_violation'; END IF; RETURN {row}; END $$"
        )
    yield from triggers_postgresql()
    for name, (table, event, when, then, lock) in zip(names(FOLLOWERS, "follow"), FOLLOWERS, strict=True):
        yield (
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {look_in} "
            f"AS $$ BEGIN {lock} {then} RETURN NULL; END $$"
        )
        yield f"CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {name}()"
    yield (
        f"CREATE FUNCTION refunds_never_emptied() RETURNS trigger LANGUAGE plpgsql {look_in} AS $$ BEGIN "
        "RAISE EXCEPTION 'never emptied' USING ERRCODE = 'check_violation'; END $$"
    )
    for table in KEPT:
        yield (
            f"CREATE TRIGGER {table}_never_emptied BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refunds_never_emptied()"
        )
    for name in FUNCTIONS:
        yield f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC"


def remove_sqlite() -> Iterable[str]:
    for name in names(GUARDS, "guard") + names(FOLLOWERS, "follow"):
        yield f"DROP TRIGGER {name}"


def remove_postgresql() -> Iterable[str]:
    for name in FUNCTIONS:
        yield f"DROP FUNCTION {name}() CASCADE"


def install(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for statement in _install(schema_editor):
        schema_editor.execute(statement, params=None)


def _install(schema_editor: BaseDatabaseSchemaEditor) -> Iterable[str]:
    if schema_editor.connection.vendor != "postgresql":
        return install_sqlite()
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        return install_postgresql(cursor.fetchone()[0])


def remove(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    vendor = schema_editor.connection.vendor
    for statement in remove_postgresql() if vendor == "postgresql" else remove_sqlite():
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("refunds", "0001_initial")]

    operations = [
        migrations.RunPython(install, remove),
    ]
