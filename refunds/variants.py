"""Old and other forms of kanji, and the one form that stands for them in a search.

JOYO is the table of 常用漢字表 (Cabinet Notice No. 2 of 2010: forms in brackets), as published in joyokanji 1.1.0
(PyPI, Apache-2.0), less the compatibility ideographs that Unicode's NFKC folds already. NAMES adds what family and
given names need beyond it: forms of 人名用漢字表 and of registers of families (髙, 﨑, 邉, 濵 …), written by hand,
each found in the families of ja-itaiji 1.0.2 (PyPI, MIT) too, but for 斉 and 齊 (heard as 斎), 內, 𠮷, 𣘺, 𡈽, 𫝆
and the radical ⻆, which some fonts and forms have for 角.

Another table replaces this one by another FORMS; every row has to be folded anew then.
"""

# Pairs: the old form, the form of today.
JOYO = (
    "乘乗亂乱亞亜佛仏來来倂併假仮傳伝僞偽價価儉倹兒児兩両剩剰劍剣劑剤勞労勳勲勵励勸勧區区卷巻卽即參参單単"
    "嚴厳囑嘱圈圏國国圍囲圓円圖図團団增増墮堕壓圧壘塁壞壊壤壌壯壮壹壱壽寿奧奥奬奨孃嬢學学寢寝實実寫写寬寛"
    "寶宝將将專専對対屆届屬属峽峡嶽岳巢巣帶帯廢廃廣広廳庁彈弾彌弥徑径從従徵徴德徳恆恒惠恵惡悪惱悩愼慎慘惨"
    "應応懷懐戀恋戰戦戲戯戾戻拂払拔抜拜拝挾挟插挿揭掲搖揺搜捜擇択擊撃擔担據拠擧挙擴拡攝摂收収效効敍叙敕勅"
    "數数斷断晚晩晝昼曆暦曉暁曾曽會会條条棧桟榮栄槪概樂楽樓楼樞枢樣様橫横檢検櫻桜權権歐欧歡歓步歩歷歴歸帰"
    "殘残殼殻毆殴每毎氣気涉渉淚涙淨浄淺浅渴渇溪渓溫温滯滞滿満潛潜澁渋澤沢濕湿濟済濱浜瀧滝瀨瀬灣湾燈灯燒焼"
    "營営爐炉爭争爲為犧犠狀状狹狭獨独獵猟獸獣獻献甁瓶畫画當当疊畳瘦痩癡痴發発盜盗盡尽眞真硏研碎砕祕秘禪禅"
    "禮礼稱称稻稲穗穂穩穏竊窃竝並粹粋絲糸經経綠緑緖緒緣縁縣県縱縦總総繩縄繪絵繼継續続纖繊缺欠罐缶聲声聽聴"
    "肅粛腦脳膽胆臟臓臺台與与舊旧艷艶莊荘莖茎萬万薰薫藏蔵藝芸藥薬處処虛虚號号螢蛍蟲虫蠶蚕蠻蛮衞衛裝装襃褒"
    "覺覚覽覧觀観觸触謠謡證証譯訳譽誉讀読變変讓譲豐豊豫予貳弐賣売賴頼贊賛踐践輕軽轉転辭辞遞逓遲遅邊辺郞郎"
    "鄕郷醉酔醫医釀醸釋釈錄録錢銭鍊錬鎭鎮鐵鉄鑄鋳鑛鉱關関陷陥隨随險険隱隠雙双雜雑霸覇靈霊靜静顯顕飜翻餘余"
    "騷騒驅駆驗験驛駅髓髄體体髮髪鬭闘鷄鶏鹽塩麥麦麵麺黃黄黑黒默黙點点黨党齋斎齒歯齡齢龍竜"
)

# Groups: the form that stands for all, then the others.
NAMES = """
高髙 崎﨑嵜碕㟢 斎齊斉 吉𠮷 内內 喜㐂 橋槗𣘺 税稅 説說 籠篭 間閒 槙槇 皐皋 辺邉 浜濵
島嶋嶌嶹 富冨 桑桒 柳栁桺 土圡𡈽 淵渕渊 館舘 昇曻 船舩 杉杦 卯夘 秋穐龝 野埜 松枩柗 凛凜
亘亙 巌巖 晃晄 晋晉 尭堯 遥遙 瑶瑤 桧檜 祢禰 穣穰 萌萠 猪豬 熙煕熈 啓啟 教敎 清淸
青靑 戸戶 産產 峰峯 群羣 鎌鐮 蒋蔣 薮藪籔 芦蘆 蘇蘓 柏栢 櫟檪 国圀囯 壺壷 体躰 鉄鐡銕
宝寳 禄祿 鯵鰺 鴎鷗 頬頰 焔焰 蝉蟬 靱靭 涼凉 沖冲 綿緜 莱萊 園薗 虎乕 駆駈 騨驒 麹麴
悦悅 鋭銳 脱脫 閲閱 彦彥 顔顏 呉吳 兎兔莵 郷鄉 尚尙 冴冱 翠翆 卒卆 隣鄰 舎舍 舗舖
呑吞 函凾 厩廐廏 亀龜 既旣 爾尓 侠俠 繋繫 祷禱 彝彜 鶯鴬 廼迺 略畧 岩嵒 従从 飲飮
没沒 鑑鑒 藁藳 蛎蠣 灌潅 昂昻 晒曬 涛濤 聡聰 栖棲 穎頴 遍徧 鐘鍾 桝枡 嘆歎 徳悳 梅楳
雁鴈 倶俱 剥剝 噛嚙 填塡 顛顚 醤醬 掻搔 繍繡 攪撹 躯軀 餅餠 姫姬 達逹 栃杤 村邨 角⻆
鶴靏靍靎 弁辨瓣辯 今𫝆 剣劔劒 強强 曳曵 淳湻 留畄㽞
"""

FORMS: dict[int, str] = {ord(old): new for old, new in zip(JOYO[::2], JOYO[1::2], strict=True)} | {
    ord(other): group[0] for group in NAMES.split() for other in group[1:]
}
