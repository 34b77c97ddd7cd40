// llm.c token files: 256 int32 (magic, version, count of ids), then the ids. 20240520 v1: uint16; 20240801 v7: uint32.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

// True if the file begins as a token file of either kind does.
bool is_token_file(const std::string& content);
// content: the whole file. Throws an Error if the version is unknown or the size is not what the header says.
std::vector<int32_t> parse_token_file(const std::string& path, const std::string& content);
// Writes ids in the first form, or in the second if one of them needs more than 16 bits.
void write_token_file(const std::string& path, const std::vector<int32_t>& ids);

}  // namespace irq
