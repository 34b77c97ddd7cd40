// What the tests of irq_table share: its arguments on the tiny model, and its results without what no two runs have in common.
#pragma once
#include "tests/train_fixture.h"

namespace irq {

using Json = nlohmann::ordered_json;

// Times, and the commands, which name folders, are taken out at any depth.
inline Json without_times(const Json& j) {
  if (j.is_array()) {
    Json all = Json::array();
    for (const Json& item : j) all.push_back(without_times(item));
    return all;
  }
  if (!j.is_object()) return j;
  Json kept = Json::object();
  for (const auto& [key, value] : j.items())
    if (key.find("seconds") == std::string::npos && key.find("added_by") == std::string::npos && key != "command")
      kept[key] = without_times(value);
  return kept;
}

class Table : public Train {
 protected:
  // 2 methods x 1 width x 2 seeds of 80 steps, some 5 ms each.
  static Args table_args(const std::string& out, const Args& more = {}) {
    return Args{shared("model.bin"),
                "--data",
                shared("data.tok"),
                "--eval-data",
                held_out(),
                "--window",
                "24",
                "--methods",
                "qlora,ir-qlora",
                "--seeds",
                "1,2",
                "--steps",
                "80",
                "--batch",
                "4",
                "--rank",
                "8",
                "--lr",
                "0.01",
                "--save-every",
                "7",
                "--device",
                "cpu",
                "--threads",
                "1",
                "--out",
                out} +
           more;
  }
  static std::string held_out() {
    const std::string path = shared("held_out.tok");
    if (!fs::exists(path)) write_tokens(path, 200, 2);
    return path;
  }
  static CommandResult table(const std::string& out, const Args& more = {}) {
    return run_command("irq_table", table_args(out, more));
  }
  static Json result(const std::string& out) { return Json::parse(read_text(out + "/table.json")); }
  static Json rows(const std::string& out) { return without_times(result(out).at("rows")); }
  // The table of a run that nothing disturbed, made once.
  static const Json& undisturbed() {
    static const Json rows_of_it = [] {
      const TempDir dir;
      const CommandResult r = table(dir / "t");
      EXPECT_EQ(r.status, 0) << r.err;
      return rows(dir / "t");
    }();
    return rows_of_it;
  }
  static size_t steps_done(const std::string& out, const std::string& cell) {
    const std::string log = read_text(out + "/cells/" + cell + "/run/log.jsonl");
    size_t steps = 0;
    for (size_t at = 0; (at = log.find("\"grad_norm\"", at)) != std::string::npos; ++at) ++steps;
    return steps;
  }
};

}  // namespace irq
