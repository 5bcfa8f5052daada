#include "engine/step_costs.h"

#include <gtest/gtest.h>

#include <random>

namespace m2::engine {
namespace {

Nanos micros(double value) {
  return static_cast<Nanos>(value * 1000);
}

TEST(StepCosts, KnowNothingUntilSizesDiffer) {
  StepCosts costs;
  EXPECT_EQ(costs.of_another_row(1), 0);
  for (int i = 0; i < 100; ++i) costs.note(4, micros(5000));
  EXPECT_EQ(costs.of_another_row(4), 0);
  costs.note(0, micros(5000));
  costs.note(4, 0);
  EXPECT_EQ(costs.of_another_row(4), 0);
}

// Steps of 2.8 ms and 0.5 ms a row more, with noise and now and then a hiccup.
TEST(StepCosts, FollowALine) {
  std::mt19937 random(3);
  StepCosts costs;
  const auto note = [&](double base, double row) {
    const auto rows = static_cast<int64_t>(1 + random() % 6);
    const double noise = 1 + (static_cast<double>(random() % 1000) / 1000 - 0.5) * 0.02;
    const double hiccup = random() % 50 == 0 ? 20 : 1;
    costs.note(rows, micros((base + row * static_cast<double>(rows)) * noise * hiccup));
  };
  for (int i = 0; i < 300; ++i) note(2300, 500);
  EXPECT_NEAR(costs.of_another_row(1), 500.0 / 2800, 0.07);
  EXPECT_NEAR(costs.of_another_row(6), 500.0 / 5300, 0.04);
  for (int i = 0; i < 300; ++i) note(20000, 100);  // contexts have grown
  EXPECT_NEAR(costs.of_another_row(1), 100.0 / 20100, 0.03);
  // Equal sizes teach nothing new, and what is known of them stays.
  const double known = costs.of_another_row(3);
  for (int i = 0; i < 1000; ++i) costs.note(3, micros(20300));
  EXPECT_NEAR(costs.of_another_row(3), known, 0.01);
}

TEST(StepCosts, StayWithinWhatASizeCanCost) {
  StepCosts costs;
  for (int i = 0; i < 50; ++i) costs.note(1 + i % 4, micros(1000 - 100 * (i % 4)));
  EXPECT_EQ(costs.of_another_row(2), 0) << "larger steps were faster";
  StepCosts steep;
  for (int i = 0; i < 50; ++i) steep.note(1 + i % 4, micros(1 + 1000 * (i % 4)));
  EXPECT_LE(steep.of_another_row(2), 1);
}

}  // namespace
}  // namespace m2::engine
