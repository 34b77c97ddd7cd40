// What other programs took for the same work on the same GPU: bench/peers/*.py --json FILE writes it.
#pragma once
#include <string>
#include <vector>

namespace irq {

struct PeerTime {
  std::string op, shape, peer;  // shape: what the bench's own shape begins with, "N=8192,s=512"
  double us = 0;
};
// {"device": NAME, "results": [{"op", "shape", "peer", "us"}, ...]}. Throws an Error where it is something else, or where
// `device` (Backend::describe(), which begins with the GPU's name) is another GPU: a ratio of two machines says nothing.
std::vector<PeerTime> read_peer_times(const std::string& path, const std::string& device);
// "1.24x torch flash, 0.88x torch cuDNN": how many times as long they take. "-" where nobody was measured.
std::string ratio_to_peers(const std::vector<PeerTime>& peers, const std::string& op, const std::string& shape,
                           double us);

}  // namespace irq
