"""File Processing's functions: text made clean, its mood, and the parcel that is kept."""

import codecs
import hashlib

import dflow

# Bytes handed on at a time.
BLOCK_BYTES = 1 << 20

# How a word weighs on the mood, from -3 to 3.
LEXICON = {
    "good": 2, "great": 3, "best": 3, "better": 2, "easy": 2, "easily": 2, "safe": 2, "safely": 2, "fast": 2, "simple": 1,
    "clean": 2, "correct": 2, "correctly": 2, "support": 1, "supports": 1, "helpful": 2, "useful": 2, "improve": 2,
    "improved": 2, "improves": 2, "improvement": 2, "success": 3, "successful": 3, "successfully": 3, "thanks": 2,
    "fix": 1, "fixed": 1, "fixes": 1, "allow": 1, "allows": 1, "recommended": 2, "ensure": 1, "ensures": 1, "free": 1,
    "bad": -2, "worse": -2, "worst": -3, "hard": -1, "unsafe": -2, "slow": -2, "broken": -3, "break": -1, "breaking": -2,
    "bug": -2, "bugs": -2, "error": -2, "errors": -2, "fail": -2, "fails": -2, "failed": -2, "failure": -3, "crash": -3,
    "wrong": -2, "incorrect": -2, "problem": -2, "problems": -2, "issue": -1, "issues": -1, "panic": -2, "panics": -2,
    "leak": -2, "deprecated": -1, "dangerous": -3, "invalid": -2, "missing": -1, "warning": -1, "unfortunately": -2,
}


def start(markdown, ctx: dflow.Context):
    """The text with Unix line ends and without what is no UTF-8, block by block."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    after_return = False
    with ctx.writer("text") as out:
        for begin in range(0, len(markdown), BLOCK_BYTES):
            text = decoder.decode(markdown[begin : begin + BLOCK_BYTES], begin + BLOCK_BYTES >= len(markdown))
            # A pair cut between two blocks is one line end all the same.
            if after_return and text.startswith("\n"):
                text = text[1:]
            if text:
                after_return = text.endswith("\r")
            out.write(text.replace("\r\n", "\n").replace("\r", "\n").encode())


def lexicon_of(text):
    """A lexicon from lines `word weight`."""
    return {word: int(weight) for word, weight in (line.split() for line in text.splitlines() if line.strip())}


def sentiment(text: dflow.Stream, lexicon: str):
    """The mood of a text: the mean weight of its weighty words, those after "not", "no" or "never" turned round."""
    weights = lexicon_of(lexicon) or LEXICON
    words = hits = score = 0
    negated = False
    tail = b""
    for chunk in text:
        # A word may go on in the next chunk: what follows the last space waits for it.
        tail += bytes(chunk).lower()
        cut = max(tail.rfind(b" "), tail.rfind(b"\n")) + 1
        done, tail = tail[:cut], tail[cut:]
        for word in split(done):
            words, hits, score, negated = weigh(weights, word, words, hits, score, negated)
    for word in split(tail):
        words, hits, score, negated = weigh(weights, word, words, hits, score, negated)
    return {"words": words, "hits": hits, "score": score, "mood": round(score / hits, 6) if hits else 0.0}


LETTERS = bytes(b if 97 <= b <= 122 else 32 for b in range(256))


def split(text):
    """The runs of ASCII letters in lower-case bytes."""
    return text.translate(LETTERS).decode("ascii").split()


def weigh(weights, word, words, hits, score, negated):
    weight = weights.get(word, 0)
    if weight:
        hits += 1
        score += -weight if negated else weight
    return words + 1, hits, score, word in ("not", "no", "never")


def upload(html, mood):
    """The page with its mood at its head, and a manifest of it."""
    head = f"<!doctype html>\n<meta charset=utf-8>\n<meta name=mood content={mood['mood']}>\n".encode()
    page = b"".join((head, html if isinstance(html, (bytes, memoryview)) else html.encode()))
    manifest = {"bytes": len(page), "sha256": hashlib.sha256(page).hexdigest(), "sentiment": mood}
    return {"page": page, "manifest": manifest}
