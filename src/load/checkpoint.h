#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "load/file.h"
#include "load/safetensors.h"

namespace m2::load {

// What a model folder says about itself, without its weights.
struct ModelDescription {
  Json config;             // config.json
  Json generation_config;  // generation_config.json; null if the folder has none
};

// Reads both files. Fails if config.json is missing, or either is no JSON object.
Result<ModelDescription> read_description(const std::filesystem::path& folder);

// A checkpoint in the Hugging Face form, open for reading: the tensors that
// model.safetensors.index.json maps to shards, or those of a single model.safetensors.
// The index alone says which files belong to the model: shard names are never counted or guessed,
// its total_size is not believed, and tensors of a shard that it does not map are left out.
// Shards are plain file names inside the folder (symbolic links are followed). Every header is
// checked when the checkpoint is opened. Immutable; any thread.
class Checkpoint {
 public:
  // Fails, naming the file and where there is one the tensor, on anything missing or damaged.
  static Result<Checkpoint> open(const std::filesystem::path& folder);

  const std::string& folder() const { return folder_; }
  const Json& config() const { return description_.config; }
  const Json& generation_config() const { return description_.generation_config; }

  // The tensor of this name, or nullptr. Valid as long as the checkpoint.
  const TensorInfo* find(const std::string& name) const;
  const std::unordered_map<std::string, TensorInfo>& tensors() const { return tensors_; }

  const std::vector<File>& files() const { return files_; }
  const File& file_of(const TensorInfo& tensor) const {
    return files_[static_cast<size_t>(tensor.file)];
  }

  // Fills `to` with the tensor's bytes from `offset` on (row-major, little-endian). Fails if the
  // file was shortened or cannot be read. Precondition: the range lies in the tensor.
  Result<void> read(const TensorInfo& tensor, uint64_t offset, std::span<std::byte> to) const;

 private:
  Result<void> open_shards();
  Result<void> open_single();

  std::string folder_;
  ModelDescription description_;
  std::vector<File> files_;
  std::unordered_map<std::string, TensorInfo> tensors_;
};

}  // namespace m2::load
