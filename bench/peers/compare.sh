#!/usr/bin/env bash
# The engine and its peers on one GPU, one after the other, the engine before and after them.
#   bench/peers/compare.sh [FILE]      PYTHON=python3   TOKENIZER=tokenizer.model (for Unsloth)   BENCH=./irq_bench
#   JSON=irq-peers.json (what irq_bench --peers reads)
# A peer that is not installed is left out, and said so.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bench=${BENCH:-$here/../../irq_bench}
python=${PYTHON:-python3}
json=${JSON:-irq-peers.json}
[ $# -eq 0 ] || exec > >(tee "$1") 2>&1

has() { "$python" -c "import importlib.util, sys; sys.exit(not all(importlib.util.find_spec(m) for m in sys.argv[1:]))" "$@"; }
show() { printf '\n$ %s\n' "$*"; "$@"; }
engine() {
  show "$bench" step --model 7b --rows 16x512 --steps 10 --quiet
  show "$bench" step --model 7b --rows 16x123 --steps 10 --quiet
  show "$bench" step --model 7b --rows 16x123 --labelled 0.49 --templates 29,39 --steps 10 --quiet
}
peer() { # module that must be there, then the script and its arguments
  local module=$1
  shift
  if has torch "$module"; then show "$python" "$here/$1" "${@:2}"; else printf '\nleft out: %s (%s is not installed)\n' "$*" "$module"; fi
}

engine
peer bitsandbytes qlora.py bnb --decode
peer liger_kernel qlora.py liger
if [ -n "${TOKENIZER:-}" ]; then peer unsloth qlora.py unsloth "$TOKENIZER"; else echo "left out: Unsloth (TOKENIZER is not set)"; fi
peer transformers released_layer.py
peer torch attention.py --json "$json"
peer torch icq_search.py --json "$json"
ratios=()
[ ! -f "$json" ] || ratios=(--peers "$json")
for op in attention_fwd attention_bwd icq_search; do show "$bench" $op --quiet "${ratios[@]}"; done
engine
