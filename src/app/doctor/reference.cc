#include "app/doctor/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace m2::app::doctor::reference {
namespace {

constexpr double kF8Most = 448;

size_t at(int64_t i) {
  return static_cast<size_t>(i);
}

double e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double magnitude =
      exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return code & 0x80 ? -magnitude : magnitude;
}

double power_above(double x) {
  return std::exp2(std::ceil(std::log2(x)));
}

}  // namespace

double Matrix::at(int64_t row, int64_t column) const {
  const double code = codes[static_cast<size_t>(row * columns + column)];
  if (scales.empty()) return code;
  return code * scales[static_cast<size_t>((first_row + row) / 128 * scale_columns() +
                                           (first_column + column) / 128)];
}

Numbers product(const Numbers& x, const Matrix& weight) {
  Numbers out;
  for (int64_t t = 0; t < std::ssize(x) / weight.columns; ++t)
    for (int64_t n = 0; n < weight.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < weight.columns; ++k)
        sum += x[at(t * weight.columns + k)] * weight.at(n, k);
      out.push_back(sum);
    }
  return out;
}

Numbers rms_norm(const Numbers& x, const Numbers& weight, double eps) {
  const auto width = std::ssize(weight);
  Numbers out;
  for (int64_t t = 0; t < std::ssize(x) / width; ++t) {
    double squares = 0;
    for (int64_t c = 0; c < width; ++c) squares += x[at(t * width + c)] * x[at(t * width + c)];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (int64_t c = 0; c < width; ++c)
      out.push_back(x[at(t * width + c)] * factor * weight[at(c)]);
  }
  return out;
}

uint8_t nearest_e4m3(double x) {
  int best = 0;
  for (int code = 1; code < 0x7f; ++code) {
    const double distance = std::fabs(std::fabs(x) - e4m3(code));
    const double least = std::fabs(std::fabs(x) - e4m3(best));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

Quantised quantise(const Numbers& x, int64_t columns, int64_t stretch, bool powers) {
  Quantised out;
  for (int64_t row = 0; row < std::ssize(x); row += columns)
    for (int64_t begin = 0; begin < columns; begin += stretch) {
      const int64_t end = std::min(columns, begin + stretch);
      double most = 1e-10;
      for (int64_t c = begin; c < end; ++c) most = std::max(most, std::fabs(x[at(row + c)]));
      // FP32's roundings, which a double's quotients and products do not change.
      auto scale = static_cast<float>(static_cast<double>(static_cast<float>(most)) / kF8Most);
      if (powers) scale = static_cast<float>(power_above(std::max<double>(scale, 1e-10)));
      const float inverse = 1 / scale;
      for (int64_t c = begin; c < end; ++c)
        out.codes.push_back(
            nearest_e4m3(static_cast<double>(static_cast<float>(x[at(row + c)]) * inverse)));
      out.scales.push_back(static_cast<double>(scale));
    }
  return out;
}

Numbers through_fp8(const Numbers& x, int64_t columns, int64_t stretch) {
  const Quantised quantised = quantise(x, columns, stretch, false);
  const int64_t stretches = (columns + stretch - 1) / stretch;
  Numbers out;
  for (int64_t i = 0; i < std::ssize(x); ++i)
    out.push_back(e4m3(static_cast<int>(quantised.codes[at(i)])) *
                  quantised.scales[at(i / columns * stretches + i % columns / stretch)]);
  return out;
}

void requantise(Matrix& matrix) {
  const Numbers before = matrix.scales;
  Numbers most(before.size(), static_cast<double>(1e-4f));
  const auto block = [&](int64_t i) {
    return at((matrix.first_row + i / matrix.columns) / 128 * matrix.scale_columns() +
              (matrix.first_column + i % matrix.columns) / 128);
  };
  const auto value = [&](int64_t i) {
    return static_cast<float>(matrix.codes[at(i)] * before[block(i)]);
  };
  const auto count = std::ssize(matrix.codes);
  for (int64_t i = 0; i < count; ++i)
    most[block(i)] = std::max(most[block(i)], std::fabs(static_cast<double>(value(i))));
  for (size_t b = 0; b < most.size(); ++b)
    matrix.scales[b] = power_above(static_cast<double>(static_cast<float>(most[b] / kF8Most)));
  for (int64_t i = 0; i < count; ++i)
    matrix.codes[at(i)] =
        e4m3(nearest_e4m3(static_cast<double>(value(i)) / matrix.scales[block(i)]));
}

Routed route(const Numbers& x, const Numbers& gate, const Numbers& bias, int64_t hidden,
             int64_t top) {
  const auto experts = std::ssize(bias);
  Routed out;
  for (int64_t t = 0; t < std::ssize(x) / hidden; ++t) {
    Numbers score;
    for (int64_t e = 0; e < experts; ++e) {
      double dot = 0;
      for (int64_t c = 0; c < hidden; ++c) dot += x[at(t * hidden + c)] * gate[at(e * hidden + c)];
      score.push_back(1 / (1 + std::exp(-dot)));
    }
    std::vector<int32_t> order(at(experts));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
      return score[at(a)] + bias[at(a)] > score[at(b)] + bias[at(b)];
    });
    std::sort(order.begin(), order.begin() + top);
    double sum = 0;
    for (int64_t i = 0; i < top; ++i) sum += score[at(order[at(i)])];
    for (int64_t i = 0; i < top; ++i) {
      out.ids.push_back(order[at(i)]);
      out.weights.push_back(score[at(order[at(i)])] / sum);
    }
  }
  return out;
}

Numbers norm_and_turn(const Numbers& qkv, const std::vector<int32_t>& positions,
                      const Numbers& q_norm, const Numbers& k_norm, double theta, double eps,
                      const ops::HeadShape& heads) {
  const int64_t q = heads.q_heads * heads.head_dim, k = heads.kv_heads * heads.head_dim;
  const int64_t width = q + 2 * k, half = heads.rotary_dim / 2;
  Numbers out;
  for (int64_t t = 0; t < std::ssize(positions); ++t) {
    const auto begin = qkv.begin() + t * width;
    Numbers row = rms_norm({begin, begin + q}, q_norm, eps);
    const Numbers keys = rms_norm({begin + q, begin + q + k}, k_norm, eps);
    row.insert(row.end(), keys.begin(), keys.end());
    for (int64_t head = 0; head < q + k; head += heads.head_dim)
      for (int64_t i = 0; i < half; ++i) {
        const double angle =
            positions[at(t)] *
            std::pow(theta, -2.0 * static_cast<double>(i) / (2.0 * static_cast<double>(half)));
        double &a = row[at(head + i)], &b = row[at(head + half + i)];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    row.insert(row.end(), begin + q + k, begin + width);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

Numbers attend(std::span<const double> q, std::span<const Numbers> keys,
               std::span<const Numbers> values, const ops::HeadShape& heads) {
  const int64_t dim = heads.head_dim, group = heads.q_heads / heads.kv_heads;
  Numbers out(q.size());
  for (int64_t head = 0; head < heads.q_heads; ++head) {
    const int64_t kv = head / group * dim;
    Numbers weight;
    for (const Numbers& key : keys) {
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += q[at(head * dim + d)] * key[at(kv + d)];
      weight.push_back(dot / std::sqrt(static_cast<double>(dim)));
    }
    const double most = *std::ranges::max_element(weight);
    double sum = 0;
    for (double& w : weight) sum += w = std::exp(w - most);
    for (size_t p = 0; p < values.size(); ++p)
      for (int64_t d = 0; d < dim; ++d)
        out[at(head * dim + d)] += weight[p] / sum * values[p][at(kv + d)];
  }
  return out;
}

}  // namespace m2::app::doctor::reference
