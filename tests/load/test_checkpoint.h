#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/json.h"

// Writes checkpoints for tests, by the format's definition and with nothing of the code under test.

namespace m2::test {

// A folder of its own that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "m2-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) std::abort();
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct StoredTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string data;  // row-major, little-endian
};

inline std::string with_length(const std::string& header) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header;
}

// A whole safetensors file.
inline std::string safetensors(const std::vector<StoredTensor>& tensors) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::string data;
  for (const StoredTensor& tensor : tensors) {
    std::string shape;
    for (const int64_t size : tensor.shape)
      shape += (shape.empty() ? "" : ",") + std::to_string(size);
    header += ",\"" + tensor.name + R"(":{"dtype":")" + tensor.dtype + R"(","shape":[)" + shape +
              R"(],"data_offsets":[)" + std::to_string(data.size()) + "," +
              std::to_string(data.size() + tensor.data.size()) + "]}";
    data += tensor.data;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return with_length(header) + data;
}

// `count` bytes from a seed.
inline std::string random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string out(count, '\0');
  for (char& byte : out) byte = static_cast<char>(random());
  return out;
}

// Shards of nearly equal numbers of tensors under names that lie about their number, and an index
// whose total_size lies too.
inline void write_shards(const std::filesystem::path& folder,
                         const std::vector<StoredTensor>& tensors, size_t shards) {
  Json index = {{"metadata", {{"total_size", 12345}}}, {"weight_map", Json::object()}};
  for (size_t shard = 0; shard < shards; ++shard) {
    const std::string name = "model-0000" + std::to_string(shard) + "-of-00130.safetensors";
    const size_t begin = tensors.size() * shard / shards;
    const size_t end = tensors.size() * (shard + 1) / shards;
    const std::vector<StoredTensor> part(tensors.begin() + static_cast<std::ptrdiff_t>(begin),
                                         tensors.begin() + static_cast<std::ptrdiff_t>(end));
    for (const StoredTensor& tensor : part) index["weight_map"][tensor.name] = name;
    write_file(folder / name, safetensors(part));
  }
  write_file(folder / "model.safetensors.index.json", index.dump());
}

}  // namespace m2::test
