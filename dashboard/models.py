"""Users of the site. Their roles are Django groups, set from the provider's claims at each sign-in."""

from functools import cached_property

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.translation import gettext_lazy as _


class User(AbstractUser):
    """A person as the identity provider knows them.

    A person is recognised by issuer and subject, never by mail address: addresses are reassigned, and the same address
    from another issuer may be another person.
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
        """The names of the person's roles ("auditor", "operator", …), sorted; read once per instance."""
        return sorted(self.groups.values_list("name", flat=True))


class SessionIndex(models.Model):
    """Maps sessions to people, so that the provider can end a session, and a lost role ends all of a person's."""

    session_key = models.CharField(max_length=40, primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    provider_session = models.CharField(max_length=255, blank=True, db_index=True)  # the claim `sid`
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.user_id} {self.created_at:%F %T}"


class SeenLogoutToken(models.Model):
    """A logout token that was carried out; it is refused a second time."""

    jti = models.CharField(max_length=64, primary_key=True)  # sha256 of the claim, which may be of any length
    seen_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.jti


class BreakGlass(models.Model):
    """One person's temporary access while the identity provider is down: see dashboard/break_glass.py."""

    code = models.CharField(max_length=64, primary_key=True)  # sha256 of what was printed
    user = models.OneToOneField(User, on_delete=models.PROTECT, related_name="+")
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.user_id} {self.expires_at:%F %T}"


class Count(models.Model):
    """A counter of requests in one window of time: see dashboard/limits.py."""

    key = models.CharField(max_length=80, primary_key=True)
    began = models.BigIntegerField()  # the window, as seconds since 1970
    times = models.BigIntegerField()

    def __str__(self) -> str:
        return f"{self.key} {self.times}"
