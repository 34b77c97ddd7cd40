// What a table rests on besides the tools: files, told apart by their content, never by where they lie.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

std::string hash_of_file(const std::string& path);  // 16 hex digits
// Of MMLU's tables in dev/ and test/: names and contents.
std::string hash_of_mmlu(const std::string& folder);
// The words of a command line with every one that names a file replaced by "file HASH".
std::vector<std::string> with_hashed_files(const std::vector<std::string>& words);

// Does the file hold records (JSON or JSONL), or a stream (plain text, tokens)?
bool holds_records(const std::string& path);
void require_records(const std::string& path);  // throws a usage Error where it holds a stream

// The same held-out examples for every cell, whatever its seed: cuts `count` (-1: 2 %, at most 1,024, as irq_train) of a JSON
// or JSONL file's records into folder/heldout.jsonl, the rest into folder/train.jsonl, both in the file's order. Files that
// are there with this content stay as they are. Returns the number held out; 0 writes nothing. Throws an Error where the file
// holds a stream, or fewer records.
int64_t split_records(const std::string& path, int64_t count, const std::string& folder);

}  // namespace irq
