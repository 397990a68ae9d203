"""Customers as Japanese shops know them: who is common, and how differently one name is written.

Family names follow the order and roughly the weights of published name rankings; 田中 is about
1.3 % of all customers. The rare half of the country is put together from the usual parts of place
names, so that there are hundreds of names nobody listed. All of it is invented: mails use the
domains reserved for examples (RFC 2606 and JPRS), telephone numbers start with 090-0000.
"""

import unicodedata
from typing import NamedTuple

from .draws import Draws, Weighted


class Name(NamedTuple):
    """One family or given name: as written, in katakana, in romaji."""

    written: str
    kana: str
    romaji: str


# written, katakana, romaji, customers in 10,000
_FAMILY = """
佐藤 サトウ sato 185|鈴木 スズキ suzuki 170|高橋 タカハシ takahashi 136|田中 タナカ tanaka 137
伊藤 イトウ ito 103|渡辺 ワタナベ watanabe 92|山本 ヤマモト yamamoto 101|中村 ナカムラ nakamura 100
小林 コバヤシ kobayashi 98|加藤 カトウ kato 85|吉田 ヨシダ yoshida 80|山田 ヤマダ yamada 78
佐々木 ササキ sasaki 65|山口 ヤマグチ yamaguchi 62|松本 マツモト matsumoto 60|井上 イノウエ inoue 59
木村 キムラ kimura 55|林 ハヤシ hayashi 53|斎藤 サイトウ saito 34|清水 シミズ shimizu 51
山崎 ヤマザキ yamazaki 44|森 モリ mori 44|池田 イケダ ikeda 43|橋本 ハシモト hashimoto 43|阿部 アベ abe 41
石川 イシカワ ishikawa 41|山下 ヤマシタ yamashita 40|中島 ナカジマ nakajima 38|小川 オガワ ogawa 37
石井 イシイ ishii 37|前田 マエダ maeda 37|岡田 オカダ okada 36|長谷川 ハセガワ hasegawa 36
藤田 フジタ fujita 35|後藤 ゴトウ goto 35|近藤 コンドウ kondo 34|村上 ムラカミ murakami 32
遠藤 エンドウ endo 32|青木 アオキ aoki 31|坂本 サカモト sakamoto 31|福田 フクダ fukuda 29|太田 オオタ ota 28
西村 ニシムラ nishimura 28|藤井 フジイ fujii 28|岡本 オカモト okamoto 27|金子 カネコ kaneko 27
藤原 フジワラ fujiwara 27|三浦 ミウラ miura 26|中野 ナカノ nakano 26|中川 ナカガワ nakagawa 26
原田 ハラダ harada 26|松田 マツダ matsuda 25|竹内 タケウチ takeuchi 25|小野 オノ ono 24|田村 タムラ tamura 24
中山 ナカヤマ nakayama 23|和田 ワダ wada 23|石田 イシダ ishida 22|森田 モリタ morita 21|上田 ウエダ ueda 21
原 ハラ hara 21|内田 ウチダ uchida 20|柴田 シバタ shibata 20|酒井 サカイ sakai 20|宮崎 ミヤザキ miyazaki 19
横山 ヨコヤマ yokoyama 19|高木 タカギ takagi 19|安藤 アンドウ ando 19|谷口 タニグチ taniguchi 18
大野 オオノ ono 18|丸山 マルヤマ maruyama 18|今井 イマイ imai 18|河野 コウノ kono 17|小島 コジマ kojima 17
武田 タケダ takeda 17|上野 ウエノ ueno 17|杉山 スギヤマ sugiyama 16|千葉 チバ chiba 16|村田 ムラタ murata 16
増田 マスダ masuda 16|平野 ヒラノ hirano 15|大塚 オオツカ otsuka 15|菅原 スガワラ sugawara 15
久保 クボ kubo 15|松井 マツイ matsui 14|小山 コヤマ koyama 14|岩崎 イワサキ iwasaki 14
木下 キノシタ kinoshita 14|野口 ノグチ noguchi 14|松尾 マツオ matsuo 14|野村 ノムラ nomura 14
菊地 キクチ kikuchi 13|佐野 サノ sano 13|渡部 ワタナベ watanabe 13|大西 オオニシ onishi 12
古川 フルカワ furukawa 12|浜田 ハマダ hamada 12|市川 イチカワ ichikawa 12|五十嵐 イガラシ igarashi 11
髙橋 タカハシ takahashi 14|渡邉 ワタナベ watanabe 12|渡邊 ワタナベ watanabe 12|斉藤 サイトウ saito 25
齋藤 サイトウ saito 9|齊藤 サイトウ saito 5|山﨑 ヤマザキ yamazaki 7|濵田 ハマダ hamada 3|濱田 ハマダ hamada 4
宮﨑 ミヤザキ miyazaki 4|髙木 タカギ takagi 3|冨田 トミタ tomita 5|富田 トミタ tomita 8
桑原 クワバラ kuwabara 8|廣瀬 ヒロセ hirose 5|広瀬 ヒロセ hirose 9|國分 コクブン kokubun 2
澤田 サワダ sawada 6|沢田 サワダ sawada 7|小笠原 オガサワラ ogasawara 6|勅使河原 テシガワラ teshigawara 1
東海林 ショウジ shoji 2|小鳥遊 タカナシ takanashi 1|一 ニノマエ ninomae 1|𠮷田 ヨシダ yoshida 4
"""

# The parts of the names below the first hundred, by place and growth: 上+沢, 黒+木, 若+林 …
_FIRST = """
上 カミ kami|下 シモ shimo|大 オオ o|小 コ ko|中 ナカ naka|西 ニシ nishi|東 ヒガシ higashi|北 キタ kita
南 ミナミ minami|高 タカ taka|長 ナガ naga|青 アオ ao|黒 クロ kuro|白 シラ shira|松 マツ matsu|竹 タケ take
杉 スギ sugi|梅 ウメ ume|桜 サクラ sakura|藤 フジ fuji|石 イシ ishi|岩 イワ iwa|水 ミズ mizu|福 フク fuku
永 ナガ naga|若 ワカ waka|新 ニイ nii|古 フル furu|平 ヒラ hira|戸 ト to|栗 クリ kuri|星 ホシ hoshi
堀 ホリ hori|関 セキ seki|宮 ミヤ miya|村 ムラ mura
"""
_SECOND = """
田 タ ta 12|山 ヤマ yama 6|川 カワ kawa 6|村 ムラ mura 6|木 キ ki 5|野 ノ no 6|原 ハラ hara 5|島 シマ shima 5
崎 サキ saki 4|沢 サワ sawa 4|谷 タニ tani 4|井 イ i 5|口 グチ guchi 3|本 モト moto 5|瀬 セ se 3|岡 オカ oka 3
塚 ヅカ zuka 2|橋 ハシ hashi 2|森 モリ mori 2|林 バヤシ bayashi 2|尾 オ o 3|内 ウチ uchi 3|倉 クラ kura 2
浦 ウラ ura 2
"""
_GIVEN = """
太郎 タロウ taro 18|健一 ケンイチ kenichi 30|翔太 ショウタ shota 34|大輔 ダイスケ daisuke 36
誠 マコト makoto 34|直樹 ナオキ naoki 30|拓也 タクヤ takuya 30|健太 ケンタ kenta 28|浩 ヒロシ hiroshi 26
隆 タカシ takashi 26|蓮 レン ren 22|陽翔 ハルト haruto 18|大翔 ヒロト hiroto 16|悠真 ユウマ yuma 14
颯 ハヤテ hayate 10|湊 ミナト minato 14|一郎 イチロウ ichiro 16|次郎 ジロウ jiro 8|和也 カズヤ kazuya 22
達也 タツヤ tatsuya 22|哲也 テツヤ tetsuya 20|亮 リョウ ryo 22|学 マナブ manabu 14|剛 ツヨシ tsuyoshi 16
修 オサム osamu 16|茂 シゲル shigeru 14|清 キヨシ kiyoshi 12|裕介 ユウスケ yusuke 20|雄太 ユウタ yuta 20
康平 コウヘイ kohei 16|慎太郎 シンタロウ shintaro 8|龍之介 リュウノスケ ryunosuke 6|花子 ハナコ hanako 12
陽子 ヨウコ yoko 34|恵子 ケイコ keiko 32|久美子 クミコ kumiko 28|由美子 ユミコ yumiko 28|裕子 ユウコ yuko 30
真由美 マユミ mayumi 28|智子 トモコ tomoko 26|直子 ナオコ naoko 24|美咲 ミサキ misaki 30|愛 アイ ai 28
彩 アヤ aya 22|結衣 ユイ yui 20|葵 アオイ aoi 20|陽菜 ヒナ hina 18|さくら サクラ sakura 18|凛 リン rin 14
美穂 ミホ miho 20|香織 カオリ kaori 24|恵美 エミ emi 22|明美 アケミ akemi 20|麻衣 マイ mai 20
千尋 チヒロ chihiro 12|幸子 サチコ sachiko 18|和子 カズコ kazuko 18|節子 セツコ setsuko 10
京子 キョウコ kyoko 18|あゆみ アユミ ayumi 14|ひかり ヒカリ hikari 8|めぐみ メグミ megumi 12
みゆき ミユキ miyuki 10|マリア マリア maria 4|エリカ エリカ erika 6|奈々 ナナ nana 16|優子 ユウコ yuko 20
美奈子 ミナコ minako 14|友美 トモミ tomomi 18|紗希 サキ saki 12|詩織 シオリ shiori 10
"""
# Family and given name, kana of both, romaji for the mail; an underscore stands for a blank.
_FOREIGN = """
NGUYEN VAN_AN グエン ヴァンアン nguyen an|TRAN THI_HOA トラン ティホア tran hoa
SMITH JOHN スミス ジョン smith john|王 秀英 オウ シュウエイ wang xiuying|李 明 リ メイ li ming
金 民洙 キム ミンス kim minsu|朴 智恵 パク チヘ park jihye
GARCIA MARIA_ISABEL ガルシア マリアイサベル garcia maria|SHARMA PRIYA シャルマ プリヤ sharma priya
O'BRIEN KATE オブライエン ケイト obrien kate|MÜLLER ANNA ミュラー アンナ mueller anna
DELA_CRUZ JUAN デラクルス フアン delacruz juan|Nakamura Lisa ナカムラ リサ nakamura lisa
"""
_DOMAINS = ["example.jp", "example.com", "example.co.jp", "mail.example.jp", "example.ne.jp", "example.net"]


def _rows(table: str) -> list[list[str]]:
    return [row.split() for line in table.strip().splitlines() for row in line.split("|")]


def _names(table: str) -> list[tuple[Name, int]]:
    return [(Name(written, kana, romaji), int(weight)) for written, kana, romaji, weight in _rows(table)]


FAMILIES = Weighted(_names(_FAMILY))
GIVEN = Weighted(_names(_GIVEN))
_FIRSTS = [Name(*row) for row in _rows(_FIRST)]
_SECONDS = Weighted(_names(_SECOND))
_FOREIGNERS = [[part.replace("_", " ") for part in row] for row in _rows(_FOREIGN)]
# NFKC turns half-width kana into full-width ones; old shop systems still store the former.
_HALF_WIDTH = {
    unicodedata.normalize("NFKC", base + mark): base + mark
    for base in map(chr, range(0xFF66, 0xFF9E))
    for mark in ("", "ﾞ", "ﾟ")
    if len(unicodedata.normalize("NFKC", base + mark)) == 1
}


def half_width(kana: str) -> str:
    """ガ becomes ｶﾞ, as in data that once passed through a bank's or a parcel service's files."""
    return "".join(_HALF_WIDTH.get(character, character) for character in kana)


def hiragana(kana: str) -> str:
    return "".join(chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c for c in kana)


def person(draws: Draws) -> tuple[Name, Name]:
    """Draw a customer: family name, given name."""
    if draws.chance(15):
        family, given, family_kana, given_kana, family_romaji, given_romaji = draws.pick(_FOREIGNERS)
        return Name(family, family_kana, family_romaji), Name(given, given_kana, given_romaji)
    given_name = draws.weighted(GIVEN)
    if draws.below(10_000) < FAMILIES.bounds[-1]:
        return draws.weighted(FAMILIES), given_name
    first, second = draws.pick(_FIRSTS), draws.weighted(_SECONDS)
    return Name(*("".join(pair) for pair in zip(first, second, strict=True))), given_name


def mail(family: Name, given: Name, draws: Draws) -> str:
    """An address as people choose them; some with a +tag, some typed with capitals."""
    number = str(draws.below(90) + 10)
    local = draws.pick(
        [
            f"{given.romaji}.{family.romaji}",
            f"{family.romaji}.{given.romaji}",
            f"{given.romaji[0]}.{family.romaji}{number}",
            f"{family.romaji}{number}",
            f"{given.romaji}_{family.romaji}{number}",
            f"{given.romaji}19{number}",
        ]
    )
    if draws.chance(60):
        local += draws.pick(["+shop", "+smartpay", "+test", "+ec"])
    address = f"{local}@{draws.pick(_DOMAINS)}"
    if draws.chance(70):
        return draws.pick([address.title(), address.upper(), address.replace(local, local.capitalize())])
    return address


def customer_info(family: Name, given: Name, draws: Draws) -> dict[str, object]:
    """What a shop sent along when its checkout began: every field is optional, and some are odd.

    Source: the contract's section on customerInfo (all optional; `email` beside `emailAddress`;
    official test data with the family name in `firstName`).
    """
    address = mail(family, given, draws)
    last, first = family, given
    if draws.chance(40):  # a shop that took "first name" for the name that comes first
        last, first = given, family
    kana = draws.below(1000)
    if kana < 30:
        last_kana, first_kana = half_width(last.kana), half_width(first.kana)
    elif kana < 55:
        last_kana, first_kana = hiragana(last.kana), hiragana(first.kana)
    elif kana < 75:  # a form that asked for the reading and let anything pass
        last_kana, first_kana = last.romaji.capitalize(), first.romaji.capitalize()
    else:
        last_kana, first_kana = last.kana, first.kana
    info: dict[str, object] = {
        "email" if draws.chance(50) else "emailAddress": address,
        "firstName": first.written,
        "lastName": last.written,
    }
    if draws.chance(880):
        info |= {"firstNameKana": first_kana, "lastNameKana": last_kana}
    if draws.chance(25):  # one field for the whole name, the other left empty
        info["lastName"] = f"{family.written}{draws.pick([' ', '\u3000', ''])}{given.written}"
        del info["firstName"]
    if draws.chance(600):
        info["phoneNumber"] = f"090-0000-{draws.below(10_000):04d}"
    if draws.chance(500):
        info["accountAge"] = draws.below(2000)
        info["reference"] = f"member-{draws.below(900_000) + 100_000}"
    return info
