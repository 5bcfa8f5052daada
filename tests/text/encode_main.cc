// Serves one tokenizer over pipes, for comparison with another implementation.
//
//   encode_main TOKENIZER_JSON < requests > answers
//
// All numbers are 32-bit little-endian. A request is an operation, a count, and that many bytes
// (encode) or ids (decode); an answer is a count and that many ids or bytes:
//   0, 1, 2  encode with all, nonspecial, no added tokens
//   3, 4     decode with special tokens kept, skipped

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace {

using namespace m2::text;

bool read_word(uint32_t& word) {
  return std::fread(&word, sizeof word, 1, stdin) == 1;
}

template <class Container>
bool read_all(Container& items, uint32_t count) {
  items.resize(count);
  return std::fread(items.data(), sizeof items[0], count, stdin) == count;
}

template <class Container>
void write_all(const Container& items) {
  const auto count = static_cast<uint32_t>(items.size());
  std::fwrite(&count, sizeof count, 1, stdout);
  std::fwrite(items.data(), sizeof items[0], count, stdout);
}

bool answer(const Tokenizer& tokenizer, uint32_t operation, uint32_t count) {
  if (operation <= 2) {
    std::string text;
    if (!read_all(text, count)) return false;
    write_all(tokenizer.encode(text, static_cast<AddedTokens>(operation)));
    return true;
  }
  std::vector<TokenId> ids;
  if (operation > 4 || !read_all(ids, count)) return false;
  write_all(tokenizer.decode(ids, operation == 4));
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: %s TOKENIZER_JSON\n", argv[0]), 2;
  const auto tokenizer = Tokenizer::load(argv[1]);
  if (!tokenizer.ok()) return std::fprintf(stderr, "%s\n", tokenizer.error().text.c_str()), 1;
  uint32_t operation = 0, count = 0;
  while (read_word(operation))
    if (!read_word(count) || !answer(**tokenizer, operation, count))
      return std::fprintf(stderr, "bad request\n"), 2;
  return 0;
}
