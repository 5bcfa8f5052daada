#include "base/log.h"

#include <gtest/gtest.h>

namespace m2 {
namespace {

TEST(Log, ClientTextCannotForgeALine) {
  EXPECT_EQ(printable("a\r\nERROR 11-23 forged\x1b[31m"), "a\\x0d\\x0aERROR 11-23 forged\\x1b[31m");
  EXPECT_EQ(printable("abcdef", 3), "abc...");
}

TEST(Log, LevelsByName) {
  for (const char* name : {"debug", "INFO", "Warning", "error", "CRITICAL", "trace", "warn"})
    EXPECT_TRUE(is_log_level(name)) << name;
  for (const char* name : {"", "loud", "inf", "10"}) EXPECT_FALSE(is_log_level(name)) << name;
}

TEST(Log, LinesAreInTheFormThatScriptsGrep) {
  testing::internal::CaptureStderr();
  start_logging("INFO", "APIServer pid=7");
  log_info("Application startup complete.");
  log_debug("not at this level");
  log_warning("careful");
  const std::string out = testing::internal::GetCapturedStderr();
  // (APIServer pid=7) INFO 11-23 17:00:00 Application startup complete.
  EXPECT_EQ(out.rfind("(APIServer pid=7) INFO ", 0), 0u) << out;
  EXPECT_NE(out.find(" Application startup complete.\n"), std::string::npos) << out;
  EXPECT_NE(out.find(") WARNING "), std::string::npos) << out;
  EXPECT_EQ(out.find("not at this level"), std::string::npos) << out;
}

}  // namespace
}  // namespace m2
