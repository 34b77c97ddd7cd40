"""Reads WordNet's database files (format: wndb(5WN)) into synsets with cleaned definitions and example sentences."""
import os
import re
from dataclasses import dataclass, field

FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
# Glosses that mark a sense as an insult or as crude; those senses and everything they say are left out of the demo.
UNWANTED = re.compile(
    r"\b(offensive|disparag|derogatory|slur|vulgar|obscen|pejorative|taboo|ethnic|racial|sexual|copulat|intercourse|"
    r"penis|vagina|genital|prostitut|pornograph|masturbat|orgasm|rape|suicide|excrement|faeces|feces|terroris|nazi)", re.I)
UNWANTED_DOMAINS = {"disparagement", "ethnic_slur", "obscenity", "vulgarism", "dirty_word"}


@dataclass
class Synset:
    pos: str                 # n v a r
    words: list              # "ice cream", the best known first
    definition: str          # without the closing full stop, first letter as WordNet has it
    examples: list           # sentences and phrases, cleaned
    pointers: dict           # symbol -> [(pos, offset, source word's index or -1, target word's index or -1)]
    proper: bool = False     # an instance: a person, a place, a work
    count: int = 0           # times tagged in WordNet's sense-tagged texts: how common the sense is
    word_counts: list = field(default_factory=list)


def clean(text):
    text = re.sub(r"\s+", " ", text.replace("`", "'")).strip(" ;:,-")
    return text.replace(" ,", ",").replace("( ", "(").replace(" )", ")")


def split_gloss(gloss):
    """'a big cat; "the cat slept"; "he said"- A. Writer' -> ('a big cat', ['the cat slept']); attributed quotations go."""
    examples = []
    for match in re.finditer(r'"([^"]*)"\s*(-*)', gloss):
        text = clean(match.group(1))
        if not match.group(2) and 12 <= len(text) <= 160 and not re.search(r"[\[\]{}<>*_=|/\\]|\.\.\.", text):
            examples.append(text.rstrip("."))
    definition = clean(re.sub(r';?\s*"[^"]*"?[^;]*', "", gloss))
    definition = re.sub(r"^\(([a-z ]+)\) (?=[a-z])", r"in \1, ", definition) if definition[1:4] != "of " else definition
    return definition, examples


def parse_line(line, pos):
    head, _, gloss = line.partition(" | ")
    f = head.split()
    count = int(f[3], 16)
    words = [re.sub(r"\((a|p|ip)\)$", "", w) for w in f[4:4 + 2 * count:2]]
    at = 4 + 2 * count
    pointers = {}
    for i in range(int(f[at])):
        symbol, offset, target_pos, ends = f[at + 1 + 4 * i:at + 5 + 4 * i]
        source, target = int(ends[:2], 16) - 1, int(ends[2:], 16) - 1
        pointers.setdefault(symbol, []).append((target_pos.replace("s", "a"), offset, source, target))
    definition, examples = split_gloss(gloss)
    return f[0], Synset(pos, [w.replace("_", " ") for w in words], definition, examples, pointers, "@i" in pointers)


def read_counts(folder):
    """(pos, offset, word) -> how often the sense was tagged, from cntlist.rev and the index files."""
    senses = {}  # (word, pos, sense number) -> offset
    for pos, name in (("n", "index.noun"), ("v", "index.verb"), ("a", "index.adj"), ("r", "index.adv")):
        with open(os.path.join(folder, name), encoding="latin-1") as lines:
            for line in lines:
                if line.startswith(" "):
                    continue
                f = line.split()
                for number, offset in enumerate(f[6 + int(f[3]):], 1):
                    senses[f[0], pos, number] = offset
    counts = {}
    with open(os.path.join(folder, "cntlist.rev"), encoding="latin-1") as lines:
        for line in lines:
            key, number, times = line.split()
            word, _, rest = key.partition("%")
            pos = " nvara"[int(rest[0])]
            offset = senses.get((word, pos, int(number)))
            if offset:
                counts[pos, offset, word] = int(times)
    return counts


def wanted(s):
    if not s.definition or UNWANTED.search(s.definition) or any(UNWANTED.search(e) for e in s.examples):
        return False
    return all(re.fullmatch(r"[A-Za-z][A-Za-z' .-]*", w) for w in s.words)


def read_wordnet(folder):
    """{(pos, offset): Synset}, in file order."""
    counts = read_counts(folder)
    synsets = {}
    for pos, name in FILES.items():
        with open(os.path.join(folder, name), encoding="latin-1") as lines:
            for line in lines:
                if line.startswith("  "):
                    continue  # the licence at the head of each file
                offset, s = parse_line(line, pos)
                s.word_counts = [counts.get((pos, offset, w.lower().replace(" ", "_")), 0) for w in s.words]
                s.count = sum(s.word_counts)
                synsets[pos, offset] = s
    bad = {key for key, s in synsets.items() if not wanted(s)}
    for key, s in synsets.items():
        for target in s.pointers.get(";u", []):
            other = synsets.get(target[:2])
            if other and {w.replace(" ", "_") for w in other.words} & UNWANTED_DOMAINS:
                bad.add(key)
    return {key: s for key, s in synsets.items() if key not in bad}
