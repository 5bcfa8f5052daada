# Two commands for a new machine: `make demo` and `make test`. Both install what is missing.

BUILD := build
JOBS ?= $(shell nproc)

.PHONY: help
help:
	@echo "make demo        install what is missing, build, serve m2-micro, talk with it"
	@echo "make test        install what is missing, build, run every test but the long ones"
	@echo "make test-all    the same with the long tests, then the suite under asan and under tsan"
	@echo "make build       build build/m2 (release)"
	@echo "make cuda        build with the CUDA bodies too (toolkit: installed, or from PyPI wheels)"
	@echo "make bench       measure operations, engine, tokenizer, server; fails if a ratio got worse"
	@echo "make format      clang-format every source"
	@echo "make clean       remove the build folders"

.PHONY: setup
setup:
	@tools/setup build

.PHONY: setup-test
setup-test:
	@tools/setup test

.PHONY: build
build: setup
	@cmake --preset release -DM2_TESTS=OFF > $(BUILD)-configure.log || { cat $(BUILD)-configure.log; exit 1; }
	@rm -f $(BUILD)-configure.log
	cmake --build $(BUILD) --target m2 -j $(JOBS)

.PHONY: demo
demo: build
	@tools/demo

# With the CUDA bodies wherever a toolkit can be had (half a minute of compiling): the plans are tested
# everywhere, the kernels where there is a GPU. Without one the tests say so, and so does this.
.PHONY: test
test: setup-test
	@if tools/setup-cuda > $(BUILD)-cuda.log; then cuda=ON; else cuda=OFF; \
	  echo "make: NO CUDA TOOLKIT (installed or as PyPI wheels): the GPU code is not compiled in this run" >&2; fi; \
	  rm -f $(BUILD)-cuda.log; cmake --preset release -DM2_TESTS=ON -DM2_CUDA=$$cuda
	cmake --build $(BUILD) -j $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS) -LE long

.PHONY: test-all
test-all: test
	ctest --test-dir $(BUILD) --output-on-failure -L long
	$(MAKE) sanitize SANITIZER=asan
	$(MAKE) sanitize SANITIZER=tsan

.PHONY: sanitize
sanitize: setup-test
	cmake --preset $(SANITIZER) -DM2_TESTS=ON
	cmake --build $(BUILD)-$(SANITIZER) -j $(JOBS)
	TSAN_OPTIONS=suppressions=$(CURDIR)/tests/tsan.suppressions \
	  ctest --test-dir $(BUILD)-$(SANITIZER) --output-on-failure -j $(JOBS) -LE "long|speed"

.PHONY: setup-cuda
setup-cuda:
	@tools/setup-cuda

# The CUDA bodies of the operations and their tests; no GPU is needed to build them.
.PHONY: cuda
cuda: setup-test setup-cuda
	cmake --preset cuda
	cmake --build $(BUILD)-cuda -j $(JOBS)

.PHONY: bench
bench: setup-test
	cmake --preset release -DM2_TESTS=ON
	cmake --build $(BUILD) -j $(JOBS) --target m2 forward_bench ranks_bench scheduler_bench sampler_bench \
	  wire_bench tokenizer_bench grammar_bench
	@tools/bench $(BUILD)

.PHONY: format
format:
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i

.PHONY: clean
clean:
	rm -rf $(BUILD) $(BUILD)-*
