#!/usr/bin/env bash
# What `make check` proves about the tree, besides what the compiler and the tests prove.
#   tools/check.sh            report every violation; exit status 1 if there is one
#   tools/check.sh --format   rewrite the sources with clang-format instead
set -uo pipefail
cd "$(dirname "$0")/.."
mapfile -t sources < <(git ls-files -co --exclude-standard | grep -E '\.(h|cpp|cu|cuh|inc)$')
mapfile -t formatted < <(printf '%s\n' "${sources[@]}" | grep -v '\.inc$')
failed=0
report() { echo "$1: $2"; failed=1; }

if [ "${1:-}" = --format ]; then
  exec clang-format -i "${formatted[@]}"
fi

# 1. Includes point down: L0 src/core, L1 kernels, L2 src/quant src/autograd, L3 src/ops, L4 src/model src/io src/text,
#    L5 src/train src/eval src/report, L6 tools, above them tests and bench.
violations=$(grep -nHE '^#include "' "${sources[@]}" | awk -F: '
  function layer(path) {
    if (path ~ /^src\/core\//) return 0
    if (path ~ /^kernels\//) return 1
    if (path ~ /^src\/(quant|autograd)\//) return 2
    if (path ~ /^src\/ops\//) return 3
    if (path ~ /^src\/(model|io|text)\//) return 4
    if (path ~ /^src\/(train|eval|report)\//) return 5
    if (path == "tools/irq_bench.cpp") return 7  # the main of bench/
    if (path ~ /^tools\//) return 6
    return path ~ /^(tests|bench)\// ? 7 : -1
  }
  { target = $3; sub(/^#include "/, "", target); sub(/".*/, "", target)
    from = layer($1); to = layer(target)
    if (to < 0) print $1 ":" $2 ": \"" target "\" is not named from the root of the tree"
    else if (to > from) print $1 ":" $2 ": L" from " includes \"" target "\" of L" to }')
[ -z "$violations" ] || report layering "$violations"

# 2. Nothing above src/ops calls a device op that computes, except the optimizer's two in src/train. Moving, filling,
#    unpacking and adding up memory is no computation of the model.
memory_ops='copy|fill|axpby|gather_rows|reduce_sum|nfk_dequant'
ops=$(sed -n 's/^IRQ_OP(\([a-z0-9_]*\),.*/\1/p' kernels/ops.inc | grep -vE "^($memory_ops)$" | paste -sd'|')
calls=$(printf '%s\n' "${sources[@]}" | grep -E '^(src/(model|io|text|train|eval|report)|tools)/' |
        xargs -r grep -nHE "[bB]ackend(_|\(\))?(\.|->)($ops)\(" | grep -vE '^src/train/.*(\.|->)(global_norm|adamw)\(')
[ -z "$calls" ] || report "device op called above src/ops" "$calls"

# 3. Sizes.
for f in "${sources[@]}"; do
  lines=$(wc -l <"$f"); limit=400
  [ "$f" = src/model/llama.cpp ] && limit=249
  [ "$lines" -le $limit ] || report size "$f has $lines lines, at most $limit"
done

# 4. At most five preprocessor conditionals: what a build leaves out is chosen by linking.
conditionals=$(grep -nHE '^[[:space:]]*#[[:space:]]*(if|ifdef|ifndef)\b' "${sources[@]}")
[ "$(grep -c . <<<"$conditionals")" -le 5 ] || report "more than five preprocessor conditionals" "$conditionals"

# 5. Every kernel file says what it does before it does it.
for f in $(printf '%s\n' "${sources[@]}" | grep -E '^kernels/.*\.cu$'); do
  [ -f "$f" ] || continue
  for field in What Math Shapes Cost Tricky; do
    head -n 60 "$f" | grep -qE "^(//|[ /*]*) *$field\b" || report "opening comment" "$f lacks the field $field"
  done
done

# 6. Nothing names a place that exists on one machine only.
paths=$(git ls-files -co --exclude-standard | xargs -r -d '\n' grep -nHIE '(^|[^a-zA-Z0-9_.])/(wor[k]|hom[e]|roo[t])/[a-zA-Z]')
[ -z "$paths" ] || report "machine path" "$paths"

# 7. Formatting.
if command -v clang-format >/dev/null; then
  unformatted=$(clang-format --dry-run "${formatted[@]}" 2>&1 | sed -n 's/^\([^ :]*\):.*clang-formatted.*/\1/p' | sort | uniq -c)
  [ -z "$unformatted" ] || report "not formatted (lines, file; make format mends it)" "
$unformatted"
else
  echo "clang-format is not installed: formatting is not checked"
fi

[ $failed -eq 0 ] && echo "check: ${#sources[@]} files, no violation"
exit $failed
