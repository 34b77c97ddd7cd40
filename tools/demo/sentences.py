"""Writes plain English about WordNet's synsets: what the demo's base model learns to read."""
import re

CLASS = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
STARTS_AS_NOUN_PHRASE = re.compile(r"(a|an|the|any|one|someone|something|anything|some|all) ")


def an(phrase):
    return ("an " if phrase[:1].lower() in "aeiou" else "a ") + phrase


def capital(text):
    return text[:1].upper() + text[1:]


def sentence(text):
    text = capital(text.strip())
    return text if text.endswith((".", "!", "?", '."', '!"', '?"')) else text + "."


def join(items, word="and"):
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    if len(items) == 2:
        return f"{items[0]} {word} {items[1]}"
    return ", ".join(items[:-1]) + f" {word} {items[-1]}"


class Writer:
    def __init__(self, synsets, rng, held=frozenset()):
        self.synsets = synsets
        self.rng = rng
        self.held = held  # synsets whose definitions no listing may show

    def linked(self, s, symbols, word=None):
        """[(synset, word)] that pointers lead to: for lexical pointers only those of s.words[word]."""
        found = []
        for symbol in symbols:
            for pos, offset, source, target in s.pointers.get(symbol, []):
                other = self.synsets.get((pos, offset))
                if other and (source < 0 or word is None or source == word):
                    found.append((other, other.words[max(target, 0)]))
        return found

    def pick_word(self, s):
        """A word of the synset, the commoner the likelier."""
        return self.rng.choices(range(len(s.words)), [1 + c for c in s.word_counts])[0]

    def countable(self, s, word):
        return not s.proper and word[:1].islower() and re.match(r"(a|an|any|one of|someone|something) ", s.definition)

    def named(self, s, word):
        """The noun with an article where the definition shows that it takes one."""
        return an(word) if self.countable(s, word) else word

    def definition(self, s, word):
        d, rng = s.definition, self.rng
        general = [f"{word}: {d}", f"{word} means {d}", f'the word "{word}" means {d}', f"the meaning of {word} is {d}",
                   f"what does {word} mean? It means {d}", f"in a dictionary, {word} is explained as {d}",
                   f"{word} ({CLASS[s.pos]}): {d}", f"the {CLASS[s.pos]} {word} means {d}"]
        if s.pos == "n":
            name = self.named(s, word)
            if STARTS_AS_NOUN_PHRASE.match(d):
                asked = "who" if s.proper and re.search(r"\(\d+-\d+\)|born", d) else "what"
                return rng.choice(general[:4] + [f"{name} is {d}"] * 6 + [f"{asked} is {name}? It is {d}",
                                  f"{d}: that is {name}", f"we call {d} {name}", f"{d} is called {name}"])
            return rng.choice(general + [f"by {word} we mean {d}", f"{word}, that is, {d}"])
        if s.pos == "v":
            if "(" not in d[:1]:
                return rng.choice(general[:3] + [f"to {word} is to {d}"] * 3 + [f"to {word} means to {d}",
                                  f"when people {word}, they {d}", f"if you {word}, you {d}"])
            return rng.choice(general)
        if s.pos == "a":
            return rng.choice(general + [f"something {word} is {d}", f"if something is {word}, it is {d}",
                                         f"we say that a thing is {word} when it is {d}"] if "(" not in d[:1] else general)
        if d.startswith(("in a", "with")):
            general.append(f"to do something {word} is to do it {d}")
        return rng.choice(general)

    def examples_for(self, s, word):
        """The synset's examples that use this very word (one synset's words share theirs)."""
        stem = word.lower()[:max(3, len(word) - 2)]
        return [e for e in s.examples if stem in e.lower()]

    def example(self, e, word):
        return self.rng.choice([sentence(e), sentence(e), f"For example: {sentence(e)}", f"One might say: {sentence(e)}",
                                f'For instance, "{e}".', f'Someone could say: "{sentence(e)}"',
                                f"Here is how {word} is used: {sentence(e)}"])

    def kind(self, s, word):
        """Hypernyms and instances."""
        links = self.linked(s, ["@", "@i"])
        if not links:
            return None
        other, _ = self.rng.choice(links)
        above = other.words[self.pick_word(other)]
        if s.pos == "v":
            return self.rng.choice([f"to {word} is one way to {above}", f"to {word} is to {above} in a certain way",
                                    f"{word} is a special case of {above}"])
        if s.proper:
            return self.rng.choice([f"{word} is {an(above)}", f"{word} is an example of {an(above)}"])
        name = self.named(s, word)
        return self.rng.choice([f"{name} is a kind of {above}", f"{name} is a type of {above}",
                                f"{name} is one sort of {above}", f"every {word} is {an(above)}"
                                if self.countable(s, word) else f"{word} is a form of {above}"])

    def below(self, s, word):
        links = self.linked(s, ["~"])
        if len(links) < 2:
            return None
        some = self.rng.sample(links, min(len(links), self.rng.randint(2, 5)))
        some = list(dict.fromkeys(o.words[self.pick_word(o)] for o, _ in some))
        if s.pos == "v":
            return self.rng.choice([f"ways to {word} are to {join(some)}",
                                    f"one can {word} in many ways: {join(some, 'or')}"])
        return self.rng.choice([f"kinds of {word} include {join(some)}", f"examples of {word} are {join(some)}",
                                f"{join(some)} are kinds of {word}"])

    def parts(self, s, word):
        whole, parts = self.linked(s, ["#p", "#m", "#s"]), self.linked(s, ["%p", "%m", "%s"])
        if whole and (not parts or self.rng.random() < 0.5):
            other = self.rng.choice(whole)
            return f"{self.named(s, word)} is part of {self.named(*other)}"
        if parts:
            some = list(dict.fromkeys(w for _, w in self.rng.sample(parts, min(len(parts), 4))))
            return self.rng.choice([f"{self.named(s, word)} has these parts: {join(some)}",
                                    f"{join(some)} belong to {self.named(s, word)}" if len(some) > 1
                                    else f"{some[0]} belongs to {self.named(s, word)}"])
        return None

    def related(self, s, word, index):
        rng, options = self.rng, []
        for _, w in self.linked(s, ["!"], index)[:1]:
            options += [f"the opposite of {word} is {w}", f"{word} is the opposite of {w}",
                        f"{w} and {word} are opposites"] * 2
        others = [w for w in s.words if w != word]
        if others:
            options += [f"another word for {word} is {rng.choice(others)}", f"{word} is also called {rng.choice(others)}"
                        if s.pos == "n" else f"{word} is close in meaning to {rng.choice(others)}"]
        for o, w in self.linked(s, ["+"], index)[:2]:
            options.append(f"the {CLASS[s.pos]} {word} goes with the {CLASS[o.pos]} {w}")
        for o, w in self.linked(s, ["&"])[:2]:
            options.append(f"{word} is similar to {w}")
        for o, w in self.linked(s, [";c"])[:1]:
            options.append(f"people use the word {word} when they speak of {w}")
        for o, w in self.linked(s, ["="])[:1]:
            options.append(f"{word} tells us about {w}" if s.pos == "a" else f"{w} is a word for {word}")
        for o, w in self.linked(s, ["*"])[:1]:
            options.append(f"to {word} you must also {w}")
        for o, w in self.linked(s, [">"])[:1]:
            options.append(f"to {word} is to cause something to {w}")
        return rng.choice(options) if options else None

    def document(self, key):
        """One to six sentences about one sense of a word."""
        s = self.synsets[key]
        index = self.pick_word(s)
        word = s.words[index]
        facts = [f for f in (self.kind(s, word) if s.pos in "nv" else None, self.related(s, word, index),
                             self.parts(s, word) if s.pos == "n" else None, self.below(s, word)) if f]
        self.rng.shuffle(facts)
        text = [sentence(self.definition(s, word))]
        rest = [sentence(f) for f in facts[:self.rng.randint(1, 3)]]
        examples = self.examples_for(s, word)
        self.rng.shuffle(examples)
        if examples:
            rest.insert(self.rng.randint(0, len(rest)), self.example(examples[0], word))
        if len(examples) > 1 and self.rng.random() < 0.4:
            rest.append(self.example(examples[1], word))
        if rest and self.rng.random() < 0.2:
            text = rest[:1] + text + rest[1:]
        else:
            text += rest
        return ("\n" if self.rng.random() < 0.1 else " ").join(text)

    def listing(self, key):
        """A heading and one line for each of several kinds, or None: text with line breaks and a longer thread."""
        s = self.synsets[key]
        links = [self.synsets[p[:2]] for symbol in ("~", "~i") for p in s.pointers.get(symbol, [])
                 if p[:2] in self.synsets and p[:2] not in self.held]
        if len(links) < 3:
            return None
        some = self.rng.sample(links, min(len(links), self.rng.randint(3, 6)))
        word = s.words[self.pick_word(s)]
        head = self.rng.choice(["Ways to {0}:", "To {0}:"] if s.pos == "v" else ["Kinds of {0}:", "Some examples of {0}:",
                                                                                "{1}:"]).format(word, capital(word))
        lines = [f"- {o.words[self.pick_word(o)]}: {o.definition}" for o in some]
        return "\n".join([head] + lines)
