#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"

namespace m2::load {

// Where the Hugging Face cache may be: values of environment variables and of --download-dir, empty
// where unset. The first that is set decides, in this order.
struct HubLocations {
  std::string download_dir;
  std::string hf_hub_cache;           // HF_HUB_CACHE
  std::string huggingface_hub_cache;  // HUGGINGFACE_HUB_CACHE, its older name
  std::string hf_home;                // HF_HOME: HF_HOME/hub
  std::string xdg_cache_home;         // XDG_CACHE_HOME: .../huggingface/hub
  std::string home;                   // HOME: .cache/huggingface/hub
};

// The cache folder these locations name; empty if none is set. "~/" is HOME.
std::filesystem::path hub_cache(const HubLocations& locations);

// The folder of a model: MODEL itself if it is a folder; else, for a hub name such as
// MiniMaxAI/MiniMax-M2.5, its snapshot in the cache (models--ORG--NAME/snapshots/COMMIT, found
// through refs/REVISION unless `revision` is itself a commit). An empty revision means main; it has
// no effect on a folder. Nothing is downloaded: the error of a model that is not there says where
// it was looked for and how to get it.
Result<std::filesystem::path> resolve_model(const std::string& model, const std::string& revision,
                                            const HubLocations& locations);

}  // namespace m2::load
