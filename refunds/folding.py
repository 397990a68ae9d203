"""What is typed and what is stored, brought to one form: text -> what a telephone can tell apart.

Used for the columns that are searched (customer_fields.py) and for what is looked for in them (search.py), so that both
always agree. Whoever changes a rule here has to fold every row anew.
"""

import re
import unicodedata

from refunds.variants import FORMS

# What carries no sound: separators of names (田中・太郎, ジャン゠ポール, O'Brien), variation selectors (葛󠄀),
# accents, and what is not seen (direction marks, zero-width joiners, the byte order mark). Blanks and control
# characters go as well.
SILENT = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u00ad\u0300-\u036f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufe00-\ufe0f\U000e0000-\U000e0fff\ud800-\udfff・·•‧∙⋅゠='`’‘´\"“”,、]+"
)
# Many registers have no small kana: シヨウコ. カヅヤ and カズヤ sound alike.
SOUNDS = str.maketrans("ァィゥェォッャュョヮヵヶヂヅヲヰヱ", "アイウエオツヤユヨワカケジズオイエ")
KATAKANA = {code: chr(code + 0x60).translate(SOUNDS) for code in (*range(0x3041, 0x3097), 0x309D, 0x309E)}
LATIN = {
    code: letter
    for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00))
    if (letter := unicodedata.normalize("NFD", chr(code))[0]).isascii()
}
ONE_FORM = KATAKANA | SOUNDS | LATIN | FORMS
RARE = re.compile("[々ヽヾヴ]")
# 佐々木, ミスヾ; not ウヾ, a ヴ that would wait for its vowel.
REPEATED = re.compile("(.)々|([アイエ-ン])([ヽヾ])")
V = {"": "ブ", "ア": "バ", "イ": "ビ", "エ": "ベ", "オ": "ボ"}
# An IME writes one key as a dash or as the sign of a long vowel: after kana it is a vowel, elsewhere a dash; ウ is one
# after オ: サトウ, サトー. Each depends on what stands before it alone, so that a name may be typed from its beginning.
LONG = re.compile("(?<=[オコソトノホモヨロゴゾドボポ])[ウー\\-‐‑‒–—―−─]+|[ー\\-‐‑‒–—―−─]+")
VOWELS = {"ン": ""} | {
    kana: vowel
    for vowel, row in {
        "ア": "アカサタナハマヤラワガザダバパ",
        "イ": "イキシチニヒミリギジビピ" + "エケセテネヘメレゲゼデベペ",  # ケイコ, and ケイイチ holds イチ
        "ウ": "ウクスツヌフムユルグズブプ",
        "オ": "オコソトノホモヨロゴゾドボポ",
    }.items()
    for kana in row
}
UNSAID = str.maketrans("", "", "-_/#.:")


def fold(text: str) -> str:
    """Return the text without what a telephone cannot tell: width, case, blanks, accents, script of kana, how a sound
    is written in it, forms of kanji.

    `ﾀﾅｶ　たろう` -> `タナカタロオ`, `髙﨑` -> `高崎`, `Taro@Example.JP` -> `taro@example.jp`. Folding twice is
    folding once.
    """
    if text.isascii():  # mails and references: no forms, no kana, and a dash is a dash
        return SILENT.sub("", text.lower())
    while (folded := _once(text)) != text:
        text = folded
    return text


def fold_reference(text: str) -> str:
    """Return a shop's order number folded, without the signs that nobody says: `#EC-2024/01` -> `ec202401`.

    What holds nothing else stays as it is.
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
