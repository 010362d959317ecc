"""Word Count's functions. A word is a maximal run of ASCII letters, lower-cased.

A table is text: lines "word count", sorted by word. It is what `count` hands to `merge` and what
`merge` hands back, and the native functions write the same, so the two may be mixed.
"""

import dflow

LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
# Letters to lower case, everything else to the separator.
FOLD = bytes(b | 0x20 if b in LETTERS else 0x20 for b in range(256))
# Text is folded in blocks, so that memory in use does not grow with the piece. Bytes.
BLOCK_BYTES = 1 << 20


def word_end(text, at):
    """The first position from `at` on that does not lie inside a word."""
    while 0 < at < len(text) and text[at - 1] in LETTERS and text[at] in LETTERS:
        at += 1
    return at


def split(text, shards: int):
    """Yields `shards` pieces of about the same size, none of which ends inside a word.

    `text` is a view of the store and so is each piece; the only copy is the put into the piece's
    own extent. A piece can be counted while the next one is being cut.
    """
    begin = 0
    for shard in range(1, shards + 1):
        end = word_end(text, max(begin, len(text) * shard // shards))
        yield text[begin:end]
        begin = end


def count(text):
    """The table of one piece."""
    counts = {}
    begin = 0
    while begin < len(text):
        end = word_end(text, min(begin + BLOCK_BYTES, len(text)))
        for word in bytes(text[begin:end]).translate(FOLD).split():
            counts[word] = counts.get(word, 0) + 1
        begin = end
    return encode(counts)


def merge(tables: dflow.Many, top: int):
    """Adds up all tables, each as soon as it appears."""
    totals = {}
    for table in tables:
        for word, n in decode(table):
            totals[word] = totals.get(word, 0) + n
    ranked = sorted(totals.items(), key=lambda entry: (-entry[1], entry[0]))[:top]
    summary = {
        "words": sum(totals.values()),
        "distinct": len(totals),
        "top": [[word.decode(), n] for word, n in ranked],
    }
    return {"counts": encode(totals), "top": summary}


def encode(counts):
    """A table's bytes."""
    return b"".join(b"%b %d\n" % entry for entry in sorted(counts.items()))


def decode(table):
    """The (word, count) pairs of a table."""
    fields = bytes(table).split()
    return zip(fields[::2], map(int, fields[1::2]))
