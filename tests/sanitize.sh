#!/usr/bin/env bash
# compute-sanitizer over the CUDA tests: memcheck (out of bounds, leaks of context errors) and racecheck (shared memory).
#   tests/sanitize.sh [folder of irq_tests]       needs a GPU; about two minutes on an H100
# Two filters, each with its reason:
#   - the test that asks for more memory than there is makes cudaMalloc fail on purpose: API errors are not reported;
#   - racecheck reports hazards inside cuBLASLt's own split-K kernels (nvjet_*): they are not this project's.
set -uo pipefail
build=${1:-build}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
[ -n "$sanitizer" ] || { echo "sanitize: compute-sanitizer is not installed" >&2; exit 77; }
tests=("$build/irq_tests" "--gtest_filter=*Cuda*" --gtest_brief=1)
status=0
"$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "${tests[@]}" || status=1
"$sanitizer" --tool racecheck --kernel-regex-exclude kns=nvjet --error-exitcode 9 "${tests[@]}" || status=1
exit $status
