// Covers: app/doctor
#include "app/doctor/doctor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "app/doctor/disk.h"
#include "app/doctor/golden.h"
#include "app/doctor/operations.h"
#include "app/doctor/reference.h"
#include "app/doctor/small_model.h"
#include "ops/instruction_set.h"
#include "tensor/stream.h"

namespace m2::app {
namespace {

namespace fs = std::filesystem;
using namespace doctor;

const fs::path kMicro = M2_SOURCE_DIR "/models/m2-micro";

const char* no_environment(const char*) {
  return nullptr;
}

Result<void> run(const std::vector<std::string>& words, std::string& printed) {
  M2_TRY(const Values values, parse_command_line(doctor_command(), words, no_environment));
  testing::internal::CaptureStdout();
  const Result<void> result = run_doctor(values);
  printed = testing::internal::GetCapturedStdout();
  return result;
}

TEST(Doctor, TheCpuIsWell) {
  std::string printed;
  const Result<void> result =
      run({kMicro.string(), "--device", "cpu", "--threads", "2", "--verbose"}, printed);
  ASSERT_TRUE(result.ok()) << result.error().text << "\n" << printed;
  for (const char* text :
       {"instructions ", "reads     ", "products  ", "operation linear F8_E4M3: ",
        "operation requantise: ", "operations against double precision",
        "logits 0.00 % apart in the middle, 0.0 % at most, ok", "golden    m2-micro: logits ",
        " 24 of 24 greedy tokens the same: ok", "headers are sound", "GB/s with "})
    EXPECT_NE(printed.find(text), std::string::npos) << text << "\n" << printed;
  EXPECT_EQ(printed.find("WRONG"), std::string::npos) << printed;
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

TEST(Doctor, RefusesWhatItCannotDo) {
  std::string printed;
  for (const auto& [words, text] :
       {std::pair<std::vector<std::string>, const char*>{{"--threads", "-1"}, "--threads"},
        {{"--disk-seconds", "-1"}, "--disk-seconds"},
        {{"--cpu-isa", "mmx"}, "mmx is not to be had"},
        {{"a", "b"}, "one MODEL, not 2"},
        {{"/absent/folder"}, "/absent/folder"}}) {
    const Result<void> result = run(words, printed);
    ASSERT_FALSE(result.ok()) << words[0];
    EXPECT_NE(result.error().text.find(text), std::string::npos) << result.error().text;
  }
}

class Operations : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Machine machine_{Device{}, pool_};
};

TEST_F(Operations, HoldUnderEveryInstructionSet) {
  for (const std::string_view set : ops::instruction_sets()) {
    ASSERT_TRUE(ops::choose_instruction_set(set).ok());
    const std::vector<Finding> findings = check_operations(machine_.exec);
    EXPECT_GE(findings.size(), 20u);
    for (const Finding& finding : findings)
      EXPECT_TRUE(finding.good()) << set << " " << finding.name << " " << finding.off << " "
                                  << finding.of_allowed;
  }
  ASSERT_TRUE(ops::choose_instruction_set("auto").ok());
}

// A single wrong number is noticed in each of them, and so is one that is none.
TEST_F(Operations, OneWrongNumberIsNoticed) {
  for (const double wrong : {1.0, std::nan("")}) {
    const auto spoil = [&](Numbers& numbers) {
      double squares = 0;
      for (const double value : numbers)
        if (std::isfinite(value)) squares += value * value;
      const double rms = std::sqrt(squares / static_cast<double>(numbers.size()));
      // A number that is there: caches are NaN where nothing was stored.
      for (size_t i = numbers.size() / 2; i < numbers.size(); ++i)
        if (std::isfinite(numbers[i])) {
          numbers[i] += wrong * (2 * rms + 1);
          break;
        }
    };
    for (const Finding& finding : check_operations(machine_.exec, spoil))
      EXPECT_FALSE(finding.good()) << finding.name;
  }
}

TEST(Distances, TheMiddleAndTheWorst) {
  const Rows expected{{3, 4}, {0, 5}, {1, 0}};
  const Distances off = distances({{3, 4}, {0, 4}, {0, 0}}, expected);
  EXPECT_NEAR(off.middle, 0.2, 1e-12);
  EXPECT_NEAR(off.worst, 1, 1e-12);
  EXPECT_TRUE(std::isnan(distances({{NAN, 4}, {0, 4}, {1, 0}}, expected).worst));
}

class Golden : public Operations {
 protected:
  Golden() : golden_(*read_golden(kMicro)) {}
  Json golden_;
};

TEST_F(Golden, OneWrongLogitOrTokenIsNoticed) {
  const Result<GoldenResult> right = run_golden(machine_, kMicro, golden_);
  ASSERT_TRUE(right.ok()) << right.error().text;
  EXPECT_TRUE(right->good()) << right->off.middle << " " << right->off.worst;
  EXPECT_EQ(right->runs, 2);
  EXPECT_EQ(right->tokens, 24);

  Json other = golden_;
  for (Json& run : other["runs"])
    for (Json& logit : run["logits"][1]) logit = logit.get<double>() * 1.02;
  EXPECT_FALSE(run_golden(machine_, kMicro, other)->good());
  other = golden_;
  for (Json& run : other["runs"]) run["greedy"].back() = 17;
  EXPECT_EQ(run_golden(machine_, kMicro, other)->same_tokens, 22);
}

// A copy of m2-micro in which `change` had the bytes of every tensor whose name ends in `suffix`.
fs::path damaged_micro(const std::string& suffix,
                       const std::function<void(std::span<char>)>& change) {
  const fs::path folder = fs::temp_directory_path() / "m2_doctor_damaged";
  fs::remove_all(folder);
  fs::copy(kMicro, folder, fs::copy_options::recursive);
  int changed = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::string bytes;
    {
      std::ifstream file(entry.path(), std::ios::binary);
      bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    const Json tensors = *parse_json(bytes.substr(8, header));
    for (const auto& [name, tensor] : tensors.items()) {
      if (!name.ends_with(suffix)) continue;
      const auto begin = tensor["data_offsets"][0].get<size_t>();
      change(std::span(bytes).subspan(8 + header + begin,
                                      tensor["data_offsets"][1].get<size_t>() - begin));
      ++changed;
    }
    std::ofstream(entry.path(), std::ios::binary) << bytes;
  }
  EXPECT_GT(changed, 0) << suffix;
  return folder;
}

// Faults of one kernel go beyond what FP8 inputs are allowed, too.
TEST_F(Golden, FaultsGoBeyondWhatRoundingIsAllowed) {
  const auto doubled = [](std::span<char> scales) {
    float first = 0;
    std::memcpy(&first, scales.data(), 4);
    first *= 2;
    std::memcpy(scales.data(), &first, 4);
  };
  const auto zeros = [](std::span<char> codes) { std::ranges::fill(codes, '\0'); };
  const std::function<void(std::span<char>)> none = [](std::span<char>) {};
  for (const auto& [suffix, change, wrong] :
       {std::tuple{"model.norm.weight", none, false},
        {"layers.2.self_attn.v_proj.weight_scale_inv", doubled, true},
        {"layers.2.self_attn.o_proj.weight_scale_inv", doubled, true},
        {"experts.3.w2.weight", zeros, true}}) {
    const fs::path folder = damaged_micro(suffix, change);
    const Result<GoldenResult> result = run_golden(machine_, folder, golden_);
    ASSERT_TRUE(result.ok()) << result.error().text;
    EXPECT_EQ(result->good(), !wrong) << suffix;
    EXPECT_EQ(result->off.middle > kAllowedWithFp8Inputs, wrong)
        << suffix << " " << result->off.middle;
    fs::remove_all(folder);
  }
}

TEST_F(Golden, DamagedOnesAreRefused) {
  const auto error = [&](const std::function<void(Json&)>& damage) {
    Json other = golden_;
    damage(other);
    const Result<GoldenResult> result = run_golden(machine_, kMicro, other);
    return result.ok() ? "" : result.error().text;
  };
  const auto each_run = [](const std::function<void(Json&)>& damage) {
    return [damage](Json& golden) {
      for (Json& run : golden["runs"]) damage(run);
    };
  };
  EXPECT_NE(error([](Json& g) { g.erase("runs"); }).find("no list of runs"), std::string::npos);
  EXPECT_NE(error([](Json& g) { g["runs"] = Json::array(); }).find("no run"), std::string::npos);
  EXPECT_NE(error(each_run([](Json& r) { r["prompt"][0] = 5000; })).find("5000 in prompt"),
            std::string::npos);
  EXPECT_NE(error(each_run([](Json& r) { r["prompt"] = Json::array(); })).find("prompt of 0"),
            std::string::npos);
  EXPECT_NE(error(each_run([](Json& r) { r["positions"][0] = 1000; })).find("positions"),
            std::string::npos);
  EXPECT_NE(error(each_run([](Json& r) { r["logits"][0].erase(0); })).find("2047 logits"),
            std::string::npos);
  EXPECT_NE(error(each_run([](Json& r) { r["logits"][0][3] = "x"; })).find("\"x\" in logits"),
            std::string::npos);
  EXPECT_NE(read_golden("/absent").error().text.find("/absent/golden.json"), std::string::npos);
}

TEST(Disk, ReadsAllOfTheFilesAndStopsInTime) {
  const fs::path folder = fs::temp_directory_path() / "m2_doctor_disk";
  fs::create_directories(folder);
  std::vector<std::string> paths;
  int64_t bytes = 0;
  for (const int64_t size : {int64_t{20'000'001}, int64_t{0}, int64_t{5}, int64_t{8} << 20}) {
    paths.push_back((folder / std::to_string(size)).string());
    std::ofstream(paths.back()) << std::string(static_cast<size_t>(size), 'x');
    bytes += size;
  }
  int64_t told = 0, of = 0;
  const Result<DiskRate> rate = read_files(paths, 60, [&](int64_t done, int64_t all) {
    told = done;
    of = all;
  });
  ASSERT_TRUE(rate.ok()) << rate.error().text;
  EXPECT_EQ(rate->bytes, bytes);
  EXPECT_GT(rate->rate(), 0);
  EXPECT_LE(told, bytes);
  EXPECT_EQ(of, told > 0 ? bytes : 0);
  EXPECT_EQ(read_files(paths, 0, {})->bytes, 0);
  paths.push_back((folder / "absent").string());
  EXPECT_NE(read_files(paths, 1, {}).error().text.find("absent: cannot open"), std::string::npos);
  fs::remove_all(folder);
}

TEST(DoctorReference, NearestCodes) {
  for (int code = 0; code < 0x7f; ++code) {
    const auto value = static_cast<double>(to_float(F8E4M3{static_cast<uint8_t>(code)}));
    EXPECT_EQ(reference::nearest_e4m3(value), code);
    EXPECT_EQ(reference::nearest_e4m3(-value), code | 0x80);
  }
  EXPECT_EQ(reference::nearest_e4m3(1e9), 0x7e);
}

}  // namespace
}  // namespace m2::app
