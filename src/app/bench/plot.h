#pragma once

#include <span>
#include <string>

#include "app/bench/request_result.h"
#include "base/result.h"

namespace m2::app::bench {

// Whether a run can be drawn to this file: it ends in .svg, or in .png and gnuplot is installed.
// An empty name is fine.
Result<void> check_plot_file(const std::string& file);

// Draws the distributions of TTFT, TPOT and ITL and the events per second over time.
Result<void> draw_plot(const std::string& file, std::span<const RequestResult> results);

// The drawing itself, as an SVG document.
std::string svg_of(std::span<const RequestResult> results);

}  // namespace m2::app::bench
