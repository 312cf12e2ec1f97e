"""A small CLIP tokenizer (byte-pair merges of the captions' own words): vocab.json, merges.txt.

python tokenizer.py sprites.npz OUT_FOLDER
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from adapters import ADAPTERS
from mascot import TRIGGER
from subjects import BACKGROUNDS, COLOURS

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 24
# Words of the wordings and some that users add; each becomes one token.
_EXTRA = """a an the of on in with and emoji picture background white black brown small big happy sad
surprised waving cheering style art drawing
stained glass , .""".split()


def byte_alphabet() -> list[str]:
    """The printable stand-ins for the 256 bytes, in the order that CLIP's vocabulary has them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def learn(words: Counter[str], most: int) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first (ties by spelling, so that runs agree)."""
    pieces = {w: (*w[:-1], w[-1] + "</w>") for w in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for word, parts in pieces.items():
            out: list[str] = []
            for part in parts:
                if out and (out[-1], part) == best:
                    out[-1] += part
                else:
                    out.append(part)
            pieces[word] = tuple(out)
    return merges


def main(sprites: Path, out: Path) -> None:
    names = np.load(sprites)["names"]
    words: Counter[str] = Counter()
    for name in names:
        words.update(dict.fromkeys(str(name).split(), 20))
    for text in (*COLOURS, *BACKGROUNDS, *_EXTRA, TRIGGER, *(a.trigger for a in ADAPTERS)):
        words.update(dict.fromkeys(text.split(), 200))
    alphabet = byte_alphabet()
    merges = learn(words, most=1500)
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges), START, END]
    out.mkdir(parents=True, exist_ok=True)
    table = {t: i for i, t in enumerate(dict.fromkeys(vocabulary))}
    (out / "vocab.json").write_text(json.dumps(table, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    special = {k: config[k] for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    print(f"{len(table)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
