#!/usr/bin/env python3
"""Makes the demo's data out of WordNet (package wordnet-base). Needs Python 3 and, from package sentencepiece, spm_train
and spm_encode; nothing else.

  tools/demo/make_data.py                     remakes build/demo/{train,heldout}.{txt,tok}, and the instruction files
  tools/demo/make_data.py --train-tokenizer   also trains tools/demo/tokenizer.model anew (LLaMA's settings, 4,096 pieces)

The same seed and the same WordNet give the same bytes.
"""
import argparse
import array
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from instructions import make_instructions, render_prompt  # noqa: E402
from sentences import Writer  # noqa: E402
from wordnet import read_wordnet  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB = 4096
BOS, NEWLINE = 1, 3 + 10      # the byte pieces <0x00>.. start at id 3
STAND_IN = "\ue000"           # spm_encode works line by line: a line break inside a document travels as this character,
STAND_IN_IDS = [3 + b for b in STAND_IN.encode()]  # which the vocabulary can only spell as three bytes
TOKEN_FILE_MAGIC, TOKEN_FILE_VERSION = 20240520, 1


def make_documents(synsets, seed, heldout_share):
    """Two lists of documents (train, heldout). Whole synsets are held out: their definitions stand nowhere in train."""
    rng = random.Random(seed)
    held = {key for key in synsets if rng.random() < heldout_share}
    writer = Writer(synsets, rng, held)
    train, heldout = [], []
    for key, s in synsets.items():
        if key in held:
            heldout.append(writer.document(key))
            continue
        # Common senses are written about more often, in other words each time.
        for _ in range(1 + min(8, 2 * s.count.bit_length())):
            train.append(writer.document(key))
        listing = writer.listing(key)
        if listing:
            train.append(listing)
    train = list(dict.fromkeys(train))
    rng.shuffle(train)
    return train, heldout


def write_lines(path, documents):
    with open(path, "w", encoding="utf-8") as out:
        for d in documents:
            out.write(d.replace("\n", STAND_IN) + "\n")


def train_tokenizer(text_path, examples, work):
    """LLaMA's own settings. The instruction prompts join the text so that their fixed words are not spelled in letters."""
    prompts = os.path.join(work, "prompts.txt")
    with open(prompts, "w", encoding="utf-8") as out:
        for e in examples[:1500]:
            for line in render_prompt(e).split("\n"):
                out.write(line + "\n")
    prefix = os.path.join(work, "tokenizer")
    plain = os.path.join(work, "plain.txt")
    with open(text_path, encoding="utf-8") as lines, open(plain, "w", encoding="utf-8") as out:
        for line in lines:
            out.write(line.replace(STAND_IN, "\n"))
    subprocess.run(["spm_train", f"--input={plain},{prompts}", f"--model_prefix={prefix}", f"--vocab_size={VOCAB}",
                    "--model_type=bpe", "--byte_fallback=true", "--normalization_rule_name=identity",
                    "--add_dummy_prefix=true", "--remove_extra_whitespaces=false", "--split_digits=true",
                    "--character_coverage=0.99995", "--unk_id=0", "--bos_id=1", "--eos_id=2", "--pad_id=-1",
                    "--num_threads=1", "--minloglevel=1"], check=True)
    os.replace(prefix + ".model", os.path.join(HERE, "tokenizer.model"))


def encode(model, path):
    """Yields each line's token ids."""
    with subprocess.Popen(["spm_encode", f"--model={model}", "--output_format=id", f"--input={path}"],
                          stdout=subprocess.PIPE, text=True) as encoder:
        for line in encoder.stdout:
            ids = [int(x) for x in line.split()]
            out, i = [], 0
            while i < len(ids):
                newline = ids[i:i + 3] == STAND_IN_IDS
                out.append(NEWLINE if newline else ids[i])
                i += 3 if newline else 1
            yield out
    if encoder.returncode:
        sys.exit("make_data.py: spm_encode failed")


def write_tokens(model, text_path, token_path):
    """llm.c's token file: 256 int32 (magic, version, count), then uint16 ids. BOS stands before every document."""
    ids = array.array("H")
    documents = 0
    for line in encode(model, text_path):
        ids.append(BOS)
        ids.extend(line)
        documents += 1
    header = array.array("i", [TOKEN_FILE_MAGIC, TOKEN_FILE_VERSION, len(ids)] + [0] * 253)
    if sys.byteorder == "big":
        header.byteswap()
        ids.byteswap()
    with open(token_path, "wb") as out:
        out.write(header.tobytes() + ids.tobytes())
    size = os.path.getsize(text_path)
    print(f"{token_path}: {documents:,} documents, {len(ids):,} tokens, {size:,} bytes of text, "
          f"{size / len(ids):.2f} bytes per token")


def write_json(path, examples):
    with open(path, "w", encoding="utf-8") as out:
        out.write("[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in examples) + "\n]\n")
    print(f"{path}: {len(examples):,} examples, {os.path.getsize(path):,} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", default="/usr/share/wordnet", help="folder of data.noun, index.noun, ...")
    parser.add_argument("--out", default="build/demo", help="folder for the training text and token files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heldout-share", type=float, default=0.01)
    parser.add_argument("--train-tokenizer", action="store_true")
    args = parser.parse_args()
    if not os.path.exists(os.path.join(args.wordnet, "data.noun")):
        sys.exit(f"make_data.py: {args.wordnet}/data.noun is missing\n  try     : apt-get install wordnet-base")
    os.makedirs(args.out, exist_ok=True)

    synsets = read_wordnet(args.wordnet)
    documents = dict(zip(("train", "heldout"), make_documents(synsets, args.seed, args.heldout_share)))
    examples = dict(zip(("train", "heldout"), make_instructions(synsets, args.seed)))
    for name in documents:
        write_lines(os.path.join(args.out, name + ".txt"), documents[name])
        write_json(os.path.join(HERE, name + ".json"), examples[name])
    if args.train_tokenizer:
        train_tokenizer(os.path.join(args.out, "train.txt"), examples["train"], args.out)
    for name in documents:
        base = os.path.join(args.out, name)
        write_tokens(os.path.join(HERE, "tokenizer.model"), base + ".txt", base + ".tok")


if __name__ == "__main__":
    main()
