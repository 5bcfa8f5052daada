#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/bench/request_result.h"
#include "base/result.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

// The prompts of a run (contract.md 6.3, 6.8). A seed gives the same prompts as the Python clients.

namespace m2::app::bench {

struct RandomDataset {
  int64_t input_len = 1024;
  int64_t output_len = 128;
  double range_ratio = 0;  // lengths are drawn from L(1-r)..L(1+r)
  int64_t prefix_len = 0;  // tokens that all prompts begin with, beside input_len
};

struct FileDataset {
  std::string path;
  std::optional<int64_t> output_len;  // instead of what each row says
  bool oversample = true;             // too few rows: some again, chosen at random
  bool apply_chat_template = true;    // custom, sonnet: prompts are whole conversations
};

struct SonnetDataset {
  int64_t input_len = 550;
  int64_t prefix_len = 200;
  int64_t output_len = 150;
};

struct PrefixRepetitionDataset {
  int64_t prefix_len = 256;
  int64_t suffix_len = 256;
  int64_t num_prefixes = 10;
  int64_t output_len = 128;
};

// What every data set is made with.
struct DatasetTools {
  const text::Tokenizer& tokenizer;
  const text::ChatTemplate* chat_template;  // null: none
  uint64_t seed = 0;
  size_t count = 0;  // requests wanted
};

using Dataset = Result<std::vector<BenchRequest>>;

Dataset make_random(const RandomDataset& options, const DatasetTools& tools);
// JSON array of {"conversations": [{"value": ...}, ...]}: the first turn asks, the second's length
// is the output's. Conversations that are too short or too long are left out.
Dataset make_sharegpt(const FileDataset& options, const DatasetTools& tools);
// JSON lines of {"prompt": ..., "output_tokens": ...}.
Dataset make_custom(const FileDataset& options, const DatasetTools& tools);
// Lines of a poem: `path` is the text file.
Dataset make_sonnet(const FileDataset& file, const SonnetDataset& options,
                    const DatasetTools& tools);
Dataset make_prefix_repetition(const PrefixRepetitionDataset& options, const DatasetTools& tools);

}  // namespace m2::app::bench
