"""What an operator can act on. Nothing was recorded as a refund and nothing was sent; str(error) tells them why."""

from refunds.models import Refund


class RefundError(Exception):
    """`field` is the field of the form that it belongs to, None for the whole form."""

    field: str | None = None


class AmountTooHigh(RefundError):
    field = "amount"


class AboveMaximum(AmountTooHigh):
    """More than REFUND_MAX_AMOUNT."""


class AboveDailyLimit(AmountTooHigh):
    """More than is left of REFUND_DAILY_LIMIT."""


class BalanceMoved(RefundError):
    """What is left is not what the confirmation showed."""


class RefundUnsettled(RefundError):
    """An earlier refund of this payment is not confirmed yet."""


class SimilarRefund(RefundError):
    """There was one like it that the person did not see when they gave their reason; it is asked for anew."""

    field = "similar_reason"


class SimilarUnexplained(SimilarRefund):
    """There was one like it, and no reason was given."""


class RequestReused(RefundError):
    """This request_id is another refund's already. `refund` is that one."""

    def __init__(self, message: str, refund: Refund) -> None:
        super().__init__(message)
        self.refund = refund


class NotWaiting(RefundError):
    """It can't be withdrawn or decided any more: it was sent, or somebody decided."""


class NoReason(RefundError):
    """Who turns a refund down, or decides a case, says why."""

    field = "note"


class NotProved(RefundError):
    """What was decided about a case is not, or not yet, what Smartpay shows."""


class NotReconciled(RefundError):
    """The database was restored, and Smartpay's refunds have not been read in full since."""
