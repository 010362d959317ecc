"""The recognizer's detectors: small, honest functions of pixels and words, with no model behind them.

A picture comes as PPM (P6, 8 bits a channel). A verdict is {"illegal": bool, "by": which detector, "score": number}.
"""

from collections import deque


def pixels(ppm):
    """(width, height, bytes of RGB) of a PPM image."""
    data = bytes(ppm)
    fields, at = [], 0
    while len(fields) < 4:
        while data[at] in b" \t\r\n":
            at += 1
        end = at
        while data[end] not in b" \t\r\n":
            end += 1
        fields.append(data[at:end])
        at = end
    if fields[0] != b"P6" or fields[3] != b"255":
        raise ValueError(f"not an 8-bit PPM image: it begins with {data[:16]!r}")
    width, height = int(fields[1]), int(fields[2])
    rgb = data[at + 1 : at + 1 + 3 * width * height]
    if len(rgb) != 3 * width * height:
        raise ValueError(f"the image ends after {len(rgb)} of {3 * width * height} bytes")
    return width, height, rgb


def is_skin(r, g, b):
    """The rule of Peer, Kovač and Solina (2003) for skin in daylight."""
    return r > 95 and g > 40 and b > 20 and r > g and r > b and r - g > 15 and r - min(g, b) > 15


def adult(small, limit: float):
    """Refuses a picture with much skin in it."""
    width, height, rgb = pixels(small)
    skin = sum(map(is_skin, rgb[0::3], rgb[1::3], rgb[2::3]))
    score = skin / (width * height)
    return {"illegal": score >= limit, "by": "adult", "score": round(score, 6)}


def violence(small, limit: float):
    """Refuses a picture with many deep red pixels beside ones that are not: splashes, not curtains."""
    width, height, rgb = pixels(small)
    red = bytearray(r > 120 and g < 60 and b < 60 for r, g, b in zip(rgb[0::3], rgb[1::3], rgb[2::3]))
    edges = 0
    for y in range(height):
        row = y * width
        for x in range(width):
            here = red[row + x]
            if here and ((x + 1 < width and not red[row + x + 1]) or (y + 1 < height and not red[row + width + x])):
                edges += 1
    score = edges / (width * height)
    return {"illegal": score >= limit, "by": "violence", "score": round(score, 6)}


# English to German, word by word. What is not in it stays as it is.
DICTIONARY = {
    "the": "die", "and": "und", "of": "von", "to": "zu", "a": "ein", "an": "ein", "in": "in", "is": "ist", "are": "sind",
    "you": "Sie", "your": "Ihr", "for": "für", "that": "das", "this": "dies", "it": "es", "not": "nicht", "or": "oder",
    "any": "jede", "by": "durch", "with": "mit", "as": "als", "be": "sein", "may": "darf", "can": "kann", "we": "wir",
    "free": "frei", "freedom": "Freiheit", "software": "Software", "program": "Programm", "work": "Werk",
    "copy": "Kopie", "copies": "Kopien", "license": "Lizenz", "right": "Recht", "rights": "Rechte", "other": "andere",
    "all": "alle", "if": "wenn", "they": "sie", "their": "ihre", "have": "haben", "from": "aus", "on": "auf",
    "people": "Leute", "change": "ändern", "changes": "Änderungen", "use": "nutzen", "make": "machen", "public": "öffentlich",
}


def words_of(text):
    """The text as a list of words and of what stands between them."""
    parts, word = [], ""
    for c in text:
        if c.isalpha():
            word += c
            continue
        if word:
            parts.append(word)
            word = ""
        parts.append(c)
    return parts + [word] if word else parts


def translate(text: str):
    """The text in a sort of German."""
    return "".join(DICTIONARY.get(part.lower(), part) for part in words_of(text))


class Automaton:
    """Aho and Corasick's: finds all of many words in one pass."""

    def __init__(self, words):
        self.next, self.found, self.fail = [{}], [set()], [0]
        for word in words:
            state = 0
            for c in word:
                if c not in self.next[state]:
                    self.next[state][c] = len(self.next)
                    self.next.append({})
                    self.found.append(set())
                    self.fail.append(0)
                state = self.next[state][c]
            self.found[state].add(word)
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            for c, to in self.next[state].items():
                queue.append(to)
                back = self.fail[state]
                while back and c not in self.next[back]:
                    back = self.fail[back]
                self.fail[to] = self.next[back].get(c, 0)
                self.found[to] |= self.found[self.fail[to]]

    def search(self, text):
        """The words that occur in `text`, anywhere."""
        state, hits = 0, set()
        for c in text:
            while state and c not in self.next[state]:
                state = self.fail[state]
            state = self.next[state].get(c, 0)
            hits |= self.found[state]
        return hits


def censor(text: str, words: str):
    """Refuses a text in which forbidden words occur, in any case and also inside other words."""
    forbidden = [word.strip().lower() for word in words.splitlines() if word.strip()]
    hits = sorted(Automaton(forbidden).search(text.lower()))
    return {"illegal": bool(hits), "by": "censor", "score": len(hits), "words": hits}
