#!/usr/bin/env bash
# The whole pipeline on the tiny model beside this script: quantize to 4 bits with ICQ, finetune by IR-QLoRA, compare.
#   make demo                  or, with the tools built:  tools/demo/demo.sh
#   DEMO_STEPS=N               finetuning steps
#   DEMO_ARGS='--device cpu'   more flags for every tool
set -euo pipefail
cd "$(dirname "$0")/../.."

steps=${DEMO_STEPS:-150}
read -r -a args <<<"${DEMO_ARGS:-}"
demo=tools/demo
base=$demo/model.bin
out=runs/demo

export OMP_WAIT_POLICY=passive  # threads that wait must not hold a core that something else could use

say() { printf '\n== %s\n' "$1"; }
show() { printf '$ %s\n' "$*"; "$@"; }
run() { # a tool and its arguments, shown before it runs
  local tool=$1
  shift
  show "./$tool" "$@" ${args[@]+"${args[@]}"}
}
ask() { # an instruction and its input, in the form the finetuning data has; more arguments go to irq_generate
  local instruction=$1 input=$2
  shift 2
  local prompt="Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
$instruction

### Input:
$input

### Response: "
  printf '%-36s %-12s ' "$instruction" "$input"
  ./irq_generate "$out/model.irq" --prompt "$prompt" --max-tokens 32 --stop $'\n' --quiet "$@" ${args[@]+"${args[@]}"}
}
questions() {
  ask "What kind of thing is it?" bitterness "$@"
  ask "Is it a noun, a verb or an adjective?" impetuous "$@"
  ask "Define the word." grass "$@"
}

[ -f "$base" ] || { echo "demo: $base is not here" >&2; exit 1; }
mkdir -p "$out"
started=$SECONDS

say "1. Quantize to 4 bits; ICQ shifts each block of 64 weights for the most entropy"
run irq_quantize "$base" "$out/model.irq" --bits 4

say "2. The quantized model before finetuning: loss on 300 held-out instructions"
run irq_eval "$out/model.irq" --loss "$demo/heldout.json"

say "3. Finetune LoRA adapters with IEC on the frozen 4-bit model: $steps steps"
run irq_train "$out/model.irq" --data "$demo/train.json" --eval-data "$demo/heldout.json" --steps "$steps" --lr 2e-3 \
  --warmup 10 --out "$out/ir-qlora" --overwrite

say "4. The same loss after finetuning"
run irq_eval "$out/model.irq" --adapter "$out/ir-qlora/adapter.lora" --loss "$demo/heldout.json"

say "5. Words that no training instruction asks about, before finetuning"
questions
say "6. ... and after"
questions --adapter "$out/ir-qlora/adapter.lora"

printf '\ndemo finished in %d s; its files are in %s\n' $((SECONDS - started)) "$out"
