"""The mirror (orders.py, reading.py), the ledger (ledger.py, bulk.py), the trail (trail.py), the worker (jobs.py).

What these models promise, the database enforces: constraints here, triggers in migrations 0002, 0006 and 0009.
"""

from refunds.models.bulk import Bulk, BulkLine
from refunds.models.jobs import Difference, JobRun, Reconciliation
from refunds.models.ledger import Attempt, Control, Evidence, Notice, Refund, RefundQuerySet, ReviewDecision
from refunds.models.orders import Fragment, Order, Payment
from refunds.models.reading import SmartpayRefund, SyncCursor, WebhookEvent
from refunds.models.trail import AuditEntry, SavedSearch, Search, opaque_id

__all__ = [
    "Attempt",
    "AuditEntry",
    "Bulk",
    "BulkLine",
    "Control",
    "Difference",
    "Evidence",
    "Fragment",
    "JobRun",
    "Notice",
    "Order",
    "Payment",
    "Reconciliation",
    "Refund",
    "RefundQuerySet",
    "ReviewDecision",
    "SavedSearch",
    "Search",
    "SmartpayRefund",
    "SyncCursor",
    "WebhookEvent",
    "opaque_id",
]
