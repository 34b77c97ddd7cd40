#!/usr/bin/env bash
# Runs every fuzzer for FUZZ_SECONDS each (600 by default), as many at once as there are cores, and keeps what they learn under
# build-fuzz/corpus/. Seeds: tests/fuzz/seeds/NAME/. A finding ends the script with status 1 and names the input's file.
#   tests/fuzz/fuzz.sh FUZZER...     (paths under build-fuzz/, from `make fuzz`)
set -uo pipefail
seconds=${FUZZ_SECONDS:-600}
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=0 OMP_NUM_THREADS=1

run() {
  local fuzzer=$1 name
  name=$(basename "$1")
  local folder=build-fuzz/corpus/$name log=build-fuzz/$name.log
  mkdir -p "$folder"
  local seeds=tests/fuzz/seeds/${name#fuzz_}
  [ -d "$seeds" ] || seeds=
  "$fuzzer" "$folder" $seeds -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=65536 \
    -print_final_stats=1 -artifact_prefix=build-fuzz/finding-"$name"- >"$log" 2>&1
  local status=$?
  local runs
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  if [ $status = 0 ]; then
    echo "$name: ${runs:-0} inputs, no finding"
  else
    echo "$name: FINDING ($(grep -m1 -E 'ERROR|SUMMARY|runtime error|ALARM' "$log"))"
    grep -m1 'Test unit written' "$log"
    return 1
  fi
}
export -f run
export seconds
printf '%s\n' "$@" | xargs -P "${FUZZ_JOBS:-$(nproc)}" -I{} bash -c 'run {}' && echo "fuzz: no finding in $# fuzzers, $seconds s each"
