from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("refunds", "0003_recovered_lines"),
    ]

    operations = [
        migrations.AlterField(
            model_name="bulkline",
            name="problem",
            field=models.CharField(
                blank=True,
                choices=[
                    ("order", "注文が見つかりません。"),
                    ("orders_differ", "注文IDとショップ注文番号が別々の注文のものです。"),
                    ("orders", "このショップ注文番号の注文が複数あります。注文IDで指定してください。"),
                    ("amount", "返金額は1円以上の整数か「残額」で入力してください。"),
                    ("description", "説明は80文字以内で、改行や見えない文字を含めずに入力してください。"),
                    ("reason", "理由は「お客様からの依頼」か「不正利用」で入力してください。"),
                    ("not_paid", "支払いがないため返金できません。"),
                    ("payments", "支払いが複数ある注文です。注文の画面から返金してください。"),
                    ("nothing_left", "返金できる残額がありません。"),
                    ("too_high", "返金可能額を超えています。"),
                    ("maximum", "一回の返金の上限を超えています。"),
                    ("daily_limit", "一日の返金の上限を超えます。"),
                    ("unsettled", "結果が確定していない返金があります。"),
                    ("used", "この行の返金は、同じ内容のファイルですでに受け付けられています。"),
                    (
                        "not_made",
                        "この行の返金は、前に取り込んだときに行われませんでした。注文の画面から返金してください。",
                    ),
                    ("currency", "円以外の注文です。注文の画面から返金してください。"),
                    ("moved", "確認したあとに返金可能額が変わりました。"),
                    ("similar", "確認したあとに似た返金が行われました。"),
                    ("no_reason", "似た返金があり、返金する理由が入力されませんでした。"),
                    ("not_entitled", "申請した人または承認した人に返金の権限がなくなりました。"),
                    ("stopped", "中止したため、返金していません。"),
                ],
                default="",
                max_length=16,
                verbose_name="内容",
            ),
        ),
    ]
