// The models' own chat forms. A chat template is a program in a template language, which this engine does not run: the
// templates of the model families that it ships support for are recognised by what they contain, and rendered here.
//   ChatML (SmolLM2 and others)   <|im_start|>{role}\n{content}<|im_end|>\n ... <|im_start|>assistant\n
//   LLaMA-2's                     <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer} </s>
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/text/tokenizer.h"

namespace irq {

enum class ChatKind { alpaca, chatml, llama2 };
const char* name_of(ChatKind kind);  // "Alpaca's prompt", "ChatML", "LLaMA-2's [INST]"

struct ChatForm {
  ChatKind kind = ChatKind::alpaca;
  std::string system;  // the template's own default system message, "" if it has none
  bool bos = false;    // ChatML: the template begins with the tokenizer's BOS
};

// What the tokenizer's chat template is, if it is one of the above (and the vocabulary has the special tokens that it
// needs); alpaca if it is another or there is none.
ChatForm recognise_chat(const Tokenizer& tokenizer);

// The ids that stand before the assistant's answer to `user`: of the first turn (with BOS where the form has one, and the
// system message), or of a later one, which goes behind the previous answer and the token that ended it (end_of_answer).
// Special tokens spelled out in `user` are plain text: a user cannot end a turn or begin another one.
std::vector<int32_t> chat_turn(const Tokenizer& tokenizer, const ChatForm& form, const std::string& user,
                               bool first_turn);
// What closes an answer in the conversation's ids: <|im_end|> or EOS.
int32_t end_of_answer(const Tokenizer& tokenizer, const ChatForm& form);

}  // namespace irq
