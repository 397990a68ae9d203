"""Everything that moves money; nothing else writes Refund. Read it in this order:

- states: the states of a refund, how it is locked, and the small steps that every change consists of
- control: whether anything may be sent at all: the switch, the restore fence, the circuit breaker
- observing: books what Smartpay shows of a refund, no matter who read it
- absence: decides what it means that Smartpay does not show a refund, and when that proves it was not executed
- sending: takes a turn, commits the intent before the first byte leaves, and books the answer
- requesting: commits a person's refund with the intent to send it, and sends it in the same web request
- approving: has a second person approve or reject a refund that waits for that
- reviewing: has two people decide a refund about which Smartpay contradicts the ledger

The life of a refund: in the web request that asks for it, refund_payment() commits its row with the intent to send it,
sends it and books the answer. If the refund has to wait first, or its outcome stays open, take_turn() does the next
step, in the web request that approves it or in a worker. observe_refund() books what Smartpay shows of it. Nothing
talks to Smartpay inside a transaction, and nothing changes a state outside one.
"""

from refunds.services.absence import needs_full_scan, scan_if_needed
from refunds.services.approving import approve, expire_requests, reject
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
