"""A vocabulary with runs of newlines as Gemma's, and its merges in several orders."""

import random

from gemma_server.text.family import GEMMA4

Merges = list[tuple[str, str]]

LONGEST = 31  # newlines of one piece
_CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>", *GEMMA4.markers]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_RUNS = ["\n" * length for length in range(2, LONGEST + 1)]
_LETTERS = ["\u2581", "a", "b", "\n"]
_WORD_MERGES: Merges = [("a", "b"), ("\u2581", "ab"), ("b", "a"), ("\u2581", "\u2581")]
PIECES = [*_CONTROLS, *_RUNS, *_BYTES, *map("".join, _WORD_MERGES), *_LETTERS]
CONTROLS = len(_CONTROLS)
_RUN_MERGES: Merges = [
    ("\n" * left, "\n" * (length - left))
    for length in range(2, LONGEST + 1)
    for left in range(1, length)
]


def _orders() -> dict[str, Merges]:
    """The converter's of transformers, for pieces that all have one score, begins with the longest
    left part; older files begin with the shortest run. In all, the merges that make one piece
    follow each other, or are of equal use."""
    longest = sorted(_RUN_MERGES, key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
    orders = {"longest first": longest, "shortest first": _RUN_MERGES}
    for seed in range(3):
        made = list(range(2, LONGEST + 1))
        random.Random(seed).shuffle(made)
        orders[f"shuffled, {seed}"] = sorted(
            _RUN_MERGES, key=lambda pair: made.index(len("".join(pair)))
        )
    return {name: [*runs, *_WORD_MERGES] for name, runs in orders.items()}


ORDERS = _orders()
TEXTS = ["\n" * length for length in range(1, 101)]
TEXTS += [f"ab{run}a  b{run[::2]} ab" for run in TEXTS[::7]]
