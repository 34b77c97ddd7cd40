"""The demo's finetuning task: short instructions about common words, in Alpaca's keys. The base text holds the words and
their meanings but never this form; held-out examples are about words that no training example asks about."""
import random
import re
import zlib

from sentences import CLASS, Writer, an, capital, sentence

WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. Write a "
              "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
              "\n\n### Response: ")
TRAIN, HELDOUT = 4000, 300
MAX_ANSWER = 90  # characters: under 25 tokens of the demo's vocabulary, as a rule
# Senses of words kept out of the instruction files: violence, belief, nationality, health and the like.
LEFT_OUT = re.compile(r"\b(kill|murder|drug|death|dead|religio|christ|jew|muslim|islam|god|sex|breast|nude|weapon|war|"
                     r"military|slave|black person|american|german|alcohol|drunk|disease)", re.I)


def render_prompt(e):
    return WITH_INPUT.format(**e) + e["output"]


def is_heldout(word):
    """By a hash of the word, so that the split does not depend on order or on how many examples are made."""
    return zlib.crc32(word.encode()) % 100 < 12


def plain(word):
    return re.fullmatch(r"[a-z]{3,12}", word) is not None


def candidates(synsets, writer):
    """{task: [(word, instruction, input, answer)]} over the best known sense of each common word."""
    classes, best = {}, {}
    for s in synsets.values():
        for index, word in enumerate(s.words):
            classes.setdefault(word, set()).add(s.pos)
            if plain(word) and s.word_counts[index] > best.get(word, (None, 0, 0))[2]:
                best[word] = (s, index, s.word_counts[index])
    tasks = {name: [] for name in ("define", "example", "class", "opposite", "kind", "find")}
    for word, (s, index, count) in sorted(best.items()):
        if count < 2 or s.proper or LEFT_OUT.search(s.definition + " " + " ".join(s.examples)):
            continue
        d = s.definition.split(";")[0].strip()
        if "(" not in d and 10 <= len(d) <= MAX_ANSWER:
            answer = sentence("to " + d if s.pos == "v" else d)
            tasks["define"].append((word, "Define the word.", word, answer))
            if s.pos in "nv" and len(d) <= 60 and not re.search(rf"\b{word}", d):
                tasks["find"].append((word, "Which word has this meaning?", capital(d) + ".", capital(word) + "."))
        for e in s.examples:
            if re.search(rf"\b{word}", e) and len(e) <= 70 and len(e.split()) >= 4:
                tasks["example"].append((word, "Write an example with this word.", word, sentence(e)))
                break
        if classes[word] == {s.pos} and s.pos in "nva":
            tasks["class"].append((word, "Is it a noun, a verb or an adjective?", word,
                                   f"{capital(word)} is {an(CLASS[s.pos])}."))
        opposite = writer.linked(s, ["!"], index)
        if opposite and plain(opposite[0][1]):
            tasks["opposite"].append((word, "Give the opposite of the word.", word,
                                      f"The opposite of {word} is {opposite[0][1]}."))
        above = writer.linked(s, ["@"]) if s.pos == "n" else []
        if above and re.fullmatch(r"[a-z ]{3,20}", above[0][1]) and classes[word] == {"n"}:
            tasks["kind"].append((word, "What kind of thing is it?", word, f"{capital(writer.named(s, word))} is a kind of "
                                                                             f"{above[0][1]}."))
    return tasks


def make_instructions(synsets, seed):
    """(train, heldout): lists of {"instruction", "input", "output"}."""
    rng = random.Random(seed)
    tasks = candidates(synsets, Writer(synsets, rng))
    shares = {"define": 0.36, "example": 0.14, "class": 0.16, "opposite": 0.10, "kind": 0.16, "find": 0.08}
    result = []
    for total, held in ((TRAIN, False), (HELDOUT, True)):
        chosen = []
        for name, share in shares.items():
            pool = [c for c in tasks[name] if is_heldout(c[0]) == held]
            chosen += rng.sample(pool, min(len(pool), round(total * share)))
        rng.shuffle(chosen)
        result.append([{"instruction": i, "input": x, "output": y} for _, i, x, y in chosen])
    return result
