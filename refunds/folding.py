"""Folding: text -> one form for all that sounds alike on the telephone. `ﾀﾅｶ` and `たなか` are both `タナカ`.

The mirror folds the columns that are searched (customer_fields.py), and a search folds what somebody typed
(search/typed.py), so that both always agree. A change of a rule here requires that every row is folded anew.
"""

import re
import unicodedata

from refunds.variants import FORMS

# Characters without a sound of their own, which are removed: separators in names (田中・太郎, ジャン゠ポール, O'Brien),
# variation selectors (葛󠄀), accents, invisible characters (direction marks, zero-width joiners, the byte order mark),
# blanks and control characters.
SILENT = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u00ad\u0300-\u036f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufe00-\ufe0f\U000e0000-\U000e0fff\ud800-\udfff・·•‧∙⋅゠='`’‘´\"“”,、]+"
)
# Many registers write no small kana: シヨウコ for ショウコ. カヅヤ and カズヤ sound alike.
SOUNDS = str.maketrans("ァィゥェォッャュョヮヵヶヂヅヲヰヱ", "アイウエオツヤユヨワカケジズオイエ")
KATAKANA = {code: chr(code + 0x60).translate(SOUNDS) for code in (*range(0x3041, 0x3097), 0x309D, 0x309E)}
LATIN = {
    code: letter
    for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00))
    if (letter := unicodedata.normalize("NFD", chr(code))[0]).isascii()
}
ONE_FORM = KATAKANA | SOUNDS | LATIN | FORMS
RARE = re.compile("[々ヽヾヴ]")
# 佐々木, ミスヾ. Not ウヾ: it would become ヴ, whose fold depends on the vowel after it.
REPEATED = re.compile("(.)々|([アイエ-ン])([ヽヾ])")
V = {"": "ブ", "ア": "バ", "イ": "ビ", "エ": "ベ", "オ": "ボ"}
# Long vowels. An IME writes one key as ー or as a dash: after kana it repeats the vowel, elsewhere it is a dash. ウ
# after an o repeats it as well: サトウ and サトー are both サトオ. Only the character before decides, never the one
# after, so that the fold of a name's beginning is the beginning of the name's fold.
LONG = re.compile("(?<=[オコソトノホモヨロゴゾドボポ])[ウー\\-‐‑‒–—―−─]+|[ー\\-‐‑‒–—―−─]+")
VOWELS = {"ン": ""} | {
    kana: vowel
    for vowel, row in {
        "ア": "アカサタナハマヤラワガザダバパ",
        # ケーコ is ケイコ. After エ a long vowel is イ, not エ: ケイイチ has to hold イチ.
        "イ": "イキシチニヒミリギジビピ" + "エケセテネヘメレゲゼデベペ",
        "ウ": "ウクスツヌフムユルグズブプ",
        "オ": "オコソトノホモヨロゴゾドボポ",
    }.items()
    for kana in row
}
UNSAID = str.maketrans("", "", "-_/#.:")


def fold(text: str) -> str:
    """Return the text without what nobody can hear: width, case, blanks, accents, hiragana or katakana, spellings of
    one sound in kana, forms of kanji.

    `ﾀﾅｶ　たろう` -> `タナカタロオ`, `髙﨑` -> `高崎`, `Taro@Example.JP` -> `taro@example.jp`. Folding a folded text
    changes nothing.
    """
    if (
        text.isascii()
    ):  # mails and references: without kanji and kana only case and silent characters are left
        return SILENT.sub("", text.lower())
    while (folded := _once(text)) != text:
        text = folded
    return text


def fold_reference(text: str) -> str:
    """Return a shop's order number folded, without the signs that nobody says: `#EC-2024/01` -> `ec202401`.

    A number of nothing but such signs keeps them: `-/#` -> `-/#`.
    """
    folded = fold(text)
    return folded.translate(UNSAID) or folded


def _once(text: str) -> str:
    text = SILENT.sub("", unicodedata.normalize("NFKC", text).casefold()).translate(ONE_FORM)
    if RARE.search(text):
        text = REPEATED.sub(_repeat, re.sub("ヴ([アイエオ]?)", lambda match: V[match[1]], text))
    return LONG.sub(_lengthen, text)


def _repeat(match: re.Match[str]) -> str:
    kanji, kana, mark = match.groups()
    if kanji:
        return kanji * 2
    again = unicodedata.normalize("NFD", kana)[0]
    return kana + (again if mark == "ヽ" else unicodedata.normalize("NFC", again + "\u3099"))


def _lengthen(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    return VOWELS.get(before, "-") * len(match[0])
