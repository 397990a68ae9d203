"""The addresses of the screens. Others rely on them: none is renamed."""

from django.urls import path

from refunds import views, views_bulk, views_export, views_reconciliation, webhooks

app_name = "refunds"
urlpatterns = [
    path("", views.start, name="start"),
    path("orders/", views.order_list, name="order_list"),
    path("orders/search/", views.order_search, name="order_search"),
    path("orders/saved/", views.saved_searches, name="saved_searches"),
    path("orders/export/", views_export.order_export, name="order_export"),
    path("orders/<str:order_id>/", views.order_detail, name="order"),
    path("orders/<str:order_id>/refund/", views.refund_form, name="refund_form"),
    path("refunds/", views.refund_list, name="refund_list"),
    path("refunds/export/", views_export.refund_export, name="refund_export"),
    path("refunds/<uuid:refund_id>/", views.refund_detail, name="refund"),
    path("refunds/<uuid:refund_id>/withdraw/", views.refund_withdraw, name="refund_withdraw"),
    path("refunds/<uuid:refund_id>/decide/", views.refund_decide, name="refund_decide"),
    path("refunds/<uuid:refund_id>/review/", views.refund_review, name="refund_review"),
    path("refunds/sends/", views.sends, name="sends"),
    path("approvals/", views.approvals, name="approvals"),
    path("bulk/", views_bulk.bulk_list, name="bulk_list"),
    path("bulk/template/", views_bulk.bulk_template, name="bulk_template"),
    path("bulk/<uuid:bulk_id>/", views_bulk.bulk_detail, name="bulk"),
    path("bulk/<uuid:bulk_id>/result/", views_bulk.bulk_result, name="bulk_result"),
    path("reconciliation/", views_reconciliation.reconciliation_list, name="reconciliation_list"),
    path("reconciliation/<str:day>/", views_reconciliation.reconciliation_detail, name="reconciliation"),
    path("webhooks/smartpay/", webhooks.receive, name="webhook"),
]
