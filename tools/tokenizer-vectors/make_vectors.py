#!/usr/bin/env python3
"""Makes tests/model/tokenizer/vectors: texts and the ids that Hugging Face tokenizers gives them.

  pip install tokenizers==0.23.3
  scripts/fetch-v3-tokenizer.sh /tmp/v3
  tools/tokenizer-vectors/make_vectors.py --v3 /tmp/v3      all of it
  tools/tokenizer-vectors/make_vectors.py                   after models/tiny-v32/tokenizer.json changed

texts.hex  one text a line        mini.json  a small tokenizer with every flag of added tokens
NAME.ids   `# fnv1a` of tokenizer.json, then the ids of each line of texts.hex
NAME.more  lines `P hex ids`: encoded with special tokens as text; `D ids: hex`: decoded; `S`: without special tokens
mini.pieces  a CRC-32 over the lengths of the pieces of every 1,024 code points (see sweep_text)

Texts are kept once they are there (--new-texts: made anew). Bytes that are no UTF-8 count as bytes.decode(errors="replace").
"""
import argparse
import json
import os
import random
import struct
import sys
import zlib

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import texts as texts_module

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
OUT = os.path.join(ROOT, "tests", "model", "tokenizer", "vectors")
V3_PATTERNS = [
    "\\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def make_mini(path):
    """DeepSeek-V3's patterns and three odd ones, 256 bytes and 250 merges, and added tokens with all flags."""
    tok = Tokenizer(models.BPE())

    def split(pattern):
        return pre_tokenizers.Split(pattern, "isolated")

    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [split(Regex(p)) for p in V3_PATTERNS]
        + [split("::"), split(Regex("(?=[A-Z])|\\d{2}|(?<=_)|x+?")), split(Regex("[^\\s\\d]{5,7}(?<!e)|[^\\s]+?e|\\P{L}(?>a?)\\D"))]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    corpus = texts_module.SENTENCES + texts_module.CODE + ["the then there other new line"] * 20
    tok.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=506, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tok.token_to_id("the") is not None
    for content, flags in [("<L>", {"lstrip": True}), ("<R>", {"rstrip": True}), ("<LR>", {"lstrip": True, "rstrip": True}),
                           ("wort", {"single_word": True}), ("<n>", {}), ("<n><s>", {}), (" sp", {}), ("äö", {"special": True}),
                           ("<plain>", {"normalized": True}), ("the", {"single_word": True, "normalized": True}),
                           ("new line", {"normalized": True, "lstrip": True}), ("\n\n#", {"rstrip": True, "special": True}),
                           ("<W>", {"single_word": True, "lstrip": True, "rstrip": True, "special": True}),
                           ("<｜begin▁of▁sentence｜>", {"special": True}), ("<｜end▁of▁sentence｜>", {"special": True})]:
        flags = {"normalized": False, "special": False} | flags
        special = flags.pop("special")
        token = AddedToken(content, **flags)
        (tok.add_special_tokens if special else tok.add_tokens)([token])
    data = json.loads(tok.to_str())
    with open(path, "w", encoding="utf-8") as out:
        json.dump(data, out, ensure_ascii=False, separators=(",", ":"))


def numbers(ids):
    return " ".join(map(str, ids))


def more_lines(tok, texts, name):
    rng = random.Random(name)
    marked = [t for t in texts if any(s.encode() in t for s in texts_module.SPECIALS + texts_module.MINI)]
    tok.encode_special_tokens = True
    for text in rng.sample(marked, 80):
        yield f"P {text.hex()}: {numbers(tok.encode(text.decode(errors='replace'), add_special_tokens=False).ids)}"
    tok.encode_special_tokens = False
    n = tok.get_vocab_size()
    added = list(tok.get_added_tokens_decoder())
    for kind in "DS" * 60:
        ids = [rng.choice(added) if rng.random() < 0.2 else rng.randrange(n) if rng.random() < 0.6 else rng.randrange(256)
               for _ in range(rng.randrange(1, 12))]
        text = tok.decode(ids, skip_special_tokens=kind == "S")
        yield f"{kind} {text.encode().hex()}: {numbers(ids)}"


def write_ids(name, path, texts):
    tok = Tokenizer.from_file(path)
    with open(path, "rb") as file:
        head = f"# fnv1a {fnv1a(file.read()):016x} tokenizers {tokenizers.__version__}"
    with open(os.path.join(OUT, name + ".ids"), "w", encoding="ascii") as out:
        print(head, file=out)
        for text in texts:
            print(numbers(tok.encode(text.decode(errors="replace"), add_special_tokens=False).ids), file=out)
    with open(os.path.join(OUT, name + ".more"), "w", encoding="ascii") as out:
        print(head, file=out)
        for line in more_lines(tok, texts, name):
            print(line, file=out)


def sweep_text(first):
    """1,024 code points, each next to letters, digits, spaces, punctuation and itself."""
    return "".join("a{0}b{0}1{0} {0}.{0}{0}\n{0}\t".format(chr(c)) for c in range(first, first + 1024))


def write_pieces(path):
    pre = Tokenizer.from_file(path).pre_tokenizer
    with open(os.path.join(OUT, "mini.pieces"), "w", encoding="ascii") as out:
        for first in range(0, 0x110000, 1024):
            if 0xD800 <= first < 0xE000:
                continue
            lengths = [len(piece) for piece, _ in pre.pre_tokenize_str(sweep_text(first))]
            print(f"{first:x} {zlib.crc32(struct.pack(f'<{len(lengths)}I', *lengths)):08x}", file=out)


def load_texts(anew):
    path = os.path.join(OUT, "texts.hex")
    if anew or not os.path.exists(path):
        with open(path, "w", encoding="ascii") as out:
            for text in texts_module.make_texts():
                print(text.hex(), file=out)
    with open(path, encoding="ascii") as file:
        return [bytes.fromhex(line) for line in file.read().split("\n")[:-1]]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--bundled", default=os.path.join(ROOT, "models", "tiny-v32"), help="the bundled model's folder")
    args.add_argument("--v3", help="the folder with DeepSeek-V3's tokenizer.json")
    args.add_argument("--new-texts", action="store_true", help="make texts and mini.json anew")
    args = args.parse_args()
    os.makedirs(OUT, exist_ok=True)
    mini = os.path.join(OUT, "mini.json")
    if args.new_texts or not os.path.exists(mini):
        make_mini(mini)
    texts = load_texts(args.new_texts)
    write_ids("mini", mini, texts)
    write_pieces(mini)
    for name, folder in ("bundled", args.bundled), ("v3", args.v3):
        path = os.path.join(folder or "", "tokenizer.json")
        if folder and os.path.exists(path):
            write_ids(name, path, texts)
        else:
            print(f"{name}: no tokenizer.json: its ids stay as they are", file=sys.stderr)
    print(f"{len(texts)} texts")


main()
