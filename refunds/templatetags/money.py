"""The functions of wording.py as template filters."""

from django import template

from refunds import wording

register = template.Library()
for each in (wording.money, wording.grouped, wording.short_id, wording.minute, wording.ago):
    register.filter(each)
