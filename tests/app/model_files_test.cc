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

}  // namespace
}  // namespace m2::app
