"""The seeded trade: what a shop with a few hundred, or a million, orders looks like to Smartpay.

Order number i (0 is the newest) is a function of the seed and i alone. Nothing is stored, so a
world of any size starts at once, and its ids are the same after every start. Only times move: they
count back from `epoch`, the moment at which the world was made.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

from . import names
from .draws import Draws, Weighted
from .ids import Ids

type Resource = dict[str, Any]
"""One of Smartpay's objects, in the plain form (references as ids), as its JSON says it.

Keys that begin with an underscore are Smartpay's own knowledge and never leave it.
"""

# Prefixes as in the contract's table of identifiers; "discount" is this sandbox's guess (UNKNOWN).
PREFIX: Final = {
    "checkoutSession": "checkout",
    "order": "order",
    "payment": "payment",
    "refund": "refund",
    "lineItem": "li",
    "price": "price",
    "product": "product",
    "token": "paytok",
    "coupon": "coupon",
    "promotionCode": "promotioncode",
    "webhookEndpoint": "webhookendpoint",
    "event": "evt",
    "discount": "discount",
}
DAY_MS: Final = 86_400_000
AUTHORIZATION_MS: Final = 7 * DAY_MS  # how long an authorized order can be captured
_JST_MS: Final = 9 * 3_600_000
_SPAN_DAYS: Final = 730
# Orders by hour of a Japanese day: asleep at four, busiest at lunch and after nine in the evening.
_BY_HOUR: Final = [20, 12, 7, 4, 3, 4, 9, 18, 28, 36, 42, 46, 58, 50, 42, 40, 40, 42, 46, 52, 64, 76, 70, 44]
_HOUR_BOUNDS: Final = [0.0, *(share / sum(_BY_HOUR) for share in accumulate(_BY_HOUR))]

# name, brand, yen, how often among 1,000 items sold
_PRODUCTS: Final = [
    ("コットンソックス 3足組", "日和製織", 1_100, 60), ("今治フェイスタオル", "日和製織", 880, 60),
    ("ドリップバッグ 10杯分", "山の焙煎所", 1_480, 55), ("ほうじ茶 200g", "茶舗みどり", 1_296, 45),
    ("北海道バターサンド 8個入", "白樺菓子店", 1_836, 45), ("オーガニックハンドクリーム", "ハナウタ", 1_980, 50),
    ("薬用シャンプー 詰替", "ハナウタ", 1_650, 40), ("スマートフォンケース", "TSUBAME", 2_480, 50),
    ("充電ケーブル 1m", "TSUBAME", 990, 45), ("モバイルバッテリー 10000mAh", "TSUBAME", 3_980, 35),
    ("Tシャツ 半袖", "AOZORA", 3_300, 60), ("リネンシャツ", "AOZORA", 7_900, 40),
    ("デニムパンツ", "AOZORA", 12_800, 35), ("ニットカーディガン", "AOZORA", 9_900, 30),
    ("ダウンジャケット", "AOZORA", 32_800, 12), ("スニーカー", "KAKERU", 11_000, 30),
    ("ランニングシューズ", "KAKERU", 16_500, 20), ("ヨガマット", "KAKERU", 4_950, 20),
    ("美容液 30ml", "ハナウタ", 6_600, 30), ("化粧水 定期便", "ハナウタ", 4_378, 30),
    ("ワイヤレスイヤホン", "TSUBAME", 14_800, 20), ("電気ケトル", "くらし家電", 5_980, 18),
    ("ロボット掃除機", "くらし家電", 49_800, 8), ("空気清浄機", "くらし家電", 38_500, 6),
    ("ダイニングチェア", "木のかたち", 19_800, 10), ("羽毛布団 シングル", "木のかたち", 27_500, 8),
    ("文庫本セット", "灯台書房", 2_750, 20), ("知育ブロック", "こども工房", 5_500, 16),
    ("ベビーカー", "こども工房", 44_000, 5), ("キャンプテント 4人用", "KAKERU", 54_780, 4),
    ("電動アシスト自転車", "KAKERU", 138_000, 2), ("ノートパソコン 14型", "TSUBAME", 148_000, 3),
    ("18金 一粒ダイヤ ネックレス", "宝飾ひかり", 88_000, 3), ("機械式腕時計", "宝飾ひかり", 298_000, 1),
    ("お試しサンプル", "ハナウタ", 300, 30), ("ギフトラッピング", "山の焙煎所", 330, 25),
]  # fmt: skip
_SHIPPING: Final = [
    ("送料", "", 550),
    ("送料", "", 770),
    ("送料(北海道・沖縄)", "", 1_320),
    ("クール便 送料", "", 880),
]
_DEAR: Final = ("機械式腕時計 限定モデル", "宝飾ひかり", 990_000)  # the dearest order there is
_CATALOGUE: Final = [*(row[:3] for row in _PRODUCTS), *_SHIPPING, _DEAR]
_ITEMS: Final = Weighted([(number, row[3]) for number, row in enumerate(_PRODUCTS)])
_SHIPPING_AT: Final = len(_PRODUCTS)
_SAMPLE_AT: Final = next(number for number, row in enumerate(_PRODUCTS) if row[0] == "お試しサンプル")
_DEAR_AT: Final = len(_CATALOGUE) - 1

# line1, locality, prefecture, postal code: real towns, invented streets
_TOWNS: Final = [
    ("宇田川町", "渋谷区", "東京都", "150-0042"), ("上目黒", "目黒区", "東京都", "153-0051"),
    ("南大沢", "八王子市", "東京都", "192-0364"), ("みなとみらい", "横浜市西区", "神奈川県", "220-0012"),
    ("大宮町", "さいたま市大宮区", "埼玉県", "330-0846"), ("栄", "名古屋市中区", "愛知県", "460-0008"),
    ("梅田", "大阪市北区", "大阪府", "530-0001"), ("烏丸通", "京都市中京区", "京都府", "604-8166"),
    ("三宮町", "神戸市中央区", "兵庫県", "650-0021"), ("天神", "福岡市中央区", "福岡県", "810-0001"),
    ("北一条西", "札幌市中央区", "北海道", "060-0001"), ("国分町", "仙台市青葉区", "宮城県", "980-0803"),
    ("紙屋町", "広島市中区", "広島県", "730-0031"), ("牧志", "那覇市", "沖縄県", "900-0013"),
]  # fmt: skip
_REFUND_TEXTS: Final = [
    "ご返品を承りました", "サイズ交換に伴う返金", "欠品のためご返金いたします", "商品不良のためご返金いたします",
    "キャンセルを承りました", "送料分のご返金",
]  # fmt: skip


class Fate(NamedTuple):
    """What became of an order."""

    status: str  # as authorized and captured; an expired authorization is the model's business
    payments: int = 0
    captured_wholly: bool = True
    refunds: tuple[int, ...] = ()  # how many refunds each payment has
    refunded: str = ""  # "", "partly", "wholly", or "failed": tried, but no money went back
    by_token: bool = False


class Item(NamedTuple):
    """One line of an order. Tax and discounts have a sum of their own, goods and postage a price."""

    kind: str  # product, tax, discount
    amount: int  # yen apiece
    quantity: int
    catalogue: int | None  # the line of the catalogue it was sold from


class Cart(NamedTuple):
    items: tuple[Item, ...]
    amount: int  # goods and postage + tax − discount: more than 0


class Planted(NamedTuple):
    """An order that every world has at a fixed place, so that each kind is seen on the first pages."""

    fate: Fate
    family: names.Name | None = None
    items: tuple[Item, ...] | None = None
    customer: bool = True


_TANAKA: Final = next(name for name in names.FAMILIES.items if name.written == "田中")
_PLAIN: Final = Fate("succeeded", 1, True, (0,))
_COFFEE: Final = (Item("product", 1_480, 2, 2), Item("product", 550, 1, _SHIPPING_AT))
PLANTED: Final = {
    0: Planted(_PLAIN),
    2: Planted(Fate("requires_capture")),
    4: Planted(Fate("requires_capture", 1, False, (0,))),
    5: Planted(_PLAIN, family=_TANAKA, items=_COFFEE),
    7: Planted(Fate("succeeded", 2, True, (0, 0))),
    9: Planted(Fate("succeeded", 1, True, (0,), by_token=True)),
    11: Planted(Fate("succeeded", 1, True, (1,), "partly")),
    13: Planted(Fate("succeeded", 1, True, (1,), "wholly")),
    14: Planted(_PLAIN, family=_TANAKA, items=(Item("product", 12_800, 1, 12), Item("discount", 1_000, 1, None))),
    16: Planted(Fate("requires_authorization")),
    18: Planted(Fate("rejected")),
    20: Planted(Fate("canceled")),
    22: Planted(_PLAIN, items=(Item("product", 300, 1, _SAMPLE_AT), Item("discount", 299, 1, None))),
    24: Planted(_PLAIN, items=(Item("product", 990_000, 1, _DEAR_AT),)),
    26: Planted(_PLAIN, customer=False),
    28: Planted(Fate("succeeded", 1, True, (1,), "failed")),
    30: Planted(Fate("succeeded", 3, True, (1, 0, 0), "partly")),
    33: Planted(_PLAIN, family=_TANAKA, items=(Item("product", 3_300, 2, 10), Item("tax", 660, 1, None))),
    58: Planted(_PLAIN, family=_TANAKA, items=(Item("product", 6_600, 1, 18), Item("product", 550, 1, _SHIPPING_AT))),
    77: Planted(_PLAIN, family=_TANAKA, items=(Item("product", 49_800, 1, 22),)),
}  # fmt: skip


class World:
    """The seeded objects, all of them of test mode: there is no live trade to begin with.

    A number names an object within its kind: order and checkout session i; payment k of order i is
    8i + k; refund r of that payment is 4 · (8i + k) + r; line item k of order i is 16i + k.
    """

    def __init__(self, *, seed: int, orders: int, epoch: int) -> None:
        """`epoch`: when this world was made, in ms since 1970; its newest order is a little older."""
        self.seed, self.orders, self.epoch = seed, orders, epoch
        self._ids = Ids(seed)
        self._activity_now = _activity(epoch)
        # A page of orders asks for each of these several times; no more than a few pages are kept.
        self.fate = lru_cache(maxsize=2048)(self._fate)
        self.cart = lru_cache(maxsize=2048)(self._cart)
        self.created_at = lru_cache(maxsize=2048)(self._created_at)
        self.id = lru_cache(maxsize=1 << 15)(self._id)
        self._numbers: dict[str, tuple[str, int]] = {}  # ids given out lately, so that few need reading back
        self._makers = {
            "order": self.order,
            "checkoutSession": self.checkout_session,
            "payment": self.payment,
            "refund": self.refund,
            "lineItem": self.line_item,
            "price": self.price,
            "product": self.product,
            "token": self.token,
            "coupon": self.coupon,
            "promotionCode": self.promotion_code,
        }

    # What exists, and by which id

    def _id(self, kind: str, number: int) -> str:
        prefix = f"{PREFIX[kind]}_test"
        id = f"{prefix}_{self._ids.make(prefix, number)}"
        if len(self._numbers) > 1 << 15:
            self._numbers.clear()
        self._numbers[id] = kind, number
        return id

    def number(self, kind: str, id: str) -> int | None:
        """The number of a seeded object, or None if the seed has no such object."""
        known_kind, known = self._numbers.get(id, ("", 0))
        if known_kind == kind:
            return known if self.exists(kind, known) else None
        prefix = f"{PREFIX[kind]}_test"
        if kind not in self._makers or not id.startswith(prefix + "_"):
            return None
        number = self._ids.read(prefix, id[len(prefix) + 1 :])
        return number if number is not None and self.exists(kind, number) else None

    def exists(self, kind: str, number: int) -> bool:
        match kind:
            case "order":
                return number < self.orders
            case "checkoutSession":
                return number < self.orders and not self.fate(number).by_token
            case "payment":
                return number // 8 < self.orders and number % 8 < self.fate(number // 8).payments
            case "refund":
                payment, nth = divmod(number, 4)
                return self.exists("payment", payment) and nth < self.fate(payment // 8).refunds[payment % 8]
            case "lineItem":
                return number // 16 < self.orders and number % 16 < len(self.cart(number // 16).items)
            case "price" | "product":
                return number < len(_CATALOGUE)
            case "token":
                return number < math.ceil(self.orders / 200) * 3
        return number < len(_COUPONS)  # coupon, promotionCode

    def make(self, kind: str, number: int) -> Resource:
        """The object as it was when the world began. A fresh dictionary each time: it may be changed."""
        return self._makers[kind](number)

    def walk(self, kind: str, start: int, *, newest_first: bool) -> Iterator[int]:
        """Numbers of a kind from `start` on, in the order of their orders' times.

        Refunds come in the order of what they refund, not of their own times: Smartpay's sort
        order is UNKNOWN, so nobody may lean on it.
        """
        step = 1 if newest_first else -1
        per_order = {"payment": 8, "refund": 32, "order": 1, "checkoutSession": 1}.get(kind)
        if per_order is None:
            few = {
                "token": math.ceil(self.orders / 200) * 3,
                "coupon": len(_COUPONS),
                "promotionCode": len(_COUPONS),
            }
            last = few.get(kind, 0)  # there are no seeded webhook endpoints
            yield from range(max(start, 0), last) if newest_first else range(min(start, last - 1), -1, -1)
            return
        first = max(start, 0) if newest_first else min(start, self.orders * per_order - 1)
        for order in range(first // per_order, self.orders if newest_first else -1, step):
            for number in self._of_order(kind, order)[::step]:
                if (number >= start) if newest_first else (number <= start):
                    yield number

    def _of_order(self, kind: str, order: int) -> list[int]:
        fate = self.fate(order)
        match kind:
            case "order":
                return [order]
            case "checkoutSession":
                return [] if fate.by_token else [order]
            case "payment":
                return [order * 8 + nth for nth in range(fate.payments)]
        return [
            (order * 8 + nth) * 4 + refund
            for nth, count in enumerate(fate.refunds)
            for refund in range(count)
        ]

    # Chance

    def _fate(self, order: int) -> Fate:
        if order in PLANTED:
            return PLANTED[order].fate
        draws = Draws(self.seed, b"fate", order)
        roll, by_token = draws.below(1000), draws.chance(63)
        if roll < 120:
            return Fate("requires_authorization")
        if roll < 162:
            return Fate("rejected")
        if roll < 176:
            return Fate("canceled", by_token=by_token)
        if roll < 210:
            captured = draws.below(2)
            return Fate("requires_capture", captured, False, (0,) * captured, by_token=by_token)
        payments = 2 + draws.below(2) if draws.chance(38) else 1
        refund = draws.below(1000)
        if refund < 76:
            refunds = [0] * payments
            refunds[draws.below(payments)] = 1 + draws.below(2)
            return Fate("succeeded", payments, True, tuple(refunds), "partly", by_token)
        if refund < 139:
            return Fate("succeeded", payments, True, (1 + draws.below(2),) * payments, "wholly", by_token)
        if refund < 142:
            return Fate("succeeded", payments, True, (1,) + (0,) * (payments - 1), "failed", by_token)
        return Fate("succeeded", payments, True, (0,) * payments, "", by_token)

    def _cart(self, order: int) -> Cart:
        planted = PLANTED.get(order)
        if planted and planted.items:
            items = list(planted.items)
        else:
            draws = Draws(self.seed, b"cart", order)
            items = []
            for _ in range(1 + draws.below(2) * draws.below(3)):
                at = draws.weighted(_ITEMS)
                quantity = 1 + draws.below(3) if _CATALOGUE[at][2] < 5_000 and draws.chance(300) else 1
                items.append(Item("product", _CATALOGUE[at][2], quantity, at))
            goods = sum(item.amount * item.quantity for item in items)
            if goods < 11_000 and draws.chance(700):
                at = _SHIPPING_AT + draws.below(len(_SHIPPING))
                items.append(Item("product", _CATALOGUE[at][2], 1, at))
            if draws.chance(150):  # prices without tax: 10 %, rounded down
                items.append(Item("tax", goods // 10, 1, None))
            if goods > 1_000 and draws.chance(120):
                off = draws.pick([100, 500, goods // 10, goods // 20])
                items.append(Item("discount", off, 1, None))
        # Whether Smartpay tells a discount by its kind or by a negative amount is UNKNOWN: by its kind.
        amount = sum((-1 if item.kind == "discount" else 1) * item.amount * item.quantity for item in items)
        return Cart(tuple(items), amount)

    def customer(self, order: int) -> Resource | None:
        """What the shop told about its customer; None if it told nothing. Some customers come again."""
        planted = PLANTED.get(order)
        draws = Draws(self.seed, b"visit", order)
        returning = draws.chance(400)
        number = order // 64 * 64 + draws.below(48) if returning else order
        told = draws.chance(940)
        if planted and not planted.family:
            number, told = order, planted.customer
        if not told:
            return None
        draws = Draws(self.seed, b"customer", number)
        family, given = names.person(draws)
        if planted and planted.family:
            family = planted.family
        return names.customer_info(family, given, draws)

    def payment_amounts(self, order: int) -> list[int]:
        """What each capture took. Wholly captured, they add up to the order's amount."""
        fate, amount = self.fate(order), self.cart(order).amount
        if fate.payments == 0:
            return []
        if not fate.captured_wholly:
            return [max(1, amount * 3 // 5)]
        shares = [amount // fate.payments] * (fate.payments - 1)
        return [*shares, amount - sum(shares)]

    def refund_amounts(self, payment: int) -> list[int]:
        """What each refund of a payment gave back. Some of the rest is always left when refunded partly."""
        order, nth = divmod(payment, 8)
        fate = self.fate(order)
        count, whole = fate.refunds[nth], self.payment_amounts(order)[nth]
        if fate.refunded != "wholly":
            whole = max(1, whole * (20 + Draws(self.seed, b"back", payment).below(50)) // 100 // 10 * 10)
        first = max(1, whole // 3) if count == 2 else whole
        return [first, max(1, whole - first)][:count]

    # Times, in ms since 1970

    def _created_at(self, order: int) -> int:
        """When an order was placed: strictly earlier the higher its number, following Japan's day and night."""
        position = (
            order + 0.1 + 0.8 * Draws(self.seed, b"time", order).below(1 << 30) / (1 << 30)
        ) / self.orders
        # A growing shop: half of all orders fall into the last seven months.
        days_ago = _SPAN_DAYS * (0.02 * position + 0.98 * position * position)
        return _moment(self._activity_now - days_ago)

    def authorized_at(self, order: int) -> int:
        return min(
            self.epoch, self.created_at(order) + 40_000 + 1_000 * Draws(self.seed, b"auth", order).below(400)
        )

    def paid_at(self, payment: int) -> int:
        """The first capture follows the authorization at once, the next ones within its seven days."""
        order, nth = divmod(payment, 8)
        return min(self.epoch, self.authorized_at(order) + 1_200 + nth * (2 * DAY_MS + 4_321_000))

    def refunded_at(self, refund: int) -> int:
        payment, nth = divmod(refund, 4)
        paid = self.paid_at(payment)
        share = Draws(self.seed, b"later", payment).below(900) / 1_000 * (nth + 1) / 2
        return paid + int(min(self.epoch - paid, 30 * DAY_MS) * share)

    # The objects

    def order(self, number: int) -> Resource:
        fate, cart = self.fate(number), self.cart(number)
        draws = Draws(self.seed, b"order", number)
        created = updated = self.created_at(number)
        order: Resource = {
            "id": self.id("order", number),
            "object": "order",
            "amount": cart.amount,
            "createdAt": created,
            "currency": "JPY",
        }
        if draws.chance(150):
            order["description"] = draws.pick(["オンラインストアでのご注文", "定期便のご注文", "ご予約商品"])
        order["discounts"] = []
        if fate.status not in ("requires_authorization", "rejected"):
            updated = self.authorized_at(number)
            order["expiresAt"] = updated + AUTHORIZATION_MS
        order["lineItems"] = [self.id("lineItem", number * 16 + nth) for nth in range(len(cart.items))]
        order["metadata"] = draws.pick([{}, {}, {}, {"channel": "web"}, {"channel": "app"}])
        order["payments"] = [self.id("payment", number * 8 + nth) for nth in range(fate.payments)]
        if fate.payments:
            updated = self.paid_at(number * 8 + fate.payments - 1)
        reference, told_on_order = self.reference(number)
        if reference and told_on_order:
            order["reference"] = reference
        street, town, prefecture, postal_code = draws.pick(_TOWNS)
        if draws.chance(950):
            order["shippingInfo"] = {
                "address": {
                    "administrativeArea": prefecture,
                    "country": "JP",
                    "line1": f"{street}{1 + draws.below(5)}-{1 + draws.below(30)}-{1 + draws.below(20)}",
                    "locality": town,
                    "postalCode": postal_code,
                },
                "addressType": draws.pick(["home", "home", "home", "gift", "office", "store"]),
            }
        order |= {"status": fate.status, "test": True}
        if fate.by_token:
            order["tokenId"] = self.id("token", number // 200 * 3 + draws.below(3))
        return order | {"updatedAt": updated}

    def reference(self, order: int) -> tuple[str, bool]:
        """The shop's own number for an order (may be empty), and whether the order itself bears it.

        Source: the contract has it on the session in one fixture and on the order in newer flows.
        """
        draws = Draws(self.seed, b"reference", order)
        style, told_on_order = draws.below(100), draws.chance(850) or self.fate(order).by_token
        sequence = self.orders - order
        if style < 8:
            return "", told_on_order
        if style < 60:
            return f"EC-{sequence:07d}", told_on_order
        if style < 80:
            return f"#{10_000 + sequence}", told_on_order
        if style < 92:
            return f"S{draws.below(36**6):06X}-{1 + draws.below(9)}", told_on_order
        return f"店舗{1 + draws.below(30):02d}-{sequence:06d}", told_on_order

    def checkout_session(self, number: int) -> Resource:
        created = self.created_at(number)
        id = self.id("checkoutSession", number)
        session: Resource = {
            "id": id,
            "object": "checkoutSession",
            "cancelUrl": "https://shop.example.jp/cart",
            "createdAt": created,
        }
        customer = self.customer(number)
        if customer is not None:
            session["customerInfo"] = customer
        session |= {"locale": "ja", "metadata": {}, "order": self.id("order", number)}
        if reference := self.reference(number)[0]:
            session["reference"] = reference
        session |= {
            "successUrl": "https://shop.example.jp/thanks",
            "test": True,
            "updatedAt": created,
            "url": f"https://checkout.smartpay.co/{id}",
        }
        return session

    def payment(self, number: int) -> Resource:
        order, nth = divmod(number, 8)
        fate, paid = self.fate(order), self.paid_at(number)
        refunds = [number * 4 + refund for refund in range(fate.refunds[nth])]
        wholly = fate.refunded == "wholly"
        payment: Resource = {
            "id": self.id("payment", number),
            "object": "payment",
            "amount": self.payment_amounts(order)[nth],
            "createdAt": paid,
            "currency": "JPY",
            "lineItems": [
                self.id("lineItem", order * 16 + item) for item in range(len(self.cart(order).items))
            ],
            "metadata": {},
            "order": self.id("order", order),
        }
        reference, told_on_order = self.reference(order)
        if reference and told_on_order:
            payment["reference"] = reference
        payment |= {
            "refunds": [self.id("refund", refund) for refund in refunds],
            "status": "refunded" if wholly else "processed",
            "test": True,
            "updatedAt": self.refunded_at(refunds[-1]) if wholly else paid,
        }
        return payment

    def refund(self, number: int) -> Resource:
        payment, nth = divmod(number, 4)
        draws = Draws(self.seed, b"refund", number)
        at = self.refunded_at(number)
        refund: Resource = {
            "id": self.id("refund", number),
            "object": "refund",
            "amount": self.refund_amounts(payment)[nth],
            "createdAt": at,
            "currency": "JPY",
        }
        if draws.chance(500):
            refund["description"] = draws.pick(_REFUND_TEXTS)
        refund |= {
            "metadata": {},
            "payment": self.id("payment", payment),
            "reason": "fraudulent" if draws.chance(40) else "requested_by_customer",
        }
        if draws.chance(400):
            refund["reference"] = f"返品-{draws.below(900_000) + 100_000}"
        failed = self.fate(payment // 8).refunded == "failed"
        return refund | {"status": "failed" if failed else "succeeded", "test": True, "updatedAt": at}

    def line_item(self, number: int) -> Resource:
        order, nth = divmod(number, 16)
        item, created = self.cart(order).items[nth], self.created_at(order)
        line: Resource = {"id": self.id("lineItem", number), "object": "lineItem"}
        if item.catalogue is None:
            line |= {"amount": item.amount, "currency": "JPY"}
            line["description"] = "消費税" if item.kind == "tax" else "クーポン割引"
        line |= {"createdAt": created, "kind": item.kind, "metadata": {}}
        if item.catalogue is not None:
            line["price"] = self.id("price", item.catalogue)
        return line | {"quantity": item.quantity, "test": True, "updatedAt": created}

    def price(self, number: int) -> Resource:
        created = self.epoch - _SPAN_DAYS * DAY_MS
        return {
            "id": self.id("price", number),
            "object": "price",
            "active": True,
            "amount": _CATALOGUE[number][2],
            "createdAt": created,
            "currency": "JPY",
            "metadata": {},
            "product": self.id("product", number),
            "test": True,
            "updatedAt": created,
        }

    def product(self, number: int) -> Resource:
        name, brand, _ = _CATALOGUE[number]
        created = self.epoch - _SPAN_DAYS * DAY_MS
        product: Resource = {"id": self.id("product", number), "object": "product", "active": True}
        if brand:
            product["brand"] = brand
        return product | {
            "categories": [],
            "createdAt": created,
            "images": [],
            "metadata": {},
            "name": name,
            "reference": f"SKU-{number + 1:04d}",
            "test": True,
            "updatedAt": created,
        }

    def token(self, number: int) -> Resource:
        oldest = min(self.orders, (number // 3 + 1) * 200) - 1  # the first order that may have used it
        created = self.created_at(oldest) - DAY_MS
        return {
            "id": self.id("token", number),
            "object": "token",
            "createdAt": created,
            "reference": f"member-{Draws(self.seed, b'token', number).below(900_000) + 100_000}",
            "status": "active",
            "test": True,
            "updatedAt": created,
        }

    def coupon(self, number: int) -> Resource:
        name, kind, value, _ = _COUPONS[number]
        created = self.epoch - (100 + number) * DAY_MS
        return {
            "id": self.id("coupon", number),
            "object": "coupon",
            "active": True,
            "createdAt": created,
            "currency": "JPY",
            "discountAmount" if kind == "amount" else "discountPercentage": value,
            "discountType": kind,
            "metadata": {},
            "name": name,
            "redemptionCount": 0,
            "sponsored": False,
            "test": True,
            "updatedAt": created,
        }

    def promotion_code(self, number: int) -> Resource:
        created = self.epoch - (100 + number) * DAY_MS
        return {
            "id": self.id("promotionCode", number),
            "object": "promotionCode",
            "active": True,
            "code": _COUPONS[number][3],
            "coupon": self.id("coupon", number),
            "createdAt": created,
            "currency": "JPY",
            "firstTimeTransaction": False,
            "metadata": {},
            "onePerCustomer": True,
            "redemptionCount": 0,
            "test": True,
            "updatedAt": created,
        }


_COUPONS: Final = [
    ("はじめての後払い 500円引き", "amount", 500, "HAJIMETE500"),
    ("夏のセール 10%引き", "percentage", 10, "NATSU10"),
    ("会員様 300円引き", "amount", 300, "KAIIN300"),
]


def _activity(at: int) -> float:
    """Japan's days since 1970, where an hour counts by how much is bought in it."""
    day, ms = divmod(at + _JST_MS, DAY_MS)
    hour, rest = divmod(ms, 3_600_000)
    share = _HOUR_BOUNDS[hour + 1] - _HOUR_BOUNDS[hour]
    return day + _HOUR_BOUNDS[hour] + share * rest / 3_600_000


def _moment(activity: float) -> int:
    """The inverse of `_activity`, to the millisecond."""
    day = math.floor(activity)
    part = activity - day
    hour = min(bisect_right(_HOUR_BOUNDS, part) - 1, 23)
    share = _HOUR_BOUNDS[hour + 1] - _HOUR_BOUNDS[hour]
    return int(day * DAY_MS + (hour + (part - _HOUR_BOUNDS[hour]) / share) * 3_600_000) - _JST_MS
