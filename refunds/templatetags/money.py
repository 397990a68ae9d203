"""The functions of wording.py as template filters, and until when a request waits."""

from django import template

from refunds import waiting, wording

register = template.Library()
for each in (
    wording.money,
    wording.grouped,
    wording.short_id,
    wording.minute,
    wording.ago,
    waiting.expires_at,
):
    register.filter(each)
