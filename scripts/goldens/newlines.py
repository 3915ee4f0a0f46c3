"""Runs of newlines: what the library's tokenizer makes of them, for merges in several orders."""

import argparse

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from scripts.goldens.files import GOLDENS, Record, write_json
from testing.newlines import ORDERS, PIECES, TEXTS, Merges


def make_newlines(_: argparse.Namespace) -> Record:
    """newlines.json: the lengths of the pieces of each of `TEXTS`, for each order of merges."""
    lengths = {
        order: [" ".join(map(str, _lengths(tokenizer, text))) for text in TEXTS]
        for order, tokenizer in ((order, _tokenizer(merges)) for order, merges in ORDERS.items())
    }
    write_json(GOLDENS / "newlines.json", lengths)
    return {"made_from": "testing.newlines", "tokenizer": "BPE as transformers' GemmaTokenizer"}


def _tokenizer(merges: Merges) -> Tokenizer:
    ids = {piece: index for index, piece in enumerate(PIECES)}
    options = {"fuse_unk": True, "unk_token": "<unk>", "byte_fallback": True}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, **options))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return tokenizer


def _lengths(tokenizer: Tokenizer, text: str) -> list[int]:
    return [len(piece) for piece in tokenizer.encode(text, add_special_tokens=False).tokens]
