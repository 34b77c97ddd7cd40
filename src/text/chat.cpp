#include "src/text/chat.h"

#include "src/core/check.h"
#include "src/text/instruct.h"

namespace irq {
namespace {

constexpr const char* kStart = "<|im_start|>";
constexpr const char* kEnd = "<|im_end|>";

bool holds(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// ChatML templates spell their default system message out between "<|im_start|>system" and "<|im_end|>", the line break
// as one or as \n. Where a quote stands in between it is no message but a place for the caller's.
std::string default_system(const std::string& chat_template) {
  for (const std::string line_break : {"\n", "\\n"}) {
    const std::string head = std::string(kStart) + "system" + line_break;
    const size_t at = chat_template.find(head);
    if (at == std::string::npos) continue;
    const size_t begin = at + head.size(), end = chat_template.find(kEnd, begin);
    if (end == std::string::npos) continue;
    std::string message = chat_template.substr(begin, end - begin);
    if (message.find_first_of("'\"{}") != std::string::npos) continue;
    for (size_t i; (i = message.find("\\n")) != std::string::npos;) message.replace(i, 2, "\n");
    return message;
  }
  return "";
}

void append(std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

std::string stripped(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

std::vector<int32_t> chatml_turn(const Tokenizer& t, const ChatForm& form, const std::string& user, bool first) {
  std::vector<int32_t> ids;
  const auto message = [&](const std::string& text) {
    ids.push_back(t.special_id(kStart));
    append(ids, t.encode(text, false, Before::special));
  };
  const auto close = [&] {
    ids.push_back(t.special_id(kEnd));
    append(ids, t.encode("\n", false, Before::special));
  };
  if (!first) {
    append(ids, t.encode("\n", false, Before::special));  // behind the answer's <|im_end|>
  } else {
    if (form.bos && t.bos() >= 0) ids.push_back(t.bos());
    if (!form.system.empty()) message("system\n" + form.system), close();
  }
  message("user\n" + user), close();
  message("assistant\n");
  return ids;
}

}  // namespace

const char* name_of(ChatKind kind) {
  switch (kind) {
    case ChatKind::alpaca: return "Alpaca's prompt";
    case ChatKind::chatml: return "ChatML";
    case ChatKind::llama2: return "LLaMA-2's [INST]";
  }
  return "";
}

ChatForm recognise_chat(const Tokenizer& tokenizer) {
  const std::string text = tokenizer.chat_template();
  ChatForm form;
  if (holds(text, kStart) && holds(text, kEnd) && tokenizer.special_id(kStart) >= 0 &&
      tokenizer.special_id(kEnd) >= 0) {
    form.kind = ChatKind::chatml;
    form.system = default_system(text);
    form.bos = holds(text, "bos_token");
  } else if (holds(text, "[INST]") && holds(text, "[/INST]") && holds(text, "<<SYS>>") && tokenizer.bos() >= 0 &&
             tokenizer.eos() >= 0) {
    form.kind = ChatKind::llama2;
    form.bos = true;
  }
  return form;
}

std::vector<int32_t> chat_turn(const Tokenizer& tokenizer, const ChatForm& form, const std::string& user,
                               bool first_turn) {
  switch (form.kind) {
    case ChatKind::chatml: return chatml_turn(tokenizer, form, user, first_turn);
    case ChatKind::llama2: {
      // Every turn is a string of its own between BOS and EOS. No default system message: later templates dropped it.
      const std::string system = first_turn && !form.system.empty() ? "<<SYS>>\n" + form.system + "\n<</SYS>>\n\n" : "";
      return tokenizer.encode("[INST] " + stripped(system + user) + " [/INST]", true, Before::special);
    }
    case ChatKind::alpaca: break;
  }
  if (!first_turn) return tokenizer.encode(chat_prompt("", user, false), false, Before::special);
  const bool bos = tokenizer.adds_bos();
  return tokenizer.encode(alpaca_prompt(user, ""), bos, bos ? Before::special : Before::nothing);
}

int32_t end_of_answer(const Tokenizer& tokenizer, const ChatForm& form) {
  return form.kind == ChatKind::chatml ? tokenizer.special_id(kEnd) : tokenizer.eos();
}

}  // namespace irq
