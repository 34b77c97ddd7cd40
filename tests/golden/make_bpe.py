"""Makes bpe_tokenizer.json and bpe_golden.json with the package tokenizers (its version is written into the latter):
    python3 tests/golden/make_bpe.py
A byte-level BPE of a few hundred merges, trained on the demo's instructions; what the package itself answers for hard strings,
with SmolLM2's, GPT-2's and LLaMA-3's pre-tokenizers over the same vocabulary."""
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

here = pathlib.Path(__file__).parent
demo = here.parent.parent / "tools" / "demo" / "train.json"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
    "gpt-2": byte_level,
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                          pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
}
STRINGS = [
    "", "Hello, world!", " leading", "trailing ", "  two  and   three    spaces", "\ttabs\t\tand\n\nbreaks\r\n \n x",
    "it's John's; THEY'RE, we've I'll you'd I'm don't 'tis", "1999 3.14 12345678 ٣٤ ½ Ⅷ ①", "naïve café Ünïcödé e\u0301",
    "你好，世界 日本語 한국어 ไทย العربية עברית", "😀 👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷", "for (int i = 0; i < 10; ++i) { x[i] += 0.5f; }\n\treturn x;",
    "a.b,c;d:e!?(f)[g]{h}<i>", "\u00a0no-break\u2009thin\u3000wide\u180emongolian\u0085next\u200bzero", "snake_case __init__ ___",
    "...!!!???\n\n---\n", "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|><|im_end|><|endoftext|> <|im_ <|im_start|", "a" * 70,
    " " * 33 + "x", "\n" * 9, "\x00\x01\x7f", "A dog is a kind of animal.\nA cat is one, too.", "ſ 'ſ 'S ’s", "𝔘𝔫𝔦 \U0010fffd",
]


def main():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = PRE["smollm"]
    tok.decoder = decoders.ByteLevel()
    rows = json.loads(demo.read_text())
    text = [r["instruction"] + "\n" + r["output"] for r in rows]
    # Characters beyond ASCII, so that merges within and across their bytes exist.
    text += ["café naïve 日本 日本語 😀 👩‍💻 it's we're don't 12 {x[i]} += ;\n\n\n    return"] * 200
    trainer = trainers.BpeTrainer(vocab_size=256 + 3 + 700, special_tokens=[AddedToken(s, special=True) for s in SPECIALS],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(text, trainer)
    (here / "bpe_tokenizer.json").write_text(json.dumps(json.loads(tok.to_str()), ensure_ascii=False, separators=(",", ":")))
    golden = {"tokenizers": tokenizers.__version__, "strings": STRINGS, "ids": {}}
    for name, pre in PRE.items():
        tok.pre_tokenizer = pre
        tok.model.ignore_merges = name == "llama-bpe"
        golden["ids"][name] = [tok.encode(s, add_special_tokens=False).ids for s in STRINGS]
    lines = ["  " + json.dumps(s) for s in STRINGS]
    ids = [f'  "{name}": [\n' + ",\n".join("   " + json.dumps(i, separators=(",", ":")) for i in rows) + "]"
           for name, rows in golden["ids"].items()]
    (here / "bpe_golden.json").write_text('{"tokenizers": "%s",\n "strings": [\n%s],\n "ids": {\n%s}\n}\n' %
                                          (golden["tokenizers"], ",\n".join(lines), ",\n".join(ids)))


main()
