"""Everything that moves money; nothing else writes Refund. Read it in this order:

- states: the states of a refund, how it is locked, the small steps that every change is made of
- control: whether anything may be sent at all: the switch, the restore fence, the circuit breaker
- observing: what Smartpay shows of a refund, whoever looked
- absence: what it means when Smartpay shows nothing of a refund, and when that proves that it was not executed
- sending: a turn is taken, committed before the first byte leaves, and its answer booked
- requesting: a person asks; the row is committed with the intent to send it, and sent in the same web request
- approving: another person approves what waits
- reviewing: what contradicts is decided by two people

The life of a refund: refund_payment() commits its row with the intent to send it, sends it and books the answer, in the
web request that asks for it; where it has to wait first, or stays open, take_turn() does the next thing, in the web
request that approves it or in a worker; observe_refund() books what Smartpay shows of it, whoever looked. Nothing talks
to Smartpay inside a transaction, and nothing changes a state outside one.
"""

from refunds.services.absence import needs_full_scan, scan_if_needed
from refunds.services.approving import approve, expire_requests, expired_before, reject
from refunds.services.control import set_sends, smartpay_is_silent, watch
from refunds.services.errors import (
    AboveDailyLimit,
    AboveMaximum,
    AmountTooHigh,
    BalanceMoved,
    NoReason,
    NotProved,
    NotReconciled,
    NotWaiting,
    RefundError,
    RefundUnsettled,
    RequestReused,
    SimilarRefund,
    SimilarUnexplained,
)
from refunds.services.observing import observe_refund, read_order, read_payment
from refunds.services.requesting import (
    Approval,
    Preview,
    RefundRequest,
    Similar,
    find_request,
    needs_approval,
    preview_refund,
    refund_payment,
    refunded_today,
    request_refund,
    similar_refunds,
    too_high,
    was_recorded,
    withdraw,
)
from refunds.services.reviewing import Candidate, Case, decide_case, look_again, review_case
from refunds.services.sending import due, settle_due, take_turn

__all__ = [
    "AboveDailyLimit",
    "AboveMaximum",
    "AmountTooHigh",
    "Approval",
    "BalanceMoved",
    "Candidate",
    "Case",
    "NoReason",
    "NotProved",
    "NotReconciled",
    "NotWaiting",
    "Preview",
    "RefundError",
    "RefundRequest",
    "RefundUnsettled",
    "RequestReused",
    "Similar",
    "SimilarRefund",
    "SimilarUnexplained",
    "approve",
    "decide_case",
    "due",
    "expire_requests",
    "expired_before",
    "find_request",
    "look_again",
    "needs_approval",
    "needs_full_scan",
    "observe_refund",
    "preview_refund",
    "read_order",
    "read_payment",
    "refund_payment",
    "refunded_today",
    "reject",
    "request_refund",
    "review_case",
    "scan_if_needed",
    "set_sends",
    "settle_due",
    "similar_refunds",
    "smartpay_is_silent",
    "take_turn",
    "too_high",
    "was_recorded",
    "watch",
    "withdraw",
]
