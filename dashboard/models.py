"""The people of the site. Their roles are Django groups, set anew from the company's claims at each sign-in."""

from functools import cached_property

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.translation import gettext_lazy as _


class User(AbstractUser):
    """A person as the identity provider knows them.

    Recognised by issuer and subject, never by e-mail: mails are reassigned, and an equal mail from
    another issuer would be another person.
    """

    first_name = None  # type: ignore[assignment]  # Japanese names have no "first" and "last": `name` is shown as it came
    last_name = None  # type: ignore[assignment]
    name = models.CharField(_("氏名"), max_length=150, blank=True)
    issuer = models.CharField(_("発行元"), max_length=255, blank=True, editable=False)
    subject = models.CharField(_("発行元での ID"), max_length=255, blank=True, editable=False)

    class Meta:
        verbose_name = _("利用者")
        verbose_name_plural = _("利用者")
        constraints = [
            models.UniqueConstraint(
                fields=["issuer", "subject"], condition=~models.Q(issuer=""), name="user_one_per_subject"
            ),
        ]

    def __str__(self) -> str:
        return self.name or self.username

    def get_full_name(self) -> str:
        return str(self)

    def get_short_name(self) -> str:
        return str(self)

    @cached_property
    def role_names(self) -> list[str]:
        """ "operator", "auditor", …: read once for each request that asks."""
        return sorted(self.groups.values_list("name", flat=True))


class SessionIndex(models.Model):
    """Whose session is whose, so that the provider can end it, and so that a lost role ends them all."""

    session_key = models.CharField(max_length=40, primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    provider_session = models.CharField(max_length=255, blank=True, db_index=True)  # the claim `sid`
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.user_id} {self.created_at:%F %T}"


class SeenLogoutToken(models.Model):
    """A logout token that was obeyed; it is obeyed once."""

    jti = models.CharField(max_length=64, primary_key=True)  # sha256 of the claim, which may be of any length
    seen_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.jti


class BreakGlass(models.Model):
    """One person's way in while the identity provider is dead, for minutes: see dashboard/break_glass.py."""

    code = models.CharField(max_length=64, primary_key=True)  # sha256 of what was printed
    user = models.OneToOneField(User, on_delete=models.PROTECT, related_name="+")
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.user_id} {self.expires_at:%F %T}"


class Count(models.Model):
    """How often somebody did something in a window of time: see dashboard/limits.py."""

    key = models.CharField(max_length=80, primary_key=True)
    began = models.BigIntegerField()  # the window, as seconds since 1970
    times = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.key} {self.times}"
