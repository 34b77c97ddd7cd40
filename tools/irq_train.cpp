// irq_train: quantize with ICQ, finetune LoRA adapters with IEC, evaluate, save.
#include "src/model/method.h"
#include "src/train/finetune.h"
#include "tools/icq_flags.h"
#include "tools/session.h"

using namespace irq;

int main(int argc, char** argv) {
  Cli cli("irq_train", "finetune a LLaMA by IR-QLoRA (quantizes it first where needed)");
  TrainOptions o;
  int64_t steps = 0, holdout = 0, gpus = 1, rank = 64;
  int bits = 4;
  std::string legacy = "auto", targets = "all", iec_expand = "interleave", format = "nf", group = "128";
  std::string pool = "mean", iec_align = "raw";
  double alpha = 16, epochs = 0, lr = 0, dropout = 0, clip = 0;
  std::vector<std::string> names;
  for (const Method& m : methods()) names.push_back(m.name);
  cli.positional("BASE", &o.base, "model: a .bin, a .irq, or a config.json (random weights)");
  cli.option("--data", &o.data, "training data (default: train.json beside BASE)");
  cli.option("--eval-data", &o.eval_data, "held-out data");
  cli.option("--holdout", &holdout, "examples taken out of --data instead (default: 2 %, at most 1024)");
  cli.option("--method", &o.method, "what to train", names);
  cli.option("--bits", &bits, "bits per weight of the base", {2, 3, 4});
  cli.option("--format", &format, "code book of the base (default: the method's)", {"nf", "int", "gptq"});
  cli.option("--group", &group, "weights per scale of integers, or channel (default: the method's)");
  cli.option("--lambda", &o.lambda, "ICQ: half-width of the search");
  cli.option("--n", &o.n, "ICQ: 2n + 1 candidates");
  cli.option("--entropy", &o.entropy, "ICQ: how ties are seen", {"exact", "fp32"});
  declare_icq(cli, &o.icq);
  cli.option("--loftq-iters", &o.loftq_iters, "LoftQ: turns of quantizing and correcting; PEFT's default is 1");
  cli.option("--loftq-scaling", &o.loftq_scaling,
             "fold alpha / rank into B, so that training starts at Q + L R, or leave it out as PEFT does",
             {"fold", "peft"});
  cli.option("--recipe", &o.recipe, "whose defaults; the script's add a [PAD] row to the loss",
             {"paper", "official-script"});
  cli.option("--steps", &steps, "optimizer steps (default: 10,000; 20,000 for input/output data)");
  cli.option("--epochs", &epochs, "or passes over the data");
  cli.option("--batch", &o.batch, "examples per step");
  cli.option("--micro-batch", &o.micro_batch, "examples per forward pass (default: all of a step)");
  cli.option("--lr", &lr, "learning rate (default: by model size; peqa 2e-5)");
  cli.option("--warmup", &o.warmup, "steps of linear warm-up");
  cli.option("--schedule", &o.schedule, "after the warm-up", {"constant", "cosine"});
  cli.option("--clip", &clip, "largest gradient norm, 0 = none (default: 0.3; 1 for full)");
  cli.option("--init-adapter", &o.init_adapter, "start from a PEFT folder or a .lora (its rank, alpha, targets)");
  cli.option("--rank", &rank, "LoRA rank");
  cli.option("--alpha", &alpha, "LoRA alpha");
  cli.option("--dropout", &dropout, "on the A branch (default: by model size; qa-lora, ir-qa-lora 0)");
  cli.option("--target-modules", &targets, "linears with an adapter: all, or q_proj,v_proj,...");
  cli.option("--iec-expand", &iec_expand, "how IEC widens a vector", {"interleave", "tile"});
  cli.option("--pool", &pool, "qa-lora, ir-qa-lora: what A sees of a group (default: mean; sum for ir-qa-lora)",
             {"mean", "sum", "peft"});
  cli.option("--iec-align", &iec_align, "ir-qa-lora: slices of features, or of groups (merges for any width)",
             {"raw", "group"});
  cli.option("--source-len", &o.source_len, "tokens of a prompt that are kept");
  cli.option("--target-len", &o.target_len, "tokens of an answer that are kept");
  cli.option("--window", &o.window, "tokens per example of plain text and token files");
  declare_legacy(cli, &legacy);
  cli.option("--seed", &o.seed, "of everything random");
  cli.option("--gpus", &gpus, "GPUs to use: 1");
  cli.size_option("--memory-limit", &o.memory_limit, "most memory to use, e.g. 10GiB");
  cli.option("--recompute", &o.recompute, "trade time for memory", {"auto", "none", "norms", "gate_up", "block"});
  cli.option("--residency", &o.residency, "weights on the device", {"auto", "packed", "cached"});
  cli.option("--tune-matmul", &o.tune_matmul, "time the algorithms of each matrix product once, keep the fastest",
             {"on", "off"});
  cli.option("--graphs", &o.graphs, "on a GPU, record the passes of a step and replay them", {"on", "off"});
  cli.option(
      "--share-prefixes", &o.share_prefixes,
      "compute what prompts begin alike with once a batch; auto: without dropout; on: under dropout too, with one mask "
      "for what is shared",
      {"auto", "on", "off"});
  cli.option("--dtype", &o.dtype, "type of the model.bin that full training writes", {"f32", "f16", "bf16"});
  cli.option("--eval-every", &o.eval_every, "steps between held-out losses, 0 = at the ends only");
  cli.option("--save-every", &o.save_every, "steps between training states, 0 = at the end only");
  cli.option("--out", &o.out, "folder for the results (default: runs/BASE-METHOD-BITS)");
  cli.flag("--resume", &o.resume, "go on with an interrupted run");
  cli.flag("--overwrite", &o.overwrite, "start again in a folder that holds a run");
  cli.flag("--print-tape", &o.print_tape, "print the first step's tape: node, shapes, saved bytes, times");
  cli.range("--batch", 1, 1 << 20);
  cli.range("--micro-batch", 0, 1 << 20);
  cli.range("--rank", 1, 4096);
  cli.range("--dropout", 0, 0.95);
  cli.range("--lambda", 0, 10);
  cli.range("--n", 1, 1000);
  cli.range("--loftq-iters", 1, 100);
  cli.range("--steps", 0, 1e9);
  cli.range("--epochs", 0, 1e6);
  cli.range("--holdout", 0, 1e9);
  cli.range("--warmup", 0, 1e9);
  cli.range("--clip", 0, 1e9);
  cli.range("--alpha", 0, 1e6);
  cli.range("--eval-every", 0, 1e9);
  cli.range("--save-every", 0, 1e9);
  cli.range("--lr", 0, 10);
  cli.range("--source-len", 1, 1 << 20);
  cli.range("--target-len", 1, 1 << 20);
  cli.range("--window", 2, 1 << 20);
  cli.footer(
      "Data: JSON or JSONL with \"instruction\", \"input\" (may be empty), \"output\" (Alpaca); or \"input\", "
      "\"output\"; or\n      \"messages\" (chat). Plain text (.txt). Token files of llm.c.\n"
      "./irq_train llama7b.bin --data alpaca_data.json\n./irq_train tools/demo/model.bin --steps 200");
  return cli.run(argc, argv, [&] {
    const auto exclude = [&](const char* a, const char* b) {
      if (cli.given(a) && cli.given(b))
        throw Error(std::string(a) + " and " + b + " contradict each other", Exit::usage);
    };
    exclude("--steps", "--epochs"), exclude("--eval-data", "--holdout"), exclude("--resume", "--overwrite");
    const std::pair<const char*, const std::string*> paths[] = {
        {"--data", &o.data}, {"--eval-data", &o.eval_data}, {"--init-adapter", &o.init_adapter}, {"--out", &o.out}};
    for (const auto& [flag, path] : paths)
      if (cli.given(flag) && path->empty())  // an empty variable of a script, not a wish for the default
        throw Error(std::string(flag) + ": the name is empty", Exit::usage)
            .line("try", std::string("a name, or without ") + flag);
    if (cli.given("--bits")) o.bits = bits;
    if (cli.given("--format")) o.format = format;
    if (cli.given("--group")) o.group = group;
    if (cli.given("--steps")) o.steps = steps;
    if (cli.given("--epochs")) o.epochs = epochs;
    if (cli.given("--holdout")) o.holdout = holdout;
    if (cli.given("--rank")) o.rank = rank;
    if (cli.given("--alpha")) o.alpha = alpha;
    if (cli.given("--target-modules")) o.targets = targets;
    if (cli.given("--iec-expand")) o.iec_expand = iec_expand;
    if (cli.given("--pool")) o.pool = pool;
    if (cli.given("--iec-align")) o.iec_align = iec_align;
    if (cli.given("--lr")) o.lr = lr;
    if (cli.given("--dropout")) o.dropout = dropout;
    if (cli.given("--clip")) o.clip = clip;
    if (gpus != 1) throw Error("--gpus: several GPUs are not supported yet", Exit::usage).line("try", "--gpus 1");
    o.legacy = legacy_of(legacy);
    o.quiet = cli.quiet();
    o.command = cli.command();
    o.given = cli.given_flags();
    const auto backend = cli.backend();
    return finetune(*backend, o);
  });
}
