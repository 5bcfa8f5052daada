#include "app/bench/dataset.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "app/bench/numpy_random.h"
#include "base/json.h"
#include "base/log.h"
#include "load/file.h"
#include "text/json_cursor.h"

namespace m2::app::bench {
namespace {

using text::TokenId;
using Ids = std::vector<TokenId>;
using Draw = std::function<std::vector<int64_t>(size_t count)>;  // of the base vocabulary

constexpr uint64_t kMostFileBytes = uint64_t{4} << 30;

Ids encode(const text::Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, text::AddedTokens::all);
}

int64_t length(const text::Tokenizer& tokenizer, std::string_view text) {
  return std::ssize(encode(tokenizer, text));
}

struct ExactPrompt {
  std::string text;
  Ids ids;
  int64_t mismatch = 0;  // tokens too many (or few)
};

// A text of `wanted` tokens that begins with the text of `ids`: tokens of a text are not always the
// tokens it was made of, so it is cut or made longer, ten times at most.
ExactPrompt make_exact(const text::Tokenizer& tokenizer, Ids ids, int64_t wanted,
                       const Draw& draw) {
  constexpr int kMostCorrections = 10;
  ExactPrompt out;
  for (int left = kMostCorrections;; --left) {
    out.text = tokenizer.decode(ids, false);
    ids = encode(tokenizer, out.text);
    const int64_t missing = wanted - std::ssize(ids);
    if (missing == 0 || left == 0) {
      out.mismatch = -missing;
      break;
    }
    if (missing < 0) {
      ids.resize(static_cast<size_t>(wanted));
      continue;
    }
    for (const int64_t id : draw(static_cast<size_t>(missing)))
      ids.push_back(static_cast<TokenId>(id));
  }
  out.ids = std::move(ids);
  return out;
}

void warn_of_mismatch(int64_t mismatch) {
  if (mismatch == 0) return;
  log_warning(
      "Across all generated prompts, there were {} {} tokens than expected after decoding and "
      "re-encoding. This is expected due to the imperfect nature of the sampling procedure.",
      std::abs(mismatch), mismatch > 0 ? "more" : "fewer");
}

Ids allowed_ids(const text::Tokenizer& tokenizer) {
  Ids out;
  for (TokenId id = 0; id < tokenizer.base_vocab_size(); ++id) {
    if (!tokenizer.is_special(id)) out.push_back(id);
  }
  return out;
}

Result<std::string> chat_prompt(const DatasetTools& tools, const std::string& prompt) {
  if (!tools.chat_template)
    return fail(Code::invalid_argument,
                "the model has no chat template; give --skip-chat-template, or a --tokenizer "
                "folder that has one");
  const Json variables{{"messages", Json::array({{{"role", "user"}, {"content", prompt}}})},
                       {"add_generation_prompt", true}};
  return tools.chat_template->render(variables);
}

Dataset with_enough(std::vector<BenchRequest> requests, const FileDataset& options,
                    const DatasetTools& tools) {
  if (requests.empty())
    return fail(Code::invalid_argument, "{} has no usable request", options.path);
  if (requests.size() > tools.count) requests.resize(tools.count);
  if (requests.size() == tools.count || !options.oversample) return requests;
  const size_t have = requests.size();
  PythonRandom random(tools.seed);
  for (const size_t index : random.choices(have, tools.count - have))
    requests.push_back(BenchRequest(requests[index]));
  log_info("Oversampled requests to reach {} total.", tools.count);
  return requests;
}

}  // namespace

// ---- random

Dataset make_random(const RandomDataset& options, const DatasetTools& tools) {
  if (!(options.range_ratio >= 0 && options.range_ratio < 1))
    return fail(Code::invalid_argument, "--random-range-ratio must be in [0, 1), got {}",
                options.range_ratio);
  if (options.input_len < 1 || options.output_len < 1 || options.prefix_len < 0)
    return fail(Code::invalid_argument,
                "--random-input-len and --random-output-len must be at least 1");
  const Ids allowed = allowed_ids(tools.tokenizer);
  if (allowed.empty()) return fail(Code::invalid_argument, "the tokenizer has no ordinary token");
  const int64_t vocabulary = tools.tokenizer.base_vocab_size();

  const auto low = [&](int64_t middle) {
    return static_cast<int64_t>(
        std::floor(static_cast<double>(middle) * (1 - options.range_ratio)));
  };
  const auto high = [&](int64_t middle) {
    return static_cast<int64_t>(std::ceil(static_cast<double>(middle) * (1 + options.range_ratio)));
  };
  const int64_t input_low = low(options.input_len), input_high = high(options.input_len);
  const int64_t output_low = std::max<int64_t>(1, low(options.output_len));
  const int64_t output_high = std::max(output_low, high(options.output_len));
  if (input_low < 1)
    return fail(Code::invalid_argument, "--random-range-ratio {} allows empty prompts",
                options.range_ratio);
  log_info("Sampling input_len from [{}, {}] and output_len from [{}, {}]", input_low, input_high,
           output_low, output_high);

  NumpyGenerator random(tools.seed);
  const std::vector<int64_t> inputs = random.integers(input_low, input_high + 1, tools.count);
  const std::vector<int64_t> outputs = random.integers(output_low, output_high + 1, tools.count);
  const std::vector<int64_t> offsets = random.integers(0, vocabulary, tools.count);
  const auto draw = [&](size_t count) { return random.integers(0, vocabulary, count); };
  Ids prefix;
  for (const int64_t place :
       random.integers(0, std::ssize(allowed), static_cast<size_t>(options.prefix_len)))
    prefix.push_back(allowed[static_cast<size_t>(place)]);

  std::vector<BenchRequest> out;
  out.reserve(tools.count);
  int64_t mismatch = 0;
  for (size_t i = 0; i < tools.count; ++i) {
    Ids ids = prefix;
    for (int64_t j = 0; j < inputs[i]; ++j) {
      const auto place = static_cast<size_t>(offsets[i] + static_cast<int64_t>(i) + j);
      ids.push_back(allowed[place % allowed.size()]);
    }
    ExactPrompt prompt =
        make_exact(tools.tokenizer, std::move(ids), options.prefix_len + inputs[i], draw);
    mismatch += prompt.mismatch;
    out.push_back({std::move(prompt.text), std::ssize(prompt.ids), outputs[i]});
  }
  warn_of_mismatch(mismatch);
  return out;
}

// ---- prefix_repetition

Dataset make_prefix_repetition(const PrefixRepetitionDataset& options, const DatasetTools& tools) {
  if (options.num_prefixes < 1 || options.prefix_len < 0 || options.suffix_len < 1)
    return fail(Code::invalid_argument,
                "prefix_repetition needs at least one prefix and one token of suffix");
  const size_t each = tools.count / static_cast<size_t>(options.num_prefixes);
  if (each == 0)
    return fail(Code::invalid_argument,
                "--num-prompts ({}) must be greater than or equal to "
                "--prefix-repetition-num-prefixes ({})",
                tools.count, options.num_prefixes);
  const int64_t vocabulary = tools.tokenizer.base_vocab_size();
  NumpyLegacy random(static_cast<uint32_t>(tools.seed));
  const auto draw = [&](size_t count) { return random.randint(0, vocabulary, count); };
  int64_t mismatch = 0;
  const auto exact = [&](int64_t wanted) {
    Ids ids;
    for (const int64_t id : draw(static_cast<size_t>(wanted)))
      ids.push_back(static_cast<TokenId>(id));
    ExactPrompt made = make_exact(tools.tokenizer, std::move(ids), wanted, draw);
    mismatch += made.mismatch;
    return made.ids;
  };
  std::vector<BenchRequest> out;
  for (int64_t i = 0; i < options.num_prefixes; ++i) {
    const Ids prefix = exact(options.prefix_len);
    for (size_t j = 0; j < each; ++j) {
      Ids ids = prefix;
      const Ids suffix = exact(options.suffix_len);
      ids.insert(ids.end(), suffix.begin(), suffix.end());
      out.push_back({tools.tokenizer.decode(ids, false), std::ssize(ids), options.output_len});
    }
  }
  warn_of_mismatch(mismatch);
  PythonRandom(tools.seed).shuffle(out);
  return out;
}

// ---- files

namespace {

struct Exchange {
  std::string question, answer;
};

// The first two turns of every conversation that has two.
Result<std::vector<Exchange>> read_conversations(std::string_view json) {
  std::vector<Exchange> out;
  text::JsonCursor cursor(json);
  const auto turn = [&](std::vector<std::string>& turns) {
    return cursor.object([&](std::string_view key) -> Result<void> {
      if (key != "value" || turns.size() == 2) {
        M2_TRY_VOID(cursor.raw());
        return {};
      }
      M2_TRY(const std::string_view value, cursor.string());
      turns.emplace_back(value);
      return {};
    });
  };
  const auto entry = [&]() -> Result<void> {
    std::vector<std::string> turns;
    const auto member = [&](std::string_view key) -> Result<void> {
      if (key == "conversations") return cursor.array([&] { return turn(turns); });
      M2_TRY_VOID(cursor.raw());
      return {};
    };
    M2_TRY_VOID(cursor.object(member));
    if (turns.size() == 2) out.push_back({std::move(turns[0]), std::move(turns[1])});
    return {};
  };
  M2_TRY_VOID(cursor.array(entry));
  M2_TRY_VOID(cursor.finish());
  return out;
}

}  // namespace

Dataset make_sharegpt(const FileDataset& options, const DatasetTools& tools) {
  constexpr int64_t kLeast = 4, kMostPrompt = 1024, kMostTotal = 2048;
  M2_TRY(const std::string text, load::read_text(options.path, kMostFileBytes));
  Result<std::vector<Exchange>> read = read_conversations(text);
  if (!read.ok()) return fail(Code::corrupt, "{}: {}", options.path, read.error().text);
  std::vector<Exchange> exchanges = *std::move(read);
  PythonRandom(tools.seed).shuffle(exchanges);

  std::vector<BenchRequest> out;
  for (Exchange& exchange : exchanges) {
    if (out.size() == tools.count) break;
    const int64_t prompt = length(tools.tokenizer, exchange.question);
    const int64_t output = options.output_len.value_or(length(tools.tokenizer, exchange.answer));
    const bool short_output = !options.output_len && output < kLeast;
    if (prompt < kLeast || short_output || prompt > kMostPrompt || prompt + output > kMostTotal)
      continue;
    out.push_back({std::move(exchange.question), prompt, output});
  }
  return with_enough(std::move(out), options, tools);
}

Dataset make_custom(const FileDataset& options, const DatasetTools& tools) {
  M2_TRY(const std::string text, load::read_text(options.path, kMostFileBytes));
  std::vector<BenchRequest> out;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size() && out.size() < tools.count;) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const Result<Json> row = parse_json(line);
    if (!row.ok())
      return fail(Code::corrupt, "{} line {}: {}", options.path, number, row.error().text);
    if (!row->is_object() || !row->contains("prompt") || !(*row)["prompt"].is_string())
      return fail(Code::corrupt, "{} line {}: needs a \"prompt\" text", options.path, number);
    int64_t output_len = options.output_len.value_or(-1);
    if (output_len == -1) {
      const auto tokens = row->find("output_tokens");
      if (tokens == row->end() || !tokens->is_number_integer())
        return fail(Code::corrupt,
                    "{} line {}: needs an \"output_tokens\" number, as no length is given for all",
                    options.path, number);
      output_len = tokens->get<int64_t>();
    }
    std::string prompt = (*row)["prompt"].get<std::string>();
    if (options.apply_chat_template) {
      M2_TRY(prompt, chat_prompt(tools, prompt));
    }
    const int64_t tokens = length(tools.tokenizer, prompt);
    out.push_back({std::move(prompt), tokens, output_len});
  }
  return with_enough(std::move(out), options, tools);
}

Dataset make_sonnet(const FileDataset& file, const SonnetDataset& options,
                    const DatasetTools& tools) {
  M2_TRY(const std::string text, load::read_text(file.path, kMostFileBytes));
  std::vector<std::string> lines;
  double tokens = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    lines.push_back(text.substr(begin, end - begin));
    tokens += static_cast<double>(length(tools.tokenizer, lines.back()));
    begin = end;
  }
  if (lines.empty() || tokens == 0)
    return fail(Code::invalid_argument, "{} has no lines", file.path);
  const double average = tokens / static_cast<double>(lines.size());

  const std::string ask = "Pick as many lines as you can from these poem lines:\n";
  M2_TRY(const std::string empty, chat_prompt(tools, ask));
  const int64_t offset = length(tools.tokenizer, empty);
  if (options.input_len <= offset)
    return fail(Code::invalid_argument, "--sonnet-input-len must be greater than {}", offset);
  // Python's round: halves to even.
  const auto lines_of = [&](int64_t length_in_tokens) {
    return static_cast<int64_t>(
        std::nearbyint(static_cast<double>(length_in_tokens - offset) / average));
  };
  const int64_t wanted = lines_of(options.input_len);
  const auto shared = std::clamp<int64_t>(lines_of(options.prefix_len), 0, std::ssize(lines));
  if (wanted < shared)
    return fail(Code::invalid_argument,
                "--sonnet-input-len must not be less than --sonnet-prefix-len");
  std::string prefix = ask;
  for (int64_t i = 0; i < shared; ++i) prefix += lines[static_cast<size_t>(i)];

  PythonRandom random(tools.seed);
  std::vector<BenchRequest> out;
  const size_t most_tries = 100 * tools.count + 1000;
  for (size_t tries = 0; out.size() < tools.count; ++tries) {
    if (tries == most_tries)
      return fail(Code::invalid_argument, "{}: no prompt fits in --sonnet-input-len {}", file.path,
                  options.input_len);
    std::string prompt = prefix;
    for (const size_t i : random.choices(lines.size(), static_cast<size_t>(wanted - shared)))
      prompt += lines[i];
    M2_TRY(std::string formatted, chat_prompt(tools, prompt));
    const int64_t count = length(tools.tokenizer, formatted);
    if (count > options.input_len) continue;
    out.push_back({file.apply_chat_template ? std::move(formatted) : std::move(prompt), count,
                   options.output_len});
  }
  return out;
}

}  // namespace m2::app::bench
