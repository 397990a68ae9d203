from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("refunds", "0002_guards"),
    ]

    operations = [
        migrations.AddField(
            model_name="order",
            name="vanished_at",
            field=models.DateTimeField(
                blank=True, editable=False, null=True, verbose_name="Smartpay から消えた日時"
            ),
        ),
        migrations.AddField(
            model_name="smartpayrefund",
            name="vanished_at",
            field=models.DateTimeField(
                blank=True, editable=False, null=True, verbose_name="Smartpay から消えた日時"
            ),
        ),
        migrations.AddField(
            model_name="synccursor",
            name="last_seen",
            field=models.PositiveBigIntegerField(blank=True, null=True, verbose_name="前回読み取った件数"),
        ),
        migrations.AlterField(
            model_name="auditentry",
            name="action",
            field=models.CharField(
                choices=[
                    ("person.signed_in", "サインイン"),
                    ("person.signed_out", "サインアウト"),
                    ("break_glass.issued", "緊急用サインインの発行"),
                    ("break_glass.ended", "緊急用サインインの終了"),
                    ("orders.listed", "注文一覧の閲覧"),
                    ("orders.searched", "注文の検索"),
                    ("order.viewed", "注文の閲覧"),
                    ("refunds.listed", "返金一覧の閲覧"),
                    ("refund.viewed", "返金の閲覧"),
                    ("refund.requested", "返金の申請"),
                    ("refund.approved", "返金の承認"),
                    ("refund.sending", "返金の送信"),
                    ("refund.unknown", "返金: 結果不明"),
                    ("refund.review", "返金: 要調査"),
                    ("refund.succeeded", "返金: 返金済み"),
                    ("refund.rejected", "返金: 返金不可"),
                    ("refund.not_executed", "返金: 返金不成立"),
                    ("refund.cancelled", "返金: 取り下げ"),
                    ("refund.observed", "返金: Smartpay での確認"),
                    ("refund.judged", "要調査の判定"),
                    ("refund.recovered", "返金: 復元"),
                    ("sends.stopped", "送信の停止"),
                    ("sends.resumed", "送信の再開"),
                    ("page.refused", "権限のない操作"),
                    ("admin.listed", "管理画面の一覧の閲覧"),
                    ("admin.viewed", "管理画面の記録の閲覧"),
                    ("orders.exported", "注文の書き出し"),
                    ("refunds.exported", "返金の書き出し"),
                    ("bulk.uploaded", "一括返金の取り込み"),
                    ("bulk.viewed", "一括返金の閲覧"),
                    ("bulk.started", "一括返金の開始"),
                    ("bulk.approved", "一括返金の承認"),
                    ("bulk.rejected", "一括返金の却下"),
                    ("bulk.paused", "一括返金の一時停止"),
                    ("bulk.resumed", "一括返金の再開"),
                    ("bulk.cancelled", "一括返金の中止"),
                    ("bulk.done", "一括返金の完了"),
                    ("bulk.exported", "一括返金の結果の書き出し"),
                    ("customers.imported", "お客様情報の取り込み"),
                    ("audit.verified", "監査記録の検証"),
                    ("audit.exported", "監査記録の書き出し"),
                ],
                max_length=48,
                verbose_name="操作",
            ),
        ),
        migrations.AlterField(
            model_name="order",
            name="customer_source",
            field=models.CharField(
                blank=True,
                choices=[("", "登録なし"), ("session", "決済時の入力"), ("import", "店舗データの取り込み")],
                default="",
                max_length=8,
                verbose_name="お客様情報の出所",
            ),
        ),
    ]
