// irq_generate MODEL: continue a text, answer an instruction, or hold a conversation. stdout holds the completion only.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "src/core/ignored_flags.h"
#include "src/core/interrupt.h"
#include "src/eval/generate.h"
#include "src/text/chat.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string model, adapter, prompt, ids, form = "auto", legacy = "auto";
  bool chat = false, has_prompt = false, has_ids = false;
  std::vector<std::string> stops;
  SamplingOptions sampling;
  int64_t max_tokens = 256;
};

void check_arguments(Arguments& a, const Cli& cli) {
  a.has_prompt = cli.given("--prompt"), a.has_ids = cli.given("--ids");
  if (!a.has_prompt && !a.has_ids && !a.chat)
    throw usage_error(cli.tool(), "nothing to continue: give --prompt, --chat or --ids");
  if (a.has_ids && (a.has_prompt || a.chat))
    throw usage_error(cli.tool(), "--ids stands alone: it takes the place of --prompt and --chat");
  refuse_ignored(cli.given_flags(), {{!a.chat, {"--template"}, "only --chat puts a prompt into a form"},
                                     {a.sampling.temperature == 0,
                                      {"--top-p", "--top-k", "--seed"},
                                      "without --temperature the likeliest token is taken"}});
  for (const std::string& s : a.stops)
    if (s.empty()) throw usage_error(cli.tool(), "--stop: an empty string would end every text at once");
}

void show(const std::string& text) {
  if (text.empty()) return;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

class Generate {
 public:
  Generate(const Arguments& a, Cli& cli, Backend& backend)
      : a_(a), cli_(cli), session_(backend, a.model, a.adapter), sampler_(a.sampling), generator_(session_) {
    const std::string path = find_tokenizer(a.model);
    tokenizer_ =
        a.has_ids && a.stops.empty() && path.empty() ? nullptr : require_tokenizer(a.model, legacy_of(a.legacy));
    if (a.chat) choose_form();
    options_.max_tokens = a.max_tokens;
    // BOS ends a text as well: a model trained on a stream of documents puts it where the next one would begin.
    options_.end_ids = {session_.config().eos, session_.config().bos};
    if (tokenizer_)
      for (const int32_t id : tokenizer_->end_ids()) options_.end_ids.push_back(id);
  }

  int run() {
    if (a_.chat && !a_.has_prompt) return converse();
    if (a_.has_ids) return complete(parse_ids("--ids", a_.ids, session_.config().vocab));
    return complete(a_.chat ? turn(a_.prompt, true)
                            : in_vocabulary(tokenizer_->encode(a_.prompt, tokenizer_->adds_bos())));
  }

 private:
  int complete(const std::vector<int32_t>& prompt);
  int converse();
  Generated answer(const std::vector<int32_t>& context, bool goes_on);
  std::vector<int32_t> in_vocabulary(std::vector<int32_t> ids) const;
  void choose_form();
  std::vector<int32_t> turn(const std::string& user, bool first) const {
    return in_vocabulary(chat_turn(*tokenizer_, form_, user, first));
  }

  const Arguments& a_;
  Cli& cli_;
  ModelSession session_;
  std::unique_ptr<Tokenizer> tokenizer_;  // null: --ids without one
  Sampler sampler_;
  Generator generator_;
  GenerateOptions options_;
  ChatForm form_;
};

// An adapter that irq_train made knows Alpaca's prompt, in which all of its data are put; a model alone knows its own form.
void Generate::choose_form() {
  const ChatForm own = recognise_chat(*tokenizer_);
  const bool known = own.kind != ChatKind::alpaca, has_one = !tokenizer_->chat_template().empty();
  if (a_.form == "model" && !known)
    throw Error(a_.model + (has_one ? ": its chat template is none that this engine knows"
                                    : ": no chat template beside it (tokenizer_config.json)"))
        .line("expected", "ChatML or LLaMA-2's [INST]; a template language is not built in")
        .line("try", "--template alpaca, or --prompt with the conversation written out");
  if (known && (a_.form == "model" || (a_.form == "auto" && a_.adapter.empty()))) form_ = own;
  if (known || has_one)
    cli_.note(strf("chat form: %s%s", name_of(form_.kind),
                   form_.kind != ChatKind::alpaca ? ", the model's own"
                   : a_.form == "alpaca"          ? ""
                   : known                        ? ", as for every adapter (--template model: the model's own)"
                                                  : "; the model's chat template is none that this engine knows"));
}

std::vector<int32_t> Generate::in_vocabulary(std::vector<int32_t> ids) const {
  if (ids.empty())
    throw usage_error(cli_.tool(),
                      "--prompt: the prompt is empty, and this tokenizer puts no begin-of-text mark in front");
  for (const int32_t id : ids)
    if (id < 0 || id >= session_.config().vocab)
      throw Error(a_.model + ": the tokenizer beside it gives ids outside the model's vocabulary")
          .line("expected", strf("ids below %s", with_commas(session_.config().vocab).c_str()))
          .line("found", strf("%d (%s)", id, tokenizer_->describe().c_str()))
          .line("likely", "the tokenizer beside the model is another model's");
  return ids;
}

// Shows the completion as it comes. goes_on: it continues the context's text, so a space in front belongs to it.
Generated Generate::answer(const std::vector<int32_t>& context, bool goes_on) {
  std::unique_ptr<TextStream> text;
  if (tokenizer_)
    text = std::make_unique<TextStream>(*tokenizer_, a_.stops, goes_on ? context : std::vector<int32_t>{});
  bool first = true;
  const Generated g = generator_.run(context, sampler_, options_, [&](int32_t id) {
    const std::string piece = text ? text->push(id) : "";
    show(a_.has_ids ? (first ? "" : ",") + std::to_string(id) : piece);
    first = false;
    return !text || !text->stopped();
  });
  if (text && !a_.has_ids) show(text->finish());
  show("\n");
  cli_.note(strf("prompt: %ld tokens in %.2f s; completion: %zu tokens, %.1f tok/s; ended by: %s", g.prefilled,
                 g.prefill_s, g.ids.size(), static_cast<double>(g.ids.size()) / std::max(g.decode_s, 1e-9),
                 describe(g.reason)));
  return g;
}

int Generate::complete(const std::vector<int32_t>& prompt) {
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t context = session_.config().max_seq;
  if (length > context)
    throw Error("the prompt is too long for this model")
        .line("expected", strf("at most %s tokens", with_commas(context).c_str()))
        .line("found", with_commas(length) + " tokens");
  load_session(cli_, session_, {Generator::workload(std::min(length + a_.max_tokens, context))});
  answer(prompt, !a_.chat);
  return 0;
}

// One instruction per line of stdin; the model sees the whole conversation, in the form that chat data is trained in.
int Generate::converse() {
  std::vector<Workload> choices;
  for (int64_t tokens = session_.config().max_seq; tokens > 0; tokens = tokens > 512 ? tokens / 2 : 0)
    choices.push_back(Generator::workload(tokens));
  load_session(cli_, session_, choices);
  const bool terminal = isatty(STDIN_FILENO) && !cli_.quiet();
  if (terminal) cli_.note("one instruction per line; Ctrl-D ends the conversation");
  std::vector<int32_t> context;
  for (std::string line;;) {
    if (terminal) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line)) break;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::vector<int32_t> next = turn(line, context.empty());
    context.insert(context.end(), next.begin(), next.end());
    if (static_cast<int64_t>(context.size()) > session_.cache_tokens())
      throw Error("the conversation is too long for this model")
          .line("expected", strf("at most %s tokens", with_commas(session_.cache_tokens()).c_str()))
          .line("found", with_commas(static_cast<long long>(context.size())) + " tokens with this turn");
    const Generated g = answer(context, false);
    context.insert(context.end(), g.ids.begin(), g.ids.end());
    // An answer ends with its end mark, as in training, also one that was cut short.
    const int32_t end = end_of_answer(*tokenizer_, form_);
    context.push_back(end >= 0 ? end : session_.config().eos);
  }
  throw_if_interrupted();
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_generate", "continue a text, answer an instruction, or hold a conversation");
  cli.positional("MODEL", &a.model, "a .bin, a .irq, or a config.json (random weights)");
  cli.option("--adapter", &a.adapter, "a .lora trained on this model");
  cli.option("--prompt", &a.prompt, "the text to continue; with --chat, an instruction to answer");
  cli.flag("--chat", &a.chat, "put instructions into a chat form; without --prompt: one per line of stdin");
  cli.option(
      "--template", &a.form,
      "chat form: the model's own (ChatML or LLaMA-2's [INST], no others), or Alpaca's prompt; auto = the model's "
      "own where it is one of these and there is no --adapter",
      {"auto", "alpaca", "model"});
  cli.option("--ids", &a.ids, "token ids (1,2,3) to continue; prints token ids");
  cli.option("--temperature", &a.sampling.temperature, "0 = always the likeliest token");
  cli.range("--temperature", 0, 100);
  cli.option("--top-p", &a.sampling.top_p, "draw among the likeliest tokens that together have this probability");
  cli.range("--top-p", 1e-9, 1);
  cli.option("--top-k", &a.sampling.top_k, "draw among this many tokens, 0 = all");
  cli.range("--top-k", 0, 1e9);
  cli.option("--repetition-penalty", &a.sampling.repetition_penalty, "above 1: against tokens that occurred already");
  cli.range("--repetition-penalty", 0.01, 100);
  cli.option("--stop", &a.stops, "strings that end the completion (they are not shown)");
  declare_legacy(cli, &a.legacy);
  cli.option("--seed", &a.sampling.seed, "of the sampling");
  cli.option("--max-tokens", &a.max_tokens, "most tokens of a completion");
  cli.range("--max-tokens", 1, 1e9);
  cli.footer(
      "Order of the choice: repetition penalty, temperature, top-k, top-p.\n"
      "./irq_generate llama7b.irq --adapter adapter.lora --chat --prompt 'Name three rivers.'\n"
      "./irq_generate llama7b.bin --prompt 'Once upon a time' --temperature 0.8 --top-p 0.9 --seed 7");
  return cli.run(argc, argv, [&] {
    check_arguments(a, cli);
    const auto backend = cli.backend();
    return Generate(a, cli, *backend).run();
  });
}
