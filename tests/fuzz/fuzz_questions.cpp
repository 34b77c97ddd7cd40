// Question files of irq_eval: JSON lines of --choice, CSV of MMLU.
#include "src/eval/choice_task.h"
#include "src/text/csv.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const irq::FuzzFile file(data, size);
  irq::fuzz([&] { irq::read_choice_file(file.path()); });
  const std::string content(reinterpret_cast<const char*>(data), size);
  for (const size_t columns : {1, 2, 6})
    irq::fuzz([&] {
      std::vector<irq::CsvRow> rows = irq::parse_csv("fuzz.csv", content, columns);
      irq::print_as_pandas(rows);
    });
  return 0;
}
