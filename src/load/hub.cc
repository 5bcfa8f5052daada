#include "load/hub.h"

#include <algorithm>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "load/file.h"

namespace m2::load {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxRefBytes = 256;

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

fs::path expand_home(const std::string& path, const std::string& home) {
  if (path == "~") return home;
  return path.starts_with("~/") ? fs::path(home) / path.substr(2) : fs::path(path);
}

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_' || c == '.';
}

// One part of a hub name or of a revision: nothing that could lead out of the cache.
bool is_safe_part(std::string_view part) {
  return !part.empty() && part.size() <= 128 && part != "." && part != ".." &&
         std::all_of(part.begin(), part.end(), is_name_byte);
}

// The parts between slashes; none if any of them is not safe.
std::vector<std::string> safe_parts(std::string_view text) {
  std::vector<std::string> parts;
  while (true) {
    const size_t slash = text.find('/');
    const std::string_view part = text.substr(0, slash);
    if (!is_safe_part(part)) return {};
    parts.emplace_back(part);
    if (slash == std::string_view::npos) return parts;
    text.remove_prefix(slash + 1);
  }
}

bool is_commit(std::string_view text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// The commit that refs/REVISION of a cached repository names.
Result<std::string> read_ref(const fs::path& repository, const std::vector<std::string>& revision) {
  fs::path path = repository / "refs";
  for (const std::string& part : revision) path /= part;
  M2_TRY(std::string commit, read_text(path, kMaxRefBytes));
  commit.erase(commit.find_last_not_of(" \r\n\t") + 1);
  if (!is_commit(commit))
    return Error{Code::corrupt,
                 fmt::format("{}: \"{}\" is no commit hash", path.string(), printable(commit)),
                 path.string()};
  return commit;
}

Error not_found(const std::string& model, const std::string& revision, const fs::path& looked_at) {
  return Error{Code::not_found,
               fmt::format("model {} (revision {}) was not found: it is no folder, and there is no "
                           "{}. Download it with `hf download {} --revision {}`, or "
                           "give the path of a folder that holds config.json",
                           printable(model), printable(revision), looked_at.string(),
                           printable(model), printable(revision)),
               "model"};
}

// The commit of a cached repository that a revision means.
Result<std::string> find_commit(const std::string& model, const std::string& revision,
                                const fs::path& repository) {
  if (is_commit(revision)) return revision;
  const std::vector<std::string> parts = safe_parts(revision);
  if (parts.empty())
    return Error{Code::invalid_argument,
                 fmt::format("revision \"{}\" is no branch, tag or commit", printable(revision)),
                 "revision"};
  auto commit = read_ref(repository, parts);
  if (!commit.ok() && commit.error().code == Code::not_found)
    return not_found(model, revision, repository / "refs" / revision);
  return commit;
}

Error no_model(const std::string& model, const std::string& why) {
  return Error{Code::not_found,
               fmt::format("model {} was not found: it is no folder, {}", printable(model), why),
               "model"};
}

}  // namespace

fs::path hub_cache(const HubLocations& locations) {
  const auto expand = [&](const std::string& path) { return expand_home(path, locations.home); };
  if (!locations.download_dir.empty()) return expand(locations.download_dir);
  if (!locations.hf_hub_cache.empty()) return expand(locations.hf_hub_cache);
  if (!locations.huggingface_hub_cache.empty()) return expand(locations.huggingface_hub_cache);
  if (!locations.hf_home.empty()) return expand(locations.hf_home) / "hub";
  if (!locations.xdg_cache_home.empty())
    return expand(locations.xdg_cache_home) / "huggingface" / "hub";
  if (!locations.home.empty()) return fs::path(locations.home) / ".cache" / "huggingface" / "hub";
  return {};
}

Result<fs::path> resolve_model(const std::string& model, const std::string& revision,
                               const HubLocations& locations) {
  const fs::path folder = expand_home(model, locations.home);
  if (is_folder(folder)) return folder;

  const std::vector<std::string> name = safe_parts(model);
  if (name.empty() || name.size() > 2)
    return no_model(model, "nor a hub name such as MiniMaxAI/MiniMax-M2.5");
  const fs::path cache = hub_cache(locations);
  if (cache.empty())
    return no_model(model, "and where the Hugging Face cache is cannot be told: set HF_HOME");

  std::string repository_name = "models";
  for (const std::string& part : name) repository_name += "--" + part;
  const fs::path repository = cache / repository_name;

  const std::string wanted = revision.empty() ? "main" : revision;
  M2_TRY(const std::string commit, find_commit(model, wanted, repository));
  const fs::path snapshot = repository / "snapshots" / commit;
  if (!is_folder(snapshot)) return not_found(model, wanted, snapshot);
  return snapshot;
}

}  // namespace m2::load
