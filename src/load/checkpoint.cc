#include "load/checkpoint.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "load/strict_sax.h"

namespace m2::load {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";
constexpr uint64_t kMaxConfigBytes = 16u << 20;
// The released models' index has 96,103 entries in about 10 MB.
constexpr uint64_t kMaxIndexBytes = kMaxHeaderBytes;

Error in_file(const fs::path& path, Code code, const std::string& why) {
  return Error{code, fmt::format("{}: {}", path.string(), why), path.string()};
}

Result<Json> read_json_object(const fs::path& path) {
  M2_TRY(const std::string text, read_text(path, kMaxConfigBytes));
  auto json = parse_json(text);
  if (!json.ok()) return in_file(path, Code::corrupt, json.error().text);
  if (!json->is_object()) return in_file(path, Code::corrupt, "not a JSON object");
  return json;
}

// {"weight_map": {"TENSOR": "FILE", ...}, ...}; every other field is skipped, whatever it is.
class IndexSax final : public StrictSax {
 public:
  std::unordered_map<std::string, std::string> weight_map;
  bool has_map = false;

  bool start_object(std::size_t) override {
    ++depth_;
    if (in_map_) return refuse(fmt::format("{}: a file name is expected", printable(key_)));
    if (depth_ == 2 && key_ == "weight_map") {
      if (std::exchange(has_map, true)) return refuse("weight_map appears twice");
      in_map_ = true;
    }
    return true;
  }

  bool end_object() override {
    --depth_;
    in_map_ = false;
    return true;
  }

  bool key(string_t& name) override {
    key_ = std::move(name);
    return true;
  }

  bool string(string_t& value) override {
    if (!in_map_) return skip();
    if (!weight_map.emplace(key_, std::move(value)).second)
      return refuse(fmt::format("tensor {} appears twice in weight_map", printable(key_)));
    return true;
  }

  bool null() override { return skip(); }
  bool boolean(bool) override { return skip(); }
  bool number_integer(number_integer_t) override { return skip(); }
  bool number_unsigned(number_unsigned_t) override { return skip(); }
  bool number_float(number_float_t, const string_t&) override { return skip(); }
  bool start_array(std::size_t) override {
    ++depth_;
    return skip();
  }
  bool end_array() override {
    --depth_;
    return true;
  }

 private:
  bool skip() {
    if (depth_ == 1 && key_ == "weight_map") return refuse("weight_map is no object");
    if (in_map_) return refuse(fmt::format("{}: a file name is expected", printable(key_)));
    return true;
  }

  std::string key_;
  int depth_ = 0;
  bool in_map_ = false;
};

Result<std::unordered_map<std::string, std::string>> read_weight_map(const fs::path& path) {
  M2_TRY(const std::string text, read_text(path, kMaxIndexBytes));
  IndexSax sax;
  const auto parsed = sax.parse(text);
  if (!parsed.ok()) return in_file(path, Code::corrupt, parsed.error().text);
  if (!sax.has_map) return in_file(path, Code::corrupt, "weight_map is missing");
  return std::move(sax.weight_map);
}

// A file of this very folder: no separators, no "..", nothing a C string would cut short.
bool is_plain_file_name(std::string_view name) {
  if (name.empty() || name.size() > 255 || name == "." || name == "..") return false;
  return std::none_of(name.begin(), name.end(), [](char c) {
    return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20;
  });
}

}  // namespace

Result<ModelDescription> read_description(const fs::path& folder) {
  ModelDescription description;
  M2_TRY(description.config, read_json_object(folder / "config.json"));
  auto generation = read_json_object(folder / "generation_config.json");
  if (generation.ok()) {
    description.generation_config = std::move(generation).value();
  } else if (generation.error().code != Code::not_found) {
    return std::move(generation).error();
  }
  return description;
}

Result<Checkpoint> Checkpoint::open(const fs::path& folder) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder.string();
  M2_TRY(checkpoint.description_, read_description(folder));
  std::error_code ignored;
  if (fs::exists(folder / kIndexName, ignored)) {
    M2_TRY_VOID(checkpoint.open_shards());
  } else {
    M2_TRY_VOID(checkpoint.open_single());
  }
  return checkpoint;
}

Result<void> Checkpoint::open_single() {
  const fs::path path = fs::path(folder_) / kSingleName;
  auto file = File::open(path);
  if (!file.ok() && file.error().code == Code::not_found)
    return Error{Code::not_found,
                 fmt::format("{}: has neither {} nor {}; is the download complete?", folder_,
                             kIndexName, kSingleName),
                 folder_};
  if (!file.ok()) return std::move(file).error();
  M2_TRY(auto tensors, read_safetensors_header(*file));
  files_.push_back(std::move(file).value());
  for (TensorInfo& tensor : tensors) {
    std::string name = tensor.name;
    tensors_.emplace(std::move(name), std::move(tensor));
  }
  return {};
}

Result<void> Checkpoint::open_shards() {
  const fs::path folder = folder_;
  M2_TRY(auto weight_map, read_weight_map(folder / kIndexName));

  // File names in order, so that which fault is reported does not depend on a hash.
  std::vector<std::pair<std::string, std::string>> first_tensor;  // file, tensor
  for (const auto& [tensor, file] : weight_map) first_tensor.emplace_back(file, tensor);
  std::sort(first_tensor.begin(), first_tensor.end());
  first_tensor.erase(std::unique(first_tensor.begin(), first_tensor.end(),
                                 [](const auto& a, const auto& b) { return a.first == b.first; }),
                     first_tensor.end());

  for (const auto& [name, tensor] : first_tensor) {
    if (!is_plain_file_name(name))
      return in_file(folder / kIndexName, Code::invalid_argument,
                     fmt::format("tensor {} is said to be in \"{}\", which is no file name in this "
                                 "folder",
                                 printable(tensor), printable(name)));
    auto file = File::open(folder / name);
    if (!file.ok())
      return Error{file.error().code,
                   fmt::format("{} (tensor {} and maybe others are in it); is the download "
                               "complete?",
                               file.error().text, printable(tensor)),
                   file.error().param};
    M2_TRY(auto infos, read_safetensors_header(*file));
    for (TensorInfo& info : infos) {
      const auto mapped = weight_map.find(info.name);
      if (mapped == weight_map.end() || mapped->second != name) continue;
      info.file = static_cast<int32_t>(files_.size());
      weight_map.erase(mapped);
      std::string key = info.name;
      tensors_.emplace(std::move(key), std::move(info));
    }
    files_.push_back(std::move(file).value());
  }
  if (!weight_map.empty()) {
    const auto& [tensor, file] = *std::min_element(weight_map.begin(), weight_map.end());
    return in_file(folder / file, Code::corrupt,
                   fmt::format("tensor {} is not in it, though {} says so ({} such tensors in all)",
                               printable(tensor), kIndexName, weight_map.size()));
  }
  return {};
}

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<void> Checkpoint::read(const TensorInfo& tensor, uint64_t offset,
                              std::span<std::byte> to) const {
  M2_CHECK(offset <= tensor.bytes && to.size() <= tensor.bytes - offset,
           "bytes [{}, +{}) of tensor {}", offset, to.size(), tensor.name);
  auto result = file_of(tensor).read(tensor.begin + offset, to);
  if (result.ok()) return result;
  Error error = std::move(result).error();
  error.text += fmt::format(" (reading tensor {})", printable(tensor.name));
  return error;
}

}  // namespace m2::load
