#!/usr/bin/env python3
"""Turns a multiple-choice task's own public file into the JSON lines that ./irq_eval --choice reads: query, choices, gold.

    python3 tools/make_choice.py hellaswag  hellaswag_val.jsonl  hellaswag.jsonl
    python3 tools/make_choice.py piqa       valid.jsonl          piqa.jsonl        --labels valid-labels.lst
    python3 tools/make_choice.py winogrande dev.jsonl            winogrande.jsonl  [--labels dev-labels.lst]
    python3 tools/make_choice.py arc        ARC-Easy-Test.jsonl  arc_easy.jsonl
    python3 tools/make_choice.py boolq      dev.jsonl            boolq.jsonl
    python3 tools/make_choice.py openbookqa test.jsonl           openbookqa.jsonl

The wording is that of lm-evaluation-harness 0.4.0. WinoGrande needs irq_eval's --partial; WinoGrande and BoolQ are reported
as acc. Nothing but Python's standard library is needed. Exit status: 0, 1 a file is not what it should be, 2 command line."""
import argparse
import json
import os
import re
import sys


class Wrong(Exception):
    """A record that is not as the task's file has it: what was expected."""


def field(record, key, kind):
    if not isinstance(record, dict) or not isinstance(record.get(key), kind) or (kind is int and isinstance(record[key], bool)):
        raise Wrong(f'"{key}": {kind.__name__}')
    return record[key]


def texts(record, key):
    values = field(record, key, list)
    if not all(isinstance(v, str) for v in values):
        raise Wrong(f'"{key}": a list of texts')
    return values


def number(text, lowest, highest):
    """A label, written as a number or as text."""
    if str(text) in [str(n) for n in range(lowest, highest + 1)]:
        return int(text)
    raise Wrong(f"a label from {lowest} to {highest}, not {text!r}")


def clean(text):
    """HellaSwag's texts come from WikiHow, with marks for titles and steps in brackets."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(r, label):
    context = field(r, "ctx_a", str) + " " + field(r, "ctx_b", str).capitalize()
    endings = [clean(e) for e in texts(r, "endings")]
    gold = label if label is not None else r.get("label")
    return clean(field(r, "activity_label", str) + ": " + context), endings, number(gold, 0, len(endings) - 1)


def piqa(r, label):
    gold = label if label is not None else r.get("label")
    return f'Question: {field(r, "goal", str)}\nAnswer:', [field(r, "sol1", str), field(r, "sol2", str)], number(gold, 0, 1)


def winogrande(r, label):
    sentence = field(r, "sentence", str)
    if "_" not in sentence:
        raise Wrong("a sentence with _ in it")
    gold = label if label is not None else r.get("answer")
    return sentence, [field(r, "option1", str), field(r, "option2", str)], number(gold, 1, 2) - 1


def question_with_labels(r):
    """Stem, choices, number of the right one: as the archives have it, or flat as the hub's copies have it."""
    question = r.get("question", r.get("question_stem")) if isinstance(r, dict) else None
    if isinstance(question, dict):
        stem, choices = field(question, "stem", str), field(question, "choices", list)
        answers, labels = [field(c, "text", str) for c in choices], [field(c, "label", str) for c in choices]
    else:
        stem, choices = field(r, "question" if "question" in r else "question_stem", str), field(r, "choices", dict)
        answers, labels = texts(choices, "text"), texts(choices, "label")
    key = field(r, "answerKey", str).strip()
    if key not in labels:
        raise Wrong(f"an answerKey among {labels}, not {key!r}")
    return stem, answers, labels.index(key)


def arc(r, _):
    stem, answers, gold = question_with_labels(r)
    return f"Question: {stem}\nAnswer:", answers, gold


def openbookqa(r, _):
    return question_with_labels(r)


def boolq(r, label):
    gold = label if label is not None else r.get("label", r.get("answer"))
    gold = int(gold) if isinstance(gold, bool) else number(gold, 0, 1)
    return f'{field(r, "passage", str)}\nQuestion: {field(r, "question", str)}?\nAnswer:', ["no", "yes"], gold


TASKS = {f.__name__: f for f in (hellaswag, piqa, winogrande, arc, boolq, openbookqa)}


def fail(path, line, expected, found):
    sys.exit(f"make_choice.py: {path}: line {line}: not a record of this task\n  expected: {expected}\n  found   : {found[:80]}")


def convert(task, source, labels):
    with open(source, encoding="utf-8-sig") as f:
        lines = [(n, line) for n, line in enumerate(f.read().split("\n"), 1) if line.strip()]
    if not lines:
        sys.exit(f"make_choice.py: {source}: the file is empty")
    if labels:
        with open(labels, encoding="utf-8") as f:
            golds = f.read().split()
        if len(golds) != len(lines):
            sys.exit(f"make_choice.py: {labels}: not the labels of {source}\n  expected: {len(lines)} labels\n  found   : {len(golds)}")
    for i, (n, line) in enumerate(lines):
        try:
            query, choices, gold = TASKS[task](json.loads(line), golds[i] if labels else None)
        except Wrong as e:
            fail(source, n, e, line)
        except ValueError as e:
            fail(source, n, "one JSON object per line", f"{e}: {line}")
        yield {"query": query, "choices": choices, "gold": gold}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("source", help="the task's own file")
    parser.add_argument("out", help="JSON lines for irq_eval --choice")
    parser.add_argument("--labels", help="the right answers, one a line, where they are in a file of their own")
    args = parser.parse_args()
    temporary = args.out + ".tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            count = 0
            for question in convert(args.task, args.source, args.labels):
                f.write(json.dumps(question, ensure_ascii=False) + "\n")
                count += 1
        os.replace(temporary, args.out)
    except (OSError, UnicodeDecodeError) as e:
        sys.exit(f"make_choice.py: {e}")
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    print(f"{args.out}: {count:,} questions", file=sys.stderr)


if __name__ == "__main__":
    main()
