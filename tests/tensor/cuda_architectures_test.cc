#include "tensor/cuda_architectures.h"

#include <gtest/gtest.h>

namespace m2 {
namespace {

TEST(CudaArchitectures, HoppersOwnCodeRunsOnHopperAlone) {
  EXPECT_TRUE(runs_on_gpu("90a-real", 9, 0));
  for (const auto& [major, minor] : {std::pair{8, 0}, {8, 9}, {9, 1}, {10, 0}, {12, 0}})
    EXPECT_FALSE(runs_on_gpu("90a-real", major, minor)) << major << minor;
  EXPECT_TRUE(runs_on_gpu("90a", 9, 0));
  EXPECT_FALSE(runs_on_gpu("90a", 10, 0));
}

TEST(CudaArchitectures, MachineCodeStaysWithinItsMajorNumber) {
  EXPECT_TRUE(runs_on_gpu("80-real", 8, 0));
  EXPECT_TRUE(runs_on_gpu("80-real", 8, 9));
  EXPECT_FALSE(runs_on_gpu("86-real", 8, 0));
  EXPECT_FALSE(runs_on_gpu("80-real", 9, 0));
  EXPECT_TRUE(runs_on_gpu("100-real", 10, 0));
  EXPECT_FALSE(runs_on_gpu("100-real", 12, 0));
}

TEST(CudaArchitectures, CodeForLaterCompilationRunsOnWhatIsNewer) {
  for (const char* text : {"75", "75-virtual"}) {
    EXPECT_TRUE(runs_on_gpu(text, 7, 5));
    EXPECT_TRUE(runs_on_gpu(text, 12, 0));
    EXPECT_FALSE(runs_on_gpu(text, 7, 0));
  }
}

TEST(CudaArchitectures, AnyOfAListIsEnough) {
  EXPECT_TRUE(runs_on_gpu("75-real,80-real, 90a-real", 9, 0));
  EXPECT_TRUE(runs_on_gpu("75-real,80-real, 90a-real", 8, 6));
  EXPECT_FALSE(runs_on_gpu("75-real,80-real, 90a-real", 10, 0));
  for (const char* text : {"", ",", " , ", "native", "-real"})
    EXPECT_FALSE(runs_on_gpu(text, 9, 0)) << text;
}

}  // namespace
}  // namespace m2
