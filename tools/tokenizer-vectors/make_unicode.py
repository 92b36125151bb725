#!/usr/bin/env python3
"""Writes model/tokenizer/unicode_added.h: the code points that the regex engine of Hugging Face tokenizers (Oniguruma)
counts to a class and Unicode 14, which PCRE2 10.42 knows, does not. Fails where a class lost code points, because a
pattern could not give them back.

  make_unicode.py > model/tokenizer/unicode_added.h     (Python 3.11, whose unicodedata is Unicode 14; tokenizers)
"""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, pre_tokenizers

CLASSES = ["L", "N", "P", "S", "M", "Z", "Nd"]
CHARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def members(pattern):
    """All code points that the pattern matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    rest = set()
    for i in range(0, len(CHARS), 20000):
        for piece, _ in split.pre_tokenize_str("".join(CHARS[i:i + 20000])):
            rest.update(piece)
    return {c for c in CHARS if c not in rest}


def ranges(chars):
    out = []
    for c in sorted(map(ord, chars)):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def main():
    if unicodedata.unidata_version != "14.0.0":
        sys.exit(f"needs a Python with Unicode 14.0.0, this one has {unicodedata.unidata_version}")
    print("/* unicode_added.h - what Oniguruma counts to \\p{..} beyond Unicode 14, as items of a PCRE2 class.")
    print(f" * Written by tools/tokenizer-vectors/make_unicode.py with tokenizers {tokenizers.__version__}. */")
    print("#ifndef TD_MODEL_TOKENIZER_UNICODE_ADDED_H\n#define TD_MODEL_TOKENIZER_UNICODE_ADDED_H\n\n/* clang-format off */")
    for name in CLASSES:
        theirs = members(r"\p{%s}" % name)
        ours = {c for c in CHARS if unicodedata.category(c).startswith(name)}
        if ours - theirs:
            sys.exit(f"{name}: gone from the class: {ranges(ours - theirs)}")
        items = ["\\\\x{%x}-\\\\x{%x}" % (a, b) if a != b else "\\\\x{%x}" % a for a, b in ranges(theirs - ours)]
        lines = [""]
        for item in items:
            if len(lines[-1]) + len(item) > 88:
                lines.append("")
            lines[-1] += item
        print(f"#define TD_UNICODE_ADDED_{name} \\")
        print(" \\\n".join(f'    "{line}"' for line in lines))
    print("/* clang-format on */\n#endif")


main()
