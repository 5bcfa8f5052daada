#include "load/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <unordered_set>
#include <utility>

#include "base/checked.h"
#include "base/log.h"
#include "load/strict_sax.h"

namespace m2::load {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read as they are");

constexpr size_t kMaxRank = 16;

struct DTypeName {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;
};

constexpr DTypeName kDTypes[] = {
    {"F32", 32, DType::f32}, {"BF16", 16, DType::bf16},
    {"F16", 16, DType::f16}, {"F8_E4M3", 8, DType::f8_e4m3},
    {"I32", 32, DType::i32}, {"I64", 64, DType::i64},
    {"U8", 8, DType::u8},    {"BOOL", 8, {}},
    {"I8", 8, {}},           {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},      {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},  {"I16", 16, {}},
    {"U16", 16, {}},         {"U32", 32, {}},
    {"U64", 64, {}},         {"F64", 64, {}},
    {"C64", 64, {}},         {"F4", 4, {}},
    {"F6_E2M3", 6, {}},      {"F6_E3M2", 6, {}},
};

const DTypeName* find_dtype(std::string_view name) {
  const auto* found = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                   [&](const DTypeName& entry) { return entry.name == name; });
  return found == std::end(kDTypes) ? nullptr : found;
}

// One entry as the header writes it, before any of it is believed.
struct RawEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::array<uint64_t, 2> offsets{};  // [begin, end) in the data section
};

// {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...,
//  "__metadata__": {"KEY": "VALUE", ...}}
class HeaderSax final : public StrictSax {
 public:
  std::vector<RawEntry> entries;

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::outside:
        return enter(Place::header);
      case Place::header:
        return enter(next_is_metadata_ ? Place::metadata : Place::entry);
      default:
        return refuse(where() + "an object is not expected here");
    }
  }

  bool key(string_t& name) override {
    switch (place_) {
      case Place::header:
        return begin_entry(name);
      case Place::entry:
        return begin_field(name);
      default:
        return true;  // metadata, of no use here
    }
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) return true;
    if (place_ != Place::entry || field_ != Field::dtype)
      return refuse(where() + "a string is not expected here");
    entries.back().dtype = std::move(value);
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::entry || field_ == Field::dtype || field_ == Field::none)
      return refuse(where() + "an array is not expected here");
    numbers_ = 0;
    return enter(Place::numbers);
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::numbers) return refuse(where() + "a number is not expected here");
    RawEntry& entry = entries.back();
    if (field_ == Field::shape) {
      if (entry.shape.size() == kMaxRank)
        return refuse(fmt::format("{}shape has more than {} axes", where(), kMaxRank));
      entry.shape.push_back(value);
    } else {
      if (numbers_ == 2) return refuse(where() + "data_offsets has more than two numbers");
      entry.offsets[numbers_++] = value;
    }
    return true;
  }

  bool end_array() override {
    if (field_ == Field::offsets && numbers_ != 2)
      return refuse(where() + "data_offsets has fewer than two numbers");
    return enter(Place::entry);
  }

  bool end_object() override {
    if (place_ == Place::entry && seen_ != kAllFields)
      return refuse(where() + "dtype, shape or data_offsets is missing");
    return enter(place_ == Place::header ? Place::outside : Place::header);
  }

 private:
  enum class Place { outside, header, entry, metadata, numbers };
  enum class Field : unsigned { none = 0, dtype = 1, shape = 2, offsets = 4 };
  static constexpr unsigned kAllFields = 7;

  bool enter(Place place) {
    place_ = place;
    return true;
  }

  bool begin_entry(string_t& name) {
    next_is_metadata_ = name == "__metadata__";
    if (next_is_metadata_)
      return std::exchange(has_metadata_, true) ? refuse("__metadata__ appears twice") : true;
    entries.emplace_back().name = std::move(name);
    field_ = Field::none;
    seen_ = 0;
    return true;
  }

  bool begin_field(const string_t& name) {
    field_ = name == "dtype"          ? Field::dtype
             : name == "shape"        ? Field::shape
             : name == "data_offsets" ? Field::offsets
                                      : Field::none;
    const unsigned bit = static_cast<unsigned>(field_);
    if (field_ == Field::none)
      return refuse(fmt::format("{}unknown field \"{}\"", where(), printable(name)));
    if (seen_ & bit) return refuse(fmt::format("{}field {} appears twice", where(), name));
    seen_ |= bit;
    return true;
  }

  std::string where() const {
    if (entries.empty() || place_ == Place::header || place_ == Place::outside) return {};
    return fmt::format("tensor {}: ", printable(entries.back().name));
  }

  Place place_ = Place::outside;
  Field field_ = Field::none;
  unsigned seen_ = 0;  // fields of the open entry
  size_t numbers_ = 0;
  bool next_is_metadata_ = false;
  bool has_metadata_ = false;
};

Error bad_tensor(const RawEntry& raw, const std::string& why) {
  return fail(Code::corrupt, "tensor {}: {}", printable(raw.name), why);
}

// Bytes that a shape and dtype take, or nothing if the number does not exist.
std::optional<uint64_t> byte_count(const std::vector<uint64_t>& shape, uint64_t bits) {
  uint64_t product = 1;
  for (const uint64_t size : shape) {
    const auto next = checked_mul(product, size);
    if (!next) return std::nullopt;
    product = *next;
  }
  const auto all_bits = checked_mul(product, bits);
  if (!all_bits || *all_bits % 8 != 0) return std::nullopt;
  return *all_bits / 8;
}

// Checks shape and dtype of an entry whose offsets are already known to lie in the file.
Result<TensorInfo> check_entry(RawEntry& raw, uint64_t data_begin) {
  TensorInfo info;
  info.bytes = raw.offsets[1] - raw.offsets[0];
  info.begin = data_begin + raw.offsets[0];
  for (const uint64_t size : raw.shape) {
    const auto narrow_size = narrow<int64_t>(size);
    if (!narrow_size) return bad_tensor(raw, fmt::format("size {} is out of range", size));
    info.shape.push_back(*narrow_size);
  }
  if (const DTypeName* known = find_dtype(raw.dtype)) {
    const auto expected = byte_count(raw.shape, known->bits);
    if (!expected || *expected != info.bytes)
      return bad_tensor(raw, fmt::format("shape [{}] of {} does not fit its {} bytes",
                                         fmt::join(raw.shape, ", "), raw.dtype, info.bytes));
    info.dtype = known->dtype;
  }
  info.name = std::move(raw.name);
  info.dtype_name = std::move(raw.dtype);
  return info;
}

Result<void> check_names(const std::vector<RawEntry>& entries) {
  std::unordered_set<std::string_view> names;
  names.reserve(entries.size());
  for (const RawEntry& raw : entries)
    if (!names.insert(raw.name).second) return bad_tensor(raw, "the name appears twice");
  return {};
}

// Sorts the entries by offset and checks that they cover [0, data_bytes) exactly.
Result<void> check_offsets(std::vector<RawEntry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(),
            [](const RawEntry& a, const RawEntry& b) { return a.offsets < b.offsets; });
  uint64_t position = 0;
  for (const RawEntry& raw : entries) {
    const auto [begin, end] = raw.offsets;
    if (begin != position || end < begin)
      return bad_tensor(raw, fmt::format("data_offsets [{}, {}] leave a gap, overlap or run "
                                         "backwards: the data before ends at {}",
                                         begin, end, position));
    if (end > data_bytes)
      return bad_tensor(raw, fmt::format("data_offsets [{}, {}] reach past the end of the file, "
                                         "which has {} bytes of data: is it cut short?",
                                         begin, end, data_bytes));
    position = end;
  }
  if (position != data_bytes)
    return fail(Code::corrupt, "the tensors end at byte {} of the data, the file at byte {}",
                position, data_bytes);
  return {};
}

}  // namespace

std::string TensorInfo::describe() const {
  return fmt::format("{}[{}]", printable(dtype_name), fmt::join(shape, ", "));
}

Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view header,
                                                         uint64_t data_begin, uint64_t data_bytes) {
  HeaderSax sax;
  M2_TRY_VOID(sax.parse(header));
  M2_TRY_VOID(check_names(sax.entries));
  M2_TRY_VOID(check_offsets(sax.entries, data_bytes));
  std::vector<TensorInfo> tensors;
  tensors.reserve(sax.entries.size());
  for (RawEntry& raw : sax.entries) {
    M2_TRY(TensorInfo info, check_entry(raw, data_begin));
    tensors.push_back(std::move(info));
  }
  return tensors;
}

Result<std::vector<TensorInfo>> read_safetensors_header(const File& file) {
  const auto named = [&](const std::string& why) {
    return Error{Code::corrupt, fmt::format("{}: {}", file.path(), why), file.path()};
  };
  uint64_t length = 0;
  if (file.size() < sizeof(length))
    return named(fmt::format("{} bytes are no safetensors file", file.size()));
  M2_TRY_VOID(file.read(0, std::as_writable_bytes(std::span(&length, 1))));
  const uint64_t available = file.size() - sizeof(length);
  if (length > kMaxHeaderBytes || length > available)
    return named(
        fmt::format("a header of {} bytes does not fit (limit {}, file {} bytes): not a "
                    "safetensors file, or cut short",
                    length, kMaxHeaderBytes, file.size()));
  std::string header(static_cast<size_t>(length), '\0');
  M2_TRY_VOID(file.read(sizeof(length), std::as_writable_bytes(std::span(header))));
  auto tensors = parse_safetensors_header(header, sizeof(length) + length, available - length);
  if (!tensors.ok()) return named(tensors.error().text);
  return tensors;
}

}  // namespace m2::load
