"""The data of audit entries in words: keys and codes that audit.record() is given -> labels and values.

A key or code without a word here is shown as it is, so that nothing is hidden. The sealed text is not translated.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

from django.apps import apps
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from dashboard.models import User
from refunds import bulk, jobs, roles, search
from refunds.forms import PeriodForm
from refunds.models import (
    Attempt,
    AuditEntry,
    Bulk,
    BulkLine,
    Control,
    Evidence,
    JobRun,
    Order,
    Refund,
    ReviewDecision,
    SmartpayRefund,
)
from refunds.wording import money

MODELS: list[type[models.Model]] = [*apps.get_app_config("refunds").get_models(), User]
LABELS = {
    "absent_since": _("返金がないと確認した日時"),
    "account": _("サーバーのアカウント"),
    "action": _("操作"),
    "actor": _("利用者"),
    "after": _("これより後の記録"),
    "all": _("すべて表示"),
    "allowed": _("上限(回)"),
    "amount": _("金額"),
    "answer": _("応答"),
    "approved_by": _("承認者"),
    "attempt": _("送信の番号"),
    "because": _("理由"),
    "before": _("これより前"),
    "broken": _("異常"),
    "bulk": _("一括返金"),
    "by_review": _("要調査の判定による"),
    "cause": _("理由"),
    "checked": _("封印を確認した件数"),
    "currency": _("通貨"),
    "customer_source": _("お客様情報の出所"),
    "day": _("日"),
    "days": _("日付"),
    "description": _("説明"),
    "differing": _("相違"),
    "digest": _("内容の SHA-256"),
    "e": _("読み取れない条件"),
    "ended": _("終了した件数"),
    "entries": _("件数"),
    "entry": _("異常のある記録"),
    "equal": _("一致"),
    "error_code": _("エラーコード"),
    "errors": _("入力の誤り"),
    "evidence": _("確認の方法"),
    "_facets": _("件数の表示"),
    "filters": _("条件"),
    "first": _("最初の日"),
    "first_line": _("最初の行"),
    "faults": _("異常の件数"),
    "fresh": _("Smartpay で確認"),
    "heads": _("照合した控えの数"),
    "http_status": _("HTTP"),
    "job": _("処理"),
    "kind": _("ファイルの形式"),
    "last": _("最後の日"),
    "last_line": _("最後の行"),
    "late": _("封印されなかった記録の件数"),
    "limit": _("回数を制限した操作"),
    "line": _("行"),
    "lines": _("行数"),
    "max_amount": _("金額(上限)"),
    "memo": _("社内メモ"),
    "method": _("HTTP メソッド"),
    "min_amount": _("金額(下限)"),
    "minutes": _("有効な時間(分)"),
    "model": _("対象の種類"),
    "month": _("月"),
    "name_before": _("前の氏名"),
    "o": _("並び順"),
    "only_ours": _("このツールのみ"),
    "only_theirs": _("Smartpay のみ"),
    "orders": _("お客様情報を削除した注文の件数"),
    "ours__isempty": _("このツール以外での返金"),
    "outcome": _("結果"),
    "p": _("ページ"),
    "path": _("アドレス"),
    "payment": _("支払い"),
    "period": _("期間"),
    "person": _("利用者"),
    "q": _("検索"),
    "reason": _("理由"),
    "refund_status": _("返金状況"),
    "refundable": _("返金可能額"),
    "request_id": _("受付番号"),
    "requested_by": _("申請者"),
    "role": _("役割"),
    "roles_before": _("前の役割"),
    "round": _("回"),
    "search": _("検索"),
    "sends_before": _("直前まで送信していた"),
    "searches": _("削除した検索の件数"),
    "seconds": _("制限の期間(秒)"),
    "seen": _("データベースの外に控えた送信の番号"),
    "sha256": _("ファイルの SHA-256"),
    "shown": _("表示した記録"),
    "similar": _("似た返金"),
    "smartpay_id": _("Smartpay 返金ID"),
    "state": _("状態"),
    "state_before": _("前の状態"),
    "status": _("状態"),
    "total": _("合計"),
    "tried": _("試した操作"),
    "until": _("最後の記録"),
    "verdict": _("判定"),
    "waiting": _("封印を待つ記録の件数"),
    "whole": _("最後まで検証"),
    "why": _("理由"),
    "words": _("検索語のハッシュ"),
    "written": _("書き込んだ件数"),
    "year": _("年"),
}
AMOUNTS = {"amount", "max_amount", "min_amount", "refundable", "total"}
MOMENTS = {"absent_since", "before"}
PEOPLE = {"actor", "approved_by", "person", "requested_by"}
# Codes by key. `object.key` takes precedence over `key`: one key may mean different things.
CODES: dict[str, dict[str, Any]] = {
    "action": dict(AuditEntry.Action.choices),
    "answer": dict(Attempt.Outcome.choices),
    "because": dict(Refund.Cancelled.choices),
    "cause": dict(Control.Cause.choices),
    "broken": {
        "beginning": _("最初の記録の欠落"),
        "cut": _("末尾の記録の欠落"),
        "head_gone": _("末尾だった記録の欠落"),
        "inserted": _("挿入された記録"),
        "kept_head": _("読み取れない控え"),
        "link": _("直前の記録とのつながりの相違"),
        "missing": _("途中の記録の欠落"),
        "rewritten": _("控えた封印との相違"),
        "seal": _("内容の変更"),
        "text": _("各欄の変更"),
        "unreadable": _("読み取れない記録"),
    },
    "bulk.state": dict(Bulk.State.choices),
    "customer_source": dict(Order.CustomerSource.choices),
    "errors": {
        "control": _("使えない文字"),
        "huge": _("大きすぎる数"),
        "invalid": _("正しくない形式"),
        "invalid_choice": _("選択肢にない値"),
        "long": _("長すぎる文"),
        "max_length": _("長すぎる文"),
        "number": _("数字以外"),
        "positive": _("1円未満"),
        "repeated": _("二度送られた項目"),
        "required": _("入力なし"),
        "too_high": BulkLine.Problem.TOO_HIGH.label,
        "whole": _("整数以外"),
    },
    "evidence": dict(Evidence.Kind.choices),
    "job": {job.name: job.label for job in jobs.JOBS},
    "jobrun.outcome": dict(JobRun.Outcome.choices),
    "kind": {"csv": "CSV", "jsonl": "JSON Lines"},
    "limit": {
        "callbacks": _("サインインの応答"),
        "codes": _("緊急用コードの入力"),
        "lists": _("一覧の閲覧"),
        "orders": _("注文と返金の閲覧"),
        "refund_forms": _("返金フォームの送信"),
        "searches": _("検索"),
        "sign_ins": _("サインイン"),
    },
    "model": {str(each._meta.model_name): each._meta.verbose_name for each in MODELS},
    "outcome": dict([*AuditEntry.Outcome.choices, *Attempt.Outcome.choices]),
    "ours__isempty": {"0": _("いいえ"), "1": _("はい")},
    "period": dict(cast(Any, PeriodForm.base_fields["period"]).choices),
    "reason": {
        **dict(Refund.Reason.choices),
        # Why a sign-in was refused: see dashboard/sso/. Other codes are the provider's own.
        "access_denied": _("本人による取りやめ"),
        "alg": _("認められない署名の方式"),
        "auth_time": _("本人の再確認がない応答"),
        "azp": _("別のアプリ宛ての応答"),
        "break_glass": _("緊急用サインインの利用者"),
        "break_glass_code": _("正しくない緊急用コード"),
        "code": _("使用済みまたは期限切れの応答"),
        "code_missing": _("コードのない応答"),
        "deactivated": _("停止された利用者"),
        "discovery_algorithms": _("認証サービスの設定に使える署名の方式がない"),
        "discovery_issuer": _("認証サービスの設定の発行元の相違"),
        "iss": _("別の認証サービスからの応答"),
        "key_unknown": _("知らない鍵による署名"),
        "no_role": _("役割なし"),
        "nonce": _("別のサインインへの応答"),
        "provider_error": _("認証サービスのエラー"),
        "provider_json": _("読み取れない認証サービスの応答"),
        "sub": _("利用者を示さない応答"),
        "token_missing": _("証明のない応答"),
        "typ": _("種類の違う証明"),
        "userinfo_sub": _("別の利用者の情報"),
    },
    "refund_status": dict(Order.RefundStatus.choices),
    "role": roles.LABELS,
    "roles_before": roles.LABELS,
    "smartpayrefund.status": dict(SmartpayRefund.Status.choices),
    "state": dict(Refund.State.choices),
    "state_before": dict(Refund.State.choices),
    "status": dict(Order.Status.choices) | {search.ANY_STATUS: _("すべて(未払いを含む)")},
    "tried": {
        "approve": pgettext_lazy("tried", "承認"),
        "cancel": pgettext_lazy("tried", "中止"),
        "pause": pgettext_lazy("tried", "一時停止"),
        "reject": pgettext_lazy("tried", "却下"),
        "resume": pgettext_lazy("tried", "再開"),
        "start": pgettext_lazy("tried", "開始"),
        "start_with_similar": pgettext_lazy("tried", "似た返金も含めた開始"),
    },
    "verdict": dict(ReviewDecision.Verdict.choices),
    "why": {
        **dict(BulkLine.Problem.choices),
        **{error.__name__: problem.label for error, problem in bulk.PROBLEMS.items()},
        "NoReason": _("理由の入力なし"),
        "SimilarUnexplained": _("似た返金があり、理由の入力なし"),
        "NotProved": _("Smartpay の表示と合わない判定"),
        "NotReconciled": _("復元後の読み取りの前"),
        "NotWaiting": _("すでに送信または決定"),
        "RefundError": _("確認画面の期限切れまたは内容の変更"),
        "RefundUnsettled": BulkLine.Problem.UNSETTLED.label,
        "expired": _("期限切れ"),
        "limit": _("回数の上限"),
        "request_id reused": _("別の内容で使われた受付番号"),
        "restored": _("復元前に送信された可能性"),
        "same contents": _("同じ内容のファイル"),
        "smartpay": _("Smartpay に確かめられなかった"),
        "the sender died": _("送信した処理の中断"),
        "unreadable": _("読み取れません"),
    },
}  # fmt: skip


def look_up(entries: Iterable[Any]) -> None:
    """Set `people` and `currency` on the entries, as told() needs them: two queries for all entries."""
    person_ids, order_ids = set(), set()
    for entry in entries:
        named = {_bare(name): value for name, value in entry.data.get("filters", {}).items()}
        named |= {"approved_by": str(entry.data["approved_by"])} if "approved_by" in entry.data else {}
        named |= {"actor": entry.object_id} if entry.object_type == "user" else {}
        person_ids |= {
            named[name] for name in PEOPLE & named.keys() if re.fullmatch("[0-9]{1,18}", named[name])
        }
        order_ids |= {entry.order_id} if AMOUNTS & entry.data.keys() else set()
    people = {str(person.pk): str(person) for person in User.objects.filter(pk__in=person_ids)}
    found = Order.objects.filter(order_id__in=order_ids)
    currencies = dict(found.values_list("order_id", "currency"))
    for entry in entries:
        entry.people = people
        entry.currency = entry.data.get("currency") or currencies.get(entry.order_id, "JPY")


def _bare(name: str) -> str:
    """Return a filter's key without Django's lookup: `state__exact` is `state`, `at__year` is `year`."""
    name = name.removesuffix("__exact").removesuffix("__id")
    return name if name in LABELS else name.rpartition("__")[2]


def told(entry: Any) -> list[tuple[str, str]]:
    """Return the entry's data as labels and values in words, after look_up(). Unknown keys and codes stay as they are.

    Sorted by key, since PostgreSQL does not keep their order.
    """
    items = sorted(entry.data.items())
    return [(str(LABELS.get(name, name)), _value(entry, name, value)) for name, value in items]


def _value(entry: Any, name: str, value: Any) -> str:
    if value in (None, "", [], {}):
        return "–"
    if isinstance(value, bool):
        return str(_("はい") if value else _("いいえ"))
    if isinstance(value, dict):
        code = "" if name == "filters" else name
        return _("、").join(
            f"{LABELS.get(_bare(each), each)}: {_value(entry, code or _bare(each), said)}"
            for each, said in sorted(value.items())
        )
    if isinstance(value, list):
        return _("、").join(_value(entry, name, each) for each in value)
    if name in AMOUNTS and re.fullmatch("-?[0-9]+", str(value)):
        return money(int(value), entry.currency)
    if name in PEOPLE:
        return str(entry.people.get(str(value), value))
    if name in MOMENTS:
        with suppress(ValueError):
            return f"{timezone.localtime(datetime.fromisoformat(value)):%Y/%m/%d %H:%M:%S}"
    codes = CODES.get(f"{entry.data.get('model') or entry.object_type}.{name}") or CODES.get(name, {})
    return str(codes.get(str(value), value))
