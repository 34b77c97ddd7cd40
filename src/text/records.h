// Records: the examples of a JSON or JSONL data file as strings, before any tokenizer sees them. The form is recognised
// from the first record's keys; every other record must have the same form.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace irq {

enum class DataForm { alpaca, input_output, chat, text, tokens };
const char* name_of(DataForm form);

struct Message {
  std::string role, content;  // role: "system" (first message only), "user" or "assistant"
};

struct Record {
  int64_t line = 0;                        // where it begins in its file, from 1
  std::string instruction, input, output;  // alpaca (input may be empty); input_output
  std::vector<Message> messages;           // chat
};

struct Records {
  DataForm form;
  std::vector<Record> list;
};

// content: the whole file, which begins with '[' (one array) or '{' (one object per line) after white space.
// Throws an Error with file, line, what was expected and what was found.
Records parse_records(const std::string& path, const std::string& content);

}  // namespace irq
