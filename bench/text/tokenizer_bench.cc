// Speed of the tokenizer on one core.
//
//   tokenizer_bench TOKENIZER_JSON [NAME=FILE ...] [--benchmark_... ]
//
// Encodes each file in pieces of 16 KiB or so, as prompts are, then 1 MiB each of texts made to be
// slow, and decodes. compare_tokenizers.py runs this beside the `tokenizers` package.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace {

using namespace m2::text;
using Shared = std::shared_ptr<const Tokenizer>;

constexpr size_t kPrompt = 16 << 10;
constexpr size_t kHostile = 1 << 20;

std::vector<std::string> prompts_of(const std::string& text) {
  std::vector<std::string> prompts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t line_end = text.find('\n', std::min(text.size(), begin + kPrompt));
    const size_t end = line_end == std::string::npos ? text.size() : line_end + 1;
    prompts.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return prompts;
}

void encode(benchmark::State& state, const Shared& tokenizer,
            const std::vector<std::string>& texts) {
  size_t bytes = 0, tokens = 0;
  for (auto _ : state)
    for (const std::string& text : texts) {
      const auto ids = tokenizer->encode(text, AddedTokens::all);
      benchmark::DoNotOptimize(ids.data());
      bytes += text.size();
      tokens += ids.size();
    }
  state.counters["MB/s"] =
      benchmark::Counter(static_cast<double>(bytes) / 1e6, benchmark::Counter::kIsRate);
  state.counters["bytes/token"] = static_cast<double>(bytes) / static_cast<double>(tokens);
}

void stream(benchmark::State& state, const Shared& tokenizer, const std::string& text) {
  const auto ids = tokenizer->encode(text, AddedTokens::all);
  for (auto _ : state) {
    Detokenizer detokenizer(tokenizer, true);
    for (const TokenId id : ids) benchmark::DoNotOptimize(detokenizer.add(id).data());
  }
  state.SetItemsProcessed(static_cast<int64_t>(ids.size()) * state.iterations());
}

void load(benchmark::State& state, const std::string& path) {
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::load(path).ok());
}

std::string repeated(std::string_view unit) {
  std::string text;
  while (text.size() < kHostile) text += unit;
  return text;
}

void register_hostile(const Shared& tokenizer) {
  const std::pair<const char*, const char*> units[] = {
      {"letters", "x"},     {"spaces", " "},           {"newlines", "\n"},
      {"carets", "^"},      {"marks", "\u0301"},       {"marks out of order", "\u0301\u0316"},
      {"underscores", "_"}, {"token starts", "]<"},    {"capitals and marks", "A\u0301"},
      {"Han", "的一是"},    {"invalid bytes", "\xff"}, {"json", "{\"a\":[1,2],\"b\":\"c\"},"}};
  for (const auto& [name, unit] : units)
    benchmark::RegisterBenchmark((std::string("encode/1 MiB of ") + name).c_str(),
                                 [tokenizer, texts = std::vector{repeated(unit)}](auto& state) {
                                   encode(state, tokenizer, texts);
                                 })
        ->Unit(benchmark::kMillisecond);
}

void register_file(const Shared& tokenizer, const std::string& name, const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  benchmark::RegisterBenchmark(("encode/" + name).c_str(), [tokenizer,
                                                            texts = prompts_of(text.str())](
                                                               auto& state) {
    encode(state, tokenizer, texts);
  })->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark(("stream/" + name).c_str(), [tokenizer,
                                                            all = text.str()](auto& state) {
    stream(state, tokenizer, all);
  })->Unit(benchmark::kMillisecond);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc < 2)
    return std::fprintf(stderr, "usage: %s TOKENIZER_JSON [NAME=FILE ...]\n", argv[0]), 2;
  const std::string path = argv[1];
  const auto tokenizer = Tokenizer::load(path);
  if (!tokenizer.ok()) return std::fprintf(stderr, "%s\n", tokenizer.error().text.c_str()), 1;
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) return std::fprintf(stderr, "not NAME=FILE: %s\n", argv[i]), 2;
    register_file(*tokenizer, argument.substr(0, equals), argument.substr(equals + 1));
  }
  register_hostile(*tokenizer);
  benchmark::RegisterBenchmark("load", [path](auto& state) {
    load(state, path);
  })->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
