#include "app/model_files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "app/serving.h"

namespace m2::app {
namespace {

TEST(ModelFiles, AGenerationConfigThatIsNoObjectIsRefusedByItsPath) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "m2_generation";
  std::filesystem::create_directories(folder);
  const std::string path = (folder / "generation_config.json").string();
  const std::vector<std::string> words{"--generation-config", folder.string()};
  const auto values = parse_command_line(serve_command(), words,
                                         [](const char*) -> const char* { return nullptr; });
  ASSERT_TRUE(values.ok()) << values.error().text;
  for (const char* text : {"[1]", "7", "{"}) {
    std::ofstream(path) << text;
    const auto settings = read_settings(M2_SOURCE_DIR "/models/m2-micro", *values);
    ASSERT_FALSE(settings.ok()) << text;
    EXPECT_NE(settings.error().text.find(path), std::string::npos) << settings.error().text;
  }
  std::ofstream(path) << R"({"temperature": 0.5})";
  EXPECT_EQ(read_settings(M2_SOURCE_DIR "/models/m2-micro", *values)->generation.temperature, 0.5);
  std::filesystem::remove_all(folder);
}

// vLLM's --tokenizer is a name or a path.
TEST(ModelFiles, ATokenizerIsNamedAsAModelIs) {
  namespace fs = std::filesystem;
  const fs::path cache = fs::path(testing::TempDir()) / "m2_tokenizer_cache";
  const fs::path repository = cache / "models--Some--Tokens";
  const std::string commit(40, 'a');
  fs::create_directories(repository / "refs");
  fs::create_directories(repository / "snapshots" / commit);
  std::ofstream(repository / "refs" / "v2") << commit;
  const fs::path micro = M2_SOURCE_DIR "/models/m2-micro";
  fs::copy_file(micro / "tokenizer.json", repository / "snapshots" / commit / "tokenizer.json",
                fs::copy_options::overwrite_existing);
  const auto read = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"--download-dir", cache.string()});
    const auto values = parse_command_line(serve_command(), words,
                                           [](const char*) -> const char* { return nullptr; });
    M2_CHECK(values.ok(), "{}", values.error().text);
    return read_tokenizer("/nowhere", *values);
  };
  EXPECT_TRUE(read({"--tokenizer", "Some/Tokens", "--tokenizer-revision", "v2"}).ok());
  EXPECT_TRUE(read({"--tokenizer", micro.string()}).ok());
  const auto main = read({"--tokenizer", "Some/Tokens"});
  ASSERT_FALSE(main.ok());
  EXPECT_EQ(main.error().text.find("--tokenizer: model Some/Tokens (revision main) was not found"),
            0u);
  fs::remove_all(cache);
}

}  // namespace
}  // namespace m2::app
