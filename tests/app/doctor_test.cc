#include "app/doctor.h"

#include <gtest/gtest.h>

#include "tensor/stream.h"

namespace m2::app {
namespace {

const char* no_environment(const char*) {
  return nullptr;
}

Result<void> run(const std::vector<std::string>& words, std::string& printed) {
  M2_TRY(const Values values, parse_command_line(doctor_command(), words, no_environment));
  testing::internal::CaptureStdout();
  const Result<void> result = doctor(values);
  printed = testing::internal::GetCapturedStdout();
  return result;
}

TEST(Doctor, TheCpuAgreesWithItself) {
  std::string printed;
  const Result<void> result = run({"--device", "cpu", "--threads", "2"}, printed);
  ASSERT_TRUE(result.ok()) << result.error().text;
  EXPECT_NE(printed.find("GB/s read plus written"), std::string::npos) << printed;
  EXPECT_NE(printed.find("logits 0.00 % apart in the middle, 0.0 % at most, ok"), std::string::npos)
      << printed;
}

TEST(Doctor, SaysWhatIsMissingForAGpu) {
  const Result<void> usable = check_device({DeviceKind::cuda, 0});
  if (usable.ok()) GTEST_SKIP() << "there is a GPU here";
  std::string printed;
  const Result<void> result = run({"--device", "cuda"}, printed);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().text, usable.error().text);
  EXPECT_NE(printed.find(usable.error().text), std::string::npos) << printed;
}

}  // namespace
}  // namespace m2::app
