#!/usr/bin/env bash
# compute-sanitizer over the CUDA tests: memcheck (out of bounds, leaks of context errors) and racecheck (shared memory).
#   tests/sanitize.sh [folder of irq_tests]       needs a GPU; about two minutes on an H100
# Two things are not counted, each with its reason:
#   - the test that asks for more memory than there is makes cudaMalloc fail on purpose: API errors are not reported;
#   - racecheck reports hazards inside cuBLASLt's own split-K kernels (nvjet_*), which are not this project's. (Excluding
#     them with --kernel-regex-exclude makes the sanitizer 2025.3 itself fail, so its report is filtered instead.)
set -uo pipefail
build=${1:-build}
filter=${2:-*Cuda*}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
[ -n "$sanitizer" ] || { echo "sanitize: compute-sanitizer is not installed" >&2; exit 77; }
tests=("$build/irq_tests" "--gtest_filter=$filter" --gtest_brief=1)
status=0
"$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "${tests[@]}" || status=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$sanitizer" --tool racecheck --print-limit 100000 "${tests[@]}" >"$log" 2>&1
tail -n 3 "$log"
grep -q ', 0 failed' "$log" || status=1
if grep -E 'Race reported|hazard' "$log" | grep -vE 'nvjet|SUMMARY|hazards\]'; then status=1; fi
[ $status = 0 ] && echo "sanitize: clean" || echo "sanitize: NOT clean"
exit $status
