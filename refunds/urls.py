"""The addresses of the screens. Others rely on them: none is renamed."""

from django.urls import path

from refunds import (
    views_asking,
    views_bulk,
    views_deciding,
    views_export,
    views_orders,
    views_reconciliation,
    views_refunds,
    views_start,
    webhooks,
)

app_name = "refunds"
urlpatterns = [
    path("", views_start.start, name="start"),
    path("orders/", views_orders.order_list, name="order_list"),
    path("orders/search/", views_orders.order_search, name="order_search"),
    path("orders/saved/", views_orders.saved_searches, name="saved_searches"),
    path("orders/export/", views_export.order_export, name="order_export"),
    path("orders/<str:order_id>/", views_orders.order_detail, name="order"),
    path("orders/<str:order_id>/refund/", views_asking.refund_form, name="refund_form"),
    path("refunds/", views_refunds.refund_list, name="refund_list"),
    path("refunds/export/", views_export.refund_export, name="refund_export"),
    path("refunds/<uuid:refund_id>/", views_refunds.refund_detail, name="refund"),
    path("refunds/<uuid:refund_id>/withdraw/", views_refunds.refund_withdraw, name="refund_withdraw"),
    path("refunds/<uuid:refund_id>/decide/", views_deciding.refund_decide, name="refund_decide"),
    path("refunds/<uuid:refund_id>/review/", views_deciding.refund_review, name="refund_review"),
    path("refunds/sends/", views_deciding.sends, name="sends"),
    path("approvals/", views_deciding.approvals, name="approvals"),
    path("bulk/", views_bulk.bulk_list, name="bulk_list"),
    path("bulk/template/", views_bulk.bulk_template, name="bulk_template"),
    path("bulk/<uuid:bulk_id>/", views_bulk.bulk_detail, name="bulk"),
    path("bulk/<uuid:bulk_id>/result/", views_bulk.bulk_result, name="bulk_result"),
    path("reconciliation/", views_reconciliation.reconciliation_list, name="reconciliation_list"),
    path("reconciliation/<str:day>/", views_reconciliation.reconciliation_detail, name="reconciliation"),
    path("webhooks/smartpay/", webhooks.receive, name="webhook"),
]
