#include "bench/peer_times.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/text/json_file.h"

namespace irq {
namespace {

constexpr int64_t kMaxBytes = 1 << 20;

Error refuse(const std::string& path, const std::string& reason) {
  return Error(path + ": " + reason)
      .line("expected", R"({"device": GPU, "results": [{"op", "shape", "peer", "us"}, ...]})")
      .line("try", "python3 bench/peers/attention.py --json " + path);
}

std::string text_of(const std::string& path, const nlohmann::json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object.at(key).is_string())
    throw refuse(path, strf("an entry has no text '%s'", key));
  return object.at(key).get<std::string>();
}

}  // namespace

std::vector<PeerTime> read_peer_times(const std::string& path, const std::string& device) {
  const nlohmann::json file = read_json_file(path, kMaxBytes);
  const std::string measured_on = text_of(path, file, "device");
  if (!device.starts_with(measured_on + ",") && device != measured_on)
    throw Error(path + ": measured on another device")
        .line("expected", device)
        .line("found", measured_on)
        .line("try", "run the peers' script on this machine, into another file");
  if (!file.contains("results") || !file.at("results").is_array()) throw refuse(path, "it has no list 'results'");
  std::vector<PeerTime> peers;
  for (const nlohmann::json& entry : file.at("results")) {
    PeerTime p{text_of(path, entry, "op"), text_of(path, entry, "shape"), text_of(path, entry, "peer")};
    if (!entry.contains("us") || !entry.at("us").is_number()) throw refuse(path, "an entry has no number 'us'");
    p.us = entry.at("us").get<double>();
    if (!(p.us > 0) || !std::isfinite(p.us)) throw refuse(path, strf("%s took %g us", p.peer.c_str(), p.us));
    peers.push_back(p);
  }
  return peers;
}

std::string ratio_to_peers(const std::vector<PeerTime>& peers, const std::string& op, const std::string& shape,
                           double us) {
  std::string text;
  for (const PeerTime& p : peers)
    if (p.op == op && (shape + ",").starts_with(p.shape + ","))
      text += strf("%s%.3gx %s", text.empty() ? "" : ", ", p.us / us, p.peer.c_str());
  return text.empty() ? "-" : text;
}

}  // namespace irq
