#include "engine/step_message.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace m2::engine {
namespace {

using model::StepInput;
using model::StepSampling;
using Limits = model::StepModel::Limits;

// What goes ahead of a step's arrays.
struct Header {
  Order order = Order::stop;
  int64_t tokens = 0, sequences = 0, width = 0, rows = 0;
  int64_t sampled = 0, edits = 0, mask_words = 0;  // of StepSampling; sampled is 0 or rows

  bool has_plan() const { return order == Order::step || order == Order::enqueue; }
  int64_t input_words() const {
    return 3 * tokens + (sequences + 1) + sequences + sequences * width + rows;
  }
  int64_t words() const {
    return input_words() + sampled * ops::kSampleRowWords + edits * ops::kLogitEditWords +
           mask_words;
  }
};

const Exec& host() {
  static const Exec exec{};
  return exec;
}

void broadcast(parallel::Comm& comm, Header& header) {
  std::array<int64_t, 8> words{static_cast<int64_t>(header.order),
                               header.tokens,
                               header.sequences,
                               header.width,
                               header.rows,
                               header.sampled,
                               header.edits,
                               header.mask_words};
  comm.broadcast(host(), Tensor(words.data(), DType::i64, {8}), 0);
  header = {static_cast<Order>(words[0]),
            words[1],
            words[2],
            words[3],
            words[4],
            words[5],
            words[6],
            words[7]};
}

void broadcast(parallel::Comm& comm, std::vector<int32_t>& words) {
  const auto count = static_cast<int64_t>(words.size());
  comm.broadcast(host(), Tensor(words.data(), DType::i32, {count}), 0);
}

template <class T>
void append(std::span<const T> values, std::vector<int32_t>& words) {
  const size_t at = words.size();
  words.resize(at + values.size_bytes() / sizeof(int32_t));
  if (!values.empty()) std::memcpy(&words[at], values.data(), values.size_bytes());
}

template <class T>
std::span<const T> take(const int32_t*& from, int64_t count, std::vector<T>& to) {
  to.resize(static_cast<size_t>(count));
  if (count > 0) std::memcpy(static_cast<void*>(to.data()), from, to.size() * sizeof(T));
  from += to.size() * sizeof(T) / sizeof(int32_t);
  return to;
}

StepInput unpack(const Header& header, const std::vector<int32_t>& words) {
  size_t at = 0;
  const auto next = [&](int64_t count) {
    const std::span part(words.data() + at, static_cast<size_t>(count));
    at += part.size();
    return part;
  };
  StepInput out;
  out.token_ids = next(header.tokens);
  out.positions = next(header.tokens);
  out.slots = next(header.tokens);
  out.query_starts = next(header.sequences + 1);
  out.context_lens = next(header.sequences);
  out.block_tables = next(header.sequences * header.width);
  out.max_blocks_per_sequence = header.width;
  out.logit_rows = next(header.rows);
  return out;
}

bool within(int64_t value, int64_t low, int64_t high) {
  return value >= low && value < high;
}
bool within(std::span<const int32_t> values, int64_t low, int64_t high) {
  return std::ranges::all_of(values, [&](int32_t v) { return within(v, low, high); });
}

bool fits(const Header& header, const Limits& limits) {
  const int64_t widest = std::max<int64_t>(
      1, std::min(limits.num_blocks,
                  (limits.max_model_len + limits.block_size - 1) / limits.block_size));
  return within(header.tokens, 1, limits.max_step_tokens + 1) &&
         within(header.sequences, 1, limits.max_sequences + 1) &&
         within(header.width, 1, widest + 1) && within(header.rows, 0, header.tokens + 1) &&
         (header.sampled == 0 || header.sampled == header.rows) &&
         within(header.edits, 0, limits.most_edits + 1) &&
         within(header.mask_words, 0, limits.max_sequences * limits.mask_words + 1);
}

// An enqueued step names tokens of the step before as -1 - row.
bool fits(const StepInput& input, bool enqueued, const Limits& limits) {
  const auto tokens = static_cast<int64_t>(input.token_ids.size());
  const int64_t slots = limits.num_blocks * limits.block_size;
  const int64_t least = enqueued ? -limits.max_step_tokens : 0;
  bool good = within(input.token_ids, least, limits.vocab_size) &&
              within(input.positions, 0, limits.max_model_len) && within(input.slots, 0, slots) &&
              within(input.logit_rows, 0, tokens) && std::ranges::is_sorted(input.query_starts) &&
              input.query_starts.front() == 0 && input.query_starts.back() == tokens;
  for (size_t s = 0; good && s < input.context_lens.size(); ++s) {
    const int64_t blocks = (input.context_lens[s] + limits.block_size - 1) / limits.block_size;
    good = input.context_lens[s] > 0 && blocks <= input.max_blocks_per_sequence &&
           within(input.block_tables.subspan(s * static_cast<size_t>(input.max_blocks_per_sequence),
                                             static_cast<size_t>(blocks)),
                  0, limits.num_blocks);
  }
  return good;
}

bool fits(const StepSampling& sampling, const Limits& limits) {
  const auto edits = static_cast<int64_t>(sampling.edits.size());
  const auto mask_words = static_cast<int64_t>(sampling.masks.size());
  const int64_t masks = limits.mask_words == 0 ? 0 : mask_words / limits.mask_words;
  return masks * limits.mask_words == mask_words &&
         std::ranges::all_of(
             sampling.edits,
             [&](const ops::LogitEdit& edit) { return within(edit.id, 0, limits.vocab_size); }) &&
         std::ranges::all_of(sampling.rows, [&](const ops::SampleRow& row) {
           return within(row.mask, -1, masks) && within(row.given, -1, limits.vocab_size) &&
                  within(row.logprobs, -1, limits.most_logprobs + 1) &&
                  within(row.first_edit, 0, edits + 1) &&
                  within(row.edits, 0, edits - row.first_edit + 1);
         });
}

constexpr std::array<int32_t, 1> kNoStarts{0};

}  // namespace

StepInput no_tokens() {
  StepInput out;
  out.query_starts = kNoStarts;
  out.max_blocks_per_sequence = 1;
  return out;
}

Result<void> OrderSender::send(Order order) {
  Header header;
  header.order = order;
  broadcast(comm_, header);
  return comm_.status();
}

Result<void> OrderSender::send(Order order, const StepInput& input, const StepSampling* sampling) {
  words_.clear();
  for (const std::span<const int32_t>& part :
       {input.token_ids, input.positions, input.slots, input.query_starts, input.context_lens,
        input.block_tables, input.logit_rows})
    append(part, words_);
  Header header{order, static_cast<int64_t>(input.token_ids.size()),
                static_cast<int64_t>(input.context_lens.size()), input.max_blocks_per_sequence,
                static_cast<int64_t>(input.logit_rows.size())};
  if (sampling) {
    append(sampling->rows, words_);
    append(sampling->edits, words_);
    append(sampling->masks, words_);
    header.sampled = static_cast<int64_t>(sampling->rows.size());
    header.edits = static_cast<int64_t>(sampling->edits.size());
    header.mask_words = static_cast<int64_t>(sampling->masks.size());
  }
  broadcast(comm_, header);
  broadcast(comm_, words_);
  return comm_.status();
}

Result<StepMessage> OrderReceiver::receive() {
  const auto wrong = [] {
    return fail(Code::corrupt, "the first rank's plan does not fit this rank's model");
  };
  Header header;
  broadcast(comm_, header);
  M2_TRY_VOID(comm_.status());
  StepMessage out{header.order, no_tokens(), {}};
  if (!within(static_cast<int64_t>(header.order), 0, static_cast<int64_t>(Order::collect) + 1))
    return wrong();
  if (!header.has_plan()) return out;
  if (!fits(header, limits_)) return wrong();
  words_.resize(static_cast<size_t>(header.words()));
  broadcast(comm_, words_);
  M2_TRY_VOID(comm_.status());
  out.input = unpack(header, words_);
  if (!fits(out.input, header.order == Order::enqueue, limits_)) return wrong();
  const int32_t* from = words_.data() + header.input_words();
  out.sampling.rows = take(from, header.sampled, rows_);
  out.sampling.edits = take(from, header.edits, edits_);
  out.sampling.masks = take(from, header.mask_words, masks_);
  if (!fits(out.sampling, limits_)) return wrong();
  return out;
}

}  // namespace m2::engine
