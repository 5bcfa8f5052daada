#include "app/micro_model.h"

#include "app/environment.h"

namespace m2::app {
namespace {

namespace fs = std::filesystem;

bool is_checkpoint(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / "config.json", ignored);
}

}  // namespace

Result<fs::path> micro_model_near(const fs::path& program) {
  const fs::path folder = program.parent_path();
  const fs::path candidates[] = {folder.parent_path() / "models" / kMicroName,
                                 folder / "models" / kMicroName,
                                 folder.parent_path() / "share" / "m2" / kMicroName};
  for (const fs::path& candidate : candidates)
    if (is_checkpoint(candidate)) return candidate;
  return fail(Code::not_found,
              "no MODEL was given, and {}, which is taken then, is neither {} nor {} nor {}",
              kMicroName, candidates[0].string(), candidates[1].string(), candidates[2].string());
}

Result<fs::path> micro_model() {
  const std::string given = micro_model_variable();
  if (!given.empty()) {
    if (is_checkpoint(given)) return fs::path(given);
    return fail(Code::not_found, "M2_MICRO is {}, which holds no config.json", given);
  }
  std::error_code ignored;
  return micro_model_near(fs::read_symlink("/proc/self/exe", ignored));
}

}  // namespace m2::app
