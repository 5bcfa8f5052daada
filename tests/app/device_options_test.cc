#include "app/device_options.h"

#include <gtest/gtest.h>

#include "app/serve_options.h"
#include "tensor/stream.h"

namespace m2::app {
namespace {

const char* no_environment(const char*) {
  return nullptr;
}

Values parse(std::vector<std::string> words) {
  static const Command command{"serve", "MODEL", "", "", serve_options()};
  Result<Values> values = parse_command_line(command, words, no_environment);
  M2_CHECK(values.ok(), "{}", values.error().text);
  return *std::move(values);
}

std::vector<int64_t> sizes(std::vector<std::string> words, int64_t seqs = 256,
                           int64_t tokens = 8192) {
  const Result<GraphChoice> out = choose_graphs(parse(std::move(words)), seqs, tokens);
  M2_CHECK(out.ok(), "{}", out.error().text);
  return out->sizes;
}

std::string error_of(std::vector<std::string> words) {
  const auto out = choose_graphs(parse(std::move(words)), 256, 8192);
  return out.ok() ? "" : out.error().text;
}

using Sizes = std::vector<int64_t>;

TEST(DeviceOptions, UsualGraphSizesEndWhereTheSequencesDo) {
  EXPECT_EQ(sizes({}, 4), (Sizes{1, 2, 4}));
  EXPECT_EQ(sizes({}, 5), (Sizes{1, 2, 4, 8}));
  EXPECT_EQ(sizes({}, 20), (Sizes{1, 2, 4, 8, 16, 24}));
  EXPECT_EQ(sizes({}, 256).size(), 35u);
  EXPECT_EQ(sizes({}, 256).back(), 256);
  EXPECT_EQ(sizes({}, 1024).back(), 512);
  EXPECT_EQ(sizes({}, 1024).size(), 51u);
  EXPECT_EQ(sizes({}, 1024, 100).back(), 96) << "never above the tokens of a step";
  EXPECT_EQ(sizes({}, 1), (Sizes{1}));
}

TEST(DeviceOptions, SizesHaveFlagsOfTheirOwn) {
  const std::string config = R"(-cc={"cudagraph_capture_sizes": [3, 5]})";
  EXPECT_EQ(sizes({"--cudagraph-capture-sizes", "8", "1", "2"}), (Sizes{1, 2, 8}));
  EXPECT_EQ(sizes({config, "--cudagraph_capture_sizes", "8", "1"}), (Sizes{1, 8}));
  EXPECT_EQ(sizes({config, "--max-cudagraph-capture-size", "4"}), (Sizes{3}));
  EXPECT_EQ(sizes({"--max-cudagraph-capture-size", "4"}), (Sizes{1, 2, 4}));
  EXPECT_EQ(error_of({"--cudagraph-capture-sizes", "1", "many"}),
            "--compilation-config: cudagraph_capture_sizes takes integers from 1 on, not \"many\"");
}

TEST(DeviceOptions, ModesInAnyCase) {
  for (const char* mode : {"full", "FULL_DECODE_ONLY", "Full_And_Piecewise"})
    EXPECT_EQ(sizes({std::string("-cc.cudagraph_mode=") + mode}, 4), (Sizes{1, 2, 4})) << mode;
  for (const char* mode : {"NONE", "none", "PIECEWISE"})
    EXPECT_EQ(sizes({std::string("-cc.cudagraph_mode=") + mode}, 4), Sizes()) << mode;
  EXPECT_EQ(sizes({"--enforce-eager"}, 4), Sizes());
  EXPECT_EQ(sizes({"-O", "0"}, 4), Sizes());
  EXPECT_EQ(sizes({"-O", "1"}, 4), Sizes());
  EXPECT_EQ(sizes({"-O", "3"}, 4), (Sizes{1, 2, 4}));
  EXPECT_NE(error_of({"-cc.cudagraph_mode=SOME"}).find("\"SOME\" is none of NONE, PIECEWISE"),
            std::string::npos);
}

TEST(DeviceOptions, WhatIsWrongWithGraphsIsWrongWithoutThemToo) {
  EXPECT_TRUE(check_graphs(parse({"-cc.cudagraph_mode=NONE"})).ok());
  for (const char* word :
       {"-cc.cudagraph_mode=SOME", "-cc.cudagraph_capture_sizes=8", "-cc.cudagraph_mode=3"})
    EXPECT_FALSE(check_graphs(parse({word})).ok()) << word;
}

// The log says so where a mode means less than its name.
TEST(DeviceOptions, ModesThatWereAskedForAreExplained) {
  const auto note = [](std::vector<std::string> words) {
    return choose_graphs(parse(std::move(words)), 4, 8192)->note;
  };
  for (const char* word : {"-cc.cudagraph_mode=piecewise", "-O1"})
    EXPECT_EQ(
        note({word}),
        "cudagraph_mode PIECEWISE: every step is launched kernel by kernel, without graphs; by "
        "default decoding steps are recorded whole, which is faster");
  EXPECT_EQ(note({"-cc.cudagraph_mode=FULL"}),
            "cudagraph_mode FULL: decoding steps are recorded whole; steps with prompts are "
            "launched kernel by kernel");
  EXPECT_EQ(note({"-cc", R"({"cudagraph_mode": "FULL_AND_PIECEWISE"})"})
                .find("cudagraph_mode FULL_AND_PIECEWISE: decoding steps are recorded whole"),
            0u);
  for (const std::vector<std::string>& words : {std::vector<std::string>{},
                                                {"-cc.cudagraph_mode=FULL_DECODE_ONLY"},
                                                {"-cc.cudagraph_mode=NONE"},
                                                {"--enforce-eager"}})
    EXPECT_EQ(note(words), "");
}

TEST(DeviceOptions, SizesOfOnesOwn) {
  EXPECT_EQ(sizes({"-cc", R"({"cudagraph_capture_sizes": [9, 3, 3, 700]})"}, 1024),
            (Sizes{3, 9, 700}));
  EXPECT_EQ(sizes({"-cc", R"({"max_cudagraph_capture_size": 10})"}), (Sizes{1, 2, 4, 8}));
  EXPECT_NE(error_of({"-cc", R"({"cudagraph_capture_sizes": [0]})"}).find("integers from 1 on"),
            std::string::npos);
  EXPECT_NE(error_of({"-cc", R"({"cudagraph_capture_sizes": 8})"}).find("takes a list"),
            std::string::npos);
}

TEST(DeviceOptions, Devices) {
  EXPECT_EQ(choose_device(parse({"--device", "cpu"})).value().kind, DeviceKind::cpu);
  for (const char* name : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "tpu"}) {
    const auto device = choose_device(parse({"--device", name}));
    ASSERT_FALSE(device.ok()) << name;
    EXPECT_NE(device.error().text.find("is none of auto, cpu, cuda, cuda:N"), std::string::npos);
  }
  const Device gpu{DeviceKind::cuda, 0};
  const Result<void> usable = check_device(gpu);
  EXPECT_EQ(choose_device(parse({})).value().kind,
            usable.ok() ? DeviceKind::cuda : DeviceKind::cpu);
  if (usable.ok()) return;
  const auto asked = choose_device(parse({"--device", "cuda"}));
  ASSERT_FALSE(asked.ok());
  EXPECT_NE(asked.error().text.find("use --device cpu"), std::string::npos);
  EXPECT_EQ(step_defaults(Device{}).sequences, 256);
}

}  // namespace
}  // namespace m2::app
