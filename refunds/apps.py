from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class RefundsConfig(AppConfig):
    """Orders mirrored from Smartpay, refunds of them, and who did what."""

    name = "refunds"
    verbose_name = _("返金")

    def ready(self) -> None:
        from dashboard.metrics import DATABASE_REGISTRY
        from refunds import audit, checks, roles  # noqa: F401  (connects its receivers; registers its checks)
        from refunds.metrics import DatabaseCollector

        DATABASE_REGISTRY.register(DatabaseCollector())
        post_migrate.connect(roles.sync, dispatch_uid="refunds.roles")
