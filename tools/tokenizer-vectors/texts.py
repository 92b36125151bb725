"""The texts of the test vectors: made once from a fixed seed; make_vectors.py keeps them in texts.hex."""
import random
import unicodedata

SENTENCES = """\
The quick brown fox jumps over the lazy dog; it didn't care, they'll say, we've seen "worse" -- haven't we?
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.
Portez ce vieux whisky au juge blond qui fume, n'est-ce pas ? L'œuvre d'Hélène à Noël.
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; ¿añoraba a su querido cachorro?
Příliš žluťoučký kůň úpěl ďábelské ódy.
Pchnąć w tę łódź jeża lub ośm skrzyń fig.
Árvíztűrő tükörfúrógép.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п'яне знаємо.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
דג סקרן שט בים מאוכזב ולפתע מצא חברה.
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق ١٢٣٤٥
برای ما گونه‌ای دیگر است؛ می‌خواهم ۱۲۳۴۵۶ بنویسم.
ہر قسم کے ظلم کے خلاف آواز اٹھانا چاہیے۔
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार भगवान श्रीराम। १२३४५
আমি কাঁচ খেতে পারি, তাতে আমার কোনো ক্ষতি হয় না। ১২৩৪
ਮੈਂ ਗਲਾਸ ਖਾ ਸਕਦਾ ਹਾਂ ਅਤੇ ਇਸ ਨਾਲ ਮੈਨੂੰ ਕੋਈ ਤਕਲੀਫ ਨਹੀਂ।
હું કાચ ખાઇ શકુ છુ અને તેનાથી મને દર્દ નથી થતુ.
நான் கண்ணாடி சாப்பிடுவேன், அதனால் எனக்கு ஒரு கேடும் வராது.
నేను గాజు తినగలను అయినా నాకు ఏమీ కాదు.
ನಾನು ಗಾಜನ್ನು ತಿನ್ನಬಲ್ಲೆ, ಅದರಿಂದ ನನಗೆ ಏನೂ ಆಗುವುದಿಲ್ಲ.
എനിക്ക് ഗ്ലാസ് തിന്നാം. അതെന്നെ വേദനിപ്പിക്കില്ല.
මට වීදුරු කෑමට හැකියි. එයින් මට කිසි හානියක් සිදු නොවේ.
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓๔๕
ຂອ້ຍກິນແກ້ວໄດ້ໂດຍທີ່ມັນບໍ່ໄດ້ເຮັດໃຫ້ຂອ້ຍເຈັບ.
ကျွန်တော် ကျွန်မ မှန်စားနိုင်တယ်။ ၎င်းကြောင့် ထိခိုက်မှုမရှိပါ။
ខ្ញុំអាចញុំកញ្ចក់បាន ដោយគ្មានបញ្ហារ ១២៣៤
ཤེལ་སྒོ་ཟ་ནས་ང་ན་གི་མ་རེད།
მინას ვჭამ და არა მტკივა.
Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ։
እኔ መስታወት መብላት እችላለሁ፡፡ ፩፪፫
ᠪᠢ ᠰᠢᠯᠢ ᠢᠳᠡᠶᠦ ᠴᠢᠳᠠᠨᠠ᠂ ᠨᠠᠳᠤᠷ ᠬᠣᠤᠷᠠᠳᠠᠢ ᠪᠢᠰᠢ
我能吞下玻璃而不伤身体。2024年12月25日，价格：￥1,234.56元（含税）！
我能吞下玻璃而不傷身體。「春眠不覺曉，處處聞啼鳥。」
いろはにほへと ちりぬるを。カタカナとﾊﾝｶｸ、ーのばし々〆〇ヶ月。
다람쥐 헌 쳇바퀴에 타고파. 키스의 고유조건은 입술끼리 만나야 하고.
Tiếng Việt: Tôi có thể ăn thủy tinh mà không hại gì, đường phố Hà Nội.
ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ᛫ᚠᛁᚱᚪ᛫ᚷᛖᚻᚹᛦᛚᚳᚢᛗ
𐌼𐌰𐌲 𐌲𐌻𐌴𐍃 𐌹̈𐍄𐌰𐌽, 𐌽𐌹 𐌼𐌹𐍃 𐍅𐌿 𐌽𐌳𐌰𐌽 𐌱𐍂𐌹𐌲𐌲𐌹𐌸.
𝔗𝔥𝔢 𝕢𝕦𝕚𝕔𝕜 𝓫𝓻𝓸𝔀𝓷 𝖋𝖔𝖝 𝟏𝟐𝟑𝟒 ℕ⊆ℝ ∀x∈A: ∑ᵢ xᵢ² ≤ ∞ ± √2 ≠ π
Ŧĥïş ĩś à ťéšţ ưïŧĥ ďíåçřïťïčš; ﬁ ﬂ ﬀ ĳ Ǆ ß ẞ ı İ ſ K Å
ⅠⅡⅢ ⅳ ½ ⅓ ¼ ² ³ ₁₂ ① ② ⑩ ㊀ ㋀ ０１２３４５ ٠١٢ ۰۱۲ ०१२ 〇〡〢 𝟘𝟙𝟚 𞥐𞥑 🯰🯱
""".splitlines()

CODE = [
    "def f(x, *args, **kw):\n    \"\"\"doc\"\"\"\n    return [i**2 for i in range(10) if i%2==0]  # squares\n",
    "#include <stdio.h>\nint main(void)\n{\n\tprintf(\"%d\\n\", 1<<3);\n\treturn 0;\n}\n",
    "for (size_t i = 0; i < n; i++) { a[i] += b[i] * 0x1F; /* fused? */ }\r\n",
    "{\"key\": [1, 2.5e-3, null, true], \"nested\": {\"a\": \"b\\u00e9\"}}",
    "<div class=\"a b\"><p>Hello&nbsp;world</p><!-- c --></div>",
    "SELECT * FROM t WHERE a>=10 AND name LIKE '%o''brien%';",
    "$ curl -sSL https://example.com/a?b=c&d=%20 | sh -x 2>&1 >/dev/null",
    "fn main() -> Result<(), Box<dyn Error>> { let v: Vec<u8> = vec![0; 16]; Ok(()) }",
    "    \t    mixed\tindent\n\t\t  and tabs \t\n\n\n   end   ",
    "a_b_c.dEF$gH @param #tag ~/path/to\\file ..\\..\\x ::std::vector<int>>",
    "const re = /^(?:[a-z]+\\d{2,})$/gi; x ??= y?.z ?? `t${1+1}`;",
    "\\begin{equation} \\frac{\\partial f}{\\partial x} = \\sum_{i=1}^{n} x_i^2 \\end{equation}",
    "+----+-----+\n| a  | b   |\n+====+=====+\n|  1 | 2.0 |\n+----+-----+",
    "#!/usr/bin/env bash\nset -euo pipefail\n[[ -z \"${X:-}\" ]] && exit 1\n",
    "diff --git a/x b/x\n@@ -1,3 +1,4 @@\n-old\n+new\n",
]

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "1️⃣2️⃣", "❤️", "☺", "🧑🏿‍🚀", "🤷🏻‍♀️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "⌚️", "©®™", "🫠🫡", "🪿🫨", "⚠️!", "→←↔",
         "♞", "🀄", "🂡", "🜀", "\U0001FAE9", "\U0001F6DC"]

SPECIALS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
            "<｜fim▁hole｜>", "<|EOT|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜place▁holder▁no▁1｜>",
            "<｜place▁holder▁no▁10｜>", "<｜place▁holder▁no▁100｜>"]

# Added tokens of mini.json
MINI = ["<L>", "<R>", "<LR>", "wort", "<n>", "<n><s>", " sp", "äö", "<plain>", "the", "new line", "\n\n#", "<W>"]

BROKEN = ["80", "c0af", "e0809f", "eda080", "edbfbf", "f4908080", "f888808080", "fc8480808080", "fe", "ff", "c3", "e282", "f09f98",
          "61c362", "61e28262", "61f09f9862", "f09f9880f09f98", "e282ac80", "c3a9c3", "ffff", "f0808080", "f1", "f18080", "efbfbd",
          "efbfbf", "e4b8adff", "20c3", "c320", "31e6", "0ae58d", "61ccff81", "f0288cbc", "f0902880", "efbb", "efbbbf41"]

SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2003", "\u200b", "\u200d", "\u180e", "\u0085", "\u2028", "\x0b", "\x0c",
          "\ufeff", "\u1680", "\u202f", "\r"]


def assigned(cp):
    return not 0xD800 <= cp <= 0xDFFF and unicodedata.category(chr(cp)) != "Cn"


def characters(rng):
    """One of every row of 16 code points that has any, so of every block; of the great blocks one in 1,024."""
    great = [(0x3400, 0x9FFF), (0xA000, 0xA4CF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0x12000, 0x1246F), (0x13000, 0x1342F),
             (0x14400, 0x1467F), (0x16800, 0x16A3F), (0x17000, 0x18CD5), (0x1B170, 0x1B2FF), (0x1D100, 0x1D7FF),
             (0x1E800, 0x1E8DF), (0x20000, 0x3FFFF), (0xF0000, 0x10FFFF)]
    row = 0
    while row < 0x110000:
        size = 1024 if row >= 0x20000 else 16
        if any(a <= row <= b for a, b in great):
            size = min(size * 16, 1024) if row < 0x20000 else 0x8000
        here = [c for c in range(row, min(row + size, 0x110000)) if assigned(c)]
        if here:
            yield chr(rng.choice(here))
        row += size


def mixture(rng, parts, n):
    return "".join(rng.choice(parts) for _ in range(n))


def script_words(rng):
    base = rng.choice([0x41, 0x61, 0xC0, 0x100, 0x370, 0x400, 0x531, 0x5D0, 0x620, 0x710, 0x780, 0x904, 0x985, 0xB05, 0xC05, 0xE01,
                       0xF40, 0x1000, 0x10D0, 0x1100, 0x1200, 0x13A0, 0x1401, 0x1780, 0x1820, 0x1E00, 0x2C00, 0x2D30, 0x3041,
                       0x30A1, 0x3105, 0x4E00, 0x9F00, 0xA000, 0xA4D0, 0xAC00, 0xFF21, 0x10330, 0x10400, 0x12000, 0x16A40,
                       0x1D400, 0x1E900, 0x20000, 0x2F800])
    words = []
    for _ in range(rng.randrange(1, 5)):
        words.append("".join(chr(base + rng.randrange(24)) for _ in range(rng.randrange(1, 7))))
    return rng.choice([" ", " ", "\n", ", ", "-", "", "12"]).join(words)


def make_texts():
    rng = random.Random(20240607)
    texts = ["".encode()]

    def add(text):
        texts.append(text if isinstance(text, bytes) else text.encode("utf-8"))

    for text in SENTENCES + CODE + EMOJI + SPECIALS + MINI:
        add(text)
    for text in SENTENCES:
        words = text.split(" ")
        add(" ".join(words[:4]))
        add(unicodedata.normalize("NFD", text)[:60])
        add(" " + words[-1] + " \n")
        add(text.upper()[:40] + "  " + text[-9:])
    for cp in range(256):
        add(bytes([cp]))
    for char in characters(rng):
        add(char)
    for char in characters(rng):
        if rng.random() < 0.25:
            add("a" + char + "1 " + char + char + "." + char)
    for hexa in BROKEN:
        add(bytes.fromhex(hexa))
    for _ in range(120):  # damaged text
        text = bytearray(rng.choice(SENTENCES + EMOJI).encode()[:40])
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text))
            text[at] = rng.randrange(128, 256)
        cut = rng.randrange(len(text))
        add(bytes(text[cut:cut + 24]))
    for _ in range(40):
        add(bytes(rng.randrange(256) for _ in range(rng.randrange(1, 12))))
    for _ in range(150):  # spaces and line ends
        add(mixture(rng, SPACES[:5] * 2 + SPACES + ["a", "1", ".", "中", "é"], rng.randrange(1, 9)))
    for _ in range(120):  # digits
        add(mixture(rng, list("0123456789") * 2 + [".", ",", "-", " ", "e", "%", "١", "２", "Ⅳ", "½", "中"], rng.randrange(1, 16)))
    for _ in range(150):  # specials in text
        add(mixture(rng, SPECIALS + ["a", " ", "  ", "\n", "Hi", "<", "<｜", "｜>", "▁", "x.", "中"], rng.randrange(1, 5)))
    for special in SPECIALS[:6]:
        for cut in (1, 4, len(special) // 2, len(special) - 1):
            add("a" + special[:cut] + " " + special[cut:])
    for _ in range(250):  # mini.json's added tokens with all their flags
        add(mixture(rng, MINI + ["a", " ", "  ", "\n", "\u00a0", "_", "9", "X", "::", ".", "wo", "the", "\u0301", "<", "\u3000"], rng.randrange(1, 8)))
    for _ in range(60):
        add(mixture(rng, EMOJI + [" ", "a", "\u200d", "\ufe0f", "\U0001F3FD"], rng.randrange(1, 4)))
    for _ in range(60):  # combining marks
        marks = "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randrange(1, 6)))
        add(rng.choice(["a", "", " ", "1", ".", "\n", "中", "ש", "ก"]) + marks + rng.choice(["b", "", " "]))
    for _ in range(200):
        add(script_words(rng))
    for _ in range(60):  # code points from everywhere, assigned or not
        add("".join(chr(rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x20000), rng.randrange(0x20000, 0x110000)]))
                    for _ in range(rng.randrange(1, 6))))
    for _ in range(60):
        add(mixture(rng, list("'\"`-_=+*/\\|&^%$#@!~?.,;:()[]{}<>") + ["a", " ", "\n", "don't", "I'LL"], rng.randrange(1, 12)))
    for run in ("a", " ", "\n", "=", "-", "0", "é", "中", "ab", "\t", "😀", "\r\n", "<", "\u0301", " a", "xyzzy", "1a"):
        for n in (41, 300):
            add(run * (n // len(run)))
    add("a" * 5000)
    add(" " * 3000 + "x")
    add("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(600)))
    seen, unique = set(), []
    for text in texts:
        if text not in seen:
            seen.add(text)
            unique.append(text)
    return unique
