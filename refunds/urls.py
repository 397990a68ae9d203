"""The addresses of the screens. Others rely on them, so none is renamed."""

from django.urls import path

from refunds import webhooks
from refunds.views import (
    approvals,
    bulk,
    exports,
    orders,
    reconciliation,
    refund_form,
    refunds,
    reviews,
    sending_switch,
    start,
)

app_name = "refunds"
urlpatterns = [
    path("", start.start, name="start"),
    path("orders/", orders.order_list, name="order_list"),
    path("orders/search/", orders.order_search, name="order_search"),
    path("orders/saved/", orders.saved_searches, name="saved_searches"),
    path("orders/export/", exports.order_export, name="order_export"),
    path("orders/<str:order_id>/", orders.order_detail, name="order"),
    path("orders/<str:order_id>/refund/", refund_form.refund_form, name="refund_form"),
    path("refunds/", refunds.refund_list, name="refund_list"),
    path("refunds/export/", exports.refund_export, name="refund_export"),
    path("refunds/<uuid:refund_id>/", refunds.refund_detail, name="refund"),
    path("refunds/<uuid:refund_id>/withdraw/", refunds.refund_withdraw, name="refund_withdraw"),
    path("refunds/<uuid:refund_id>/decide/", approvals.refund_decide, name="refund_decide"),
    path("refunds/<uuid:refund_id>/review/", reviews.refund_review, name="refund_review"),
    path("refunds/sends/", sending_switch.set_sending, name="sends"),
    path("approvals/", approvals.approvals, name="approvals"),
    path("bulk/", bulk.bulk_list, name="bulk_list"),
    path("bulk/template/", bulk.bulk_template, name="bulk_template"),
    path("bulk/<uuid:bulk_id>/", bulk.bulk_detail, name="bulk"),
    path("bulk/<uuid:bulk_id>/result/", bulk.bulk_result, name="bulk_result"),
    path("reconciliation/", reconciliation.reconciliation_list, name="reconciliation_list"),
    path("reconciliation/<str:day>/", reconciliation.reconciliation_detail, name="reconciliation"),
    path("webhooks/smartpay/", webhooks.receive, name="webhook"),
]
