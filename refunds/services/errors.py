"""Errors that a person can act on: nothing was recorded as a refund, nothing was sent, and str(error) tells why."""

from refunds.models import Refund


class RefundError(Exception):
    """`field` is the form's field that the error belongs to; None for the whole form."""

    field: str | None = None


class AmountTooHigh(RefundError):
    field = "amount"


class AboveMaximum(AmountTooHigh):
    """More than REFUND_MAX_AMOUNT."""


class AboveDailyLimit(AmountTooHigh):
    """More than is left of REFUND_DAILY_LIMIT."""


class BalanceMoved(RefundError):
    """The remaining balance is not what the confirmation showed."""


class RefundUnsettled(RefundError):
    """The outcome of an earlier refund of this payment is not known yet."""


class SimilarRefund(RefundError):
    """There is a similar refund that the person did not see when they gave their reason; they have to confirm again."""

    field = "similar_reason"


class SimilarUnexplained(SimilarRefund):
    """There is a similar refund, and no reason was given."""


class RequestReused(RefundError):
    """Another refund already has this request_id; `refund` is that one."""

    def __init__(self, message: str, refund: Refund) -> None:
        super().__init__(message)
        self.refund = refund


class NotWaiting(RefundError):
    """The refund can't be withdrawn or decided any more: it was sent, or somebody decided it."""


class NoReason(RefundError):
    """A refund was rejected, or a case decided, without a reason."""

    field = "note"


class NotProved(RefundError):
    """Smartpay does not, or not yet, show what the person decided about a case."""


class NotReconciled(RefundError):
    """The database was restored, and no complete read of Smartpay's refunds has followed yet."""
