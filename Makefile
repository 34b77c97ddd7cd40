# make          build ./irq_* (finds nvcc, or says "CPU only")          make help     the other targets
# Variables: CUDA=0 (leave the GPU half out, in its own folder), NCCL=0, ARCHS='-gencode=...', NVCC=path, PREFIX=/usr/local
MAKEFLAGS += -r --no-print-directory $(if $(filter 0,$(MAKELEVEL)),-j$(shell nproc))
CXX   := g++
comma := ,
ifeq ($(origin NVCC),undefined)
NVCC := $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc))
endif
CUDA  ?= $(if $(NVCC),1,0)
BUILD ?= build$(if $(filter 0,$(CUDA)),-cpu)
PREFIX ?= /usr/local
ARCHS ?= -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90,code=sm_90
ARCHS_SM90 ?= -gencode=arch=compute_90a,code=sm_90a

# Packages unpacked without root (make deps LOCAL=1) live under .deps and are found through a transitive relative rpath.
ifneq ($(wildcard .deps),)
DEPS_LIBDIR := .deps/usr/lib/$(shell $(CXX) -print-multiarch)
DEPS_INC := -isystem .deps/usr/include
DEPS_LIB := -L$(DEPS_LIBDIR) -Wl,-rpath-link,$(DEPS_LIBDIR),--disable-new-dtags,-rpath,'$$ORIGIN/../$(DEPS_LIBDIR)'
export PATH := $(CURDIR)/.deps/usr/bin:$(PATH)
endif

# -Wno-restrict: g++ 12 reports "abc" + std::string as overlapping memory (its bug 105651).
CXXFLAGS := -std=c++20 -O3 -march=x86-64-v3 -ffp-contract=off -fopenmp -fPIC -g1 -Wall -Wextra -Werror -Wno-restrict \
            -I. -MMD -MP $(DEPS_INC)
NVFLAGS   = -std=c++20 -O3 -lineinfo -Xcompiler=-fPIC,-Wall,-Wextra,-Werror -Werror=all-warnings -I. -MMD -MP -MF $(@:.o=.d) \
            $(if $(filter %_sm90.cu,$<),$(ARCHS_SM90),$(ARCHS))
LDFLAGS  := -fopenmp -Wl,-rpath,'$$ORIGIN',-rpath,'$$ORIGIN/../lib' $(DEPS_LIB)
LIBS     := -lsentencepiece -lpcre2-8

# FUZZ=1: clang's libFuzzer under AddressSanitizer, the CPU half only, in a folder of its own (make fuzz sets it).
ifeq ($(FUZZ),1)
override CUDA := 0
CXX      := clang++
BUILD    := build-fuzz
CXXFLAGS := -std=c++20 -O1 -g1 -march=x86-64-v3 -ffp-contract=off -fopenmp -fsanitize=fuzzer-no-link,address,undefined \
            -fno-sanitize-recover=undefined -I. -MMD -MP $(DEPS_INC)
LDFLAGS  := -fopenmp -fsanitize=fuzzer,address,undefined $(DEPS_LIB)
endif

# What a build leaves out is decided here, by linking, never by #ifdef.
NCCL := 0
LIB_SRC := $(filter-out kernels/cuda_absent.cpp src/train/dist_%,$(wildcard kernels/*.cpp src/*/*.cpp))
ifeq ($(CUDA),1)
$(if $(NVCC),,$(error CUDA=1, but there is no nvcc on PATH or in /usr/local/cuda/bin (NVCC=path names one)))
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
NCCL      := $(if $(and $(wildcard src/train/dist_nccl.cpp),$(wildcard $(CUDA_HOME)/include/nccl.h /usr/include/nccl.h)),1,0)
CXXFLAGS  += -isystem $(CUDA_HOME)/include
LIB_SRC   += $(wildcard kernels/*.cu)
LIBS      += -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lcusolver -lcudart $(if $(filter 1,$(NCCL)),-lnccl)
else
LIB_SRC   += kernels/cuda_absent.cpp
endif
LIB_SRC   += $(wildcard src/train/dist_$(if $(filter 1,$(NCCL)),nccl,single).cpp)

object    = $(addprefix $(BUILD)/,$(addsuffix .o,$(1)))
TOOLS    := $(patsubst tools/%.cpp,%,$(wildcard tools/irq_*.cpp))
COMMON   := $(call object,$(filter-out tools/irq_%,$(wildcard tools/*.cpp)))
BENCH    := $(call object,$(wildcard bench/*.cpp) $(if $(filter 1,$(CUDA)),$(wildcard bench/variants/*.cu)))
DEMO     := $(filter irq_train irq_quantize irq_eval irq_generate,$(TOOLS))

GPU := $(if $(filter 1,$(CUDA)),CUDA ($(NVCC))$(if $(filter 0,$(NCCL)),; no NCCL: one GPU),CPU only ($(if $(NVCC),CUDA=0,no nvcc found)))
ifneq ($(filter-out clean help deps check format,$(or $(MAKECMDGOALS),all)),)
$(if $(filter 0,$(MAKELEVEL)),$(info $(GPU) -> $(BUILD)/))
endif

all: $(TOOLS)                        ## build every tool as ./irq_*
deps:                                ## install the packages that are missing (nothing to do, no network: when all is there)
	@tools/deps.sh $(if $(LOCAL),--unpack)
demo: deps                           ## quantize, finetune and ask the tiny model in tools/demo
	@$(MAKE) $(DEMO)
	@tools/demo/demo.sh
smollm2: deps                        ## fetch, quantize, finetune and ask a real small model, SmolLM2-135M-Instruct
	@$(MAKE) $(DEMO) irq_convert
	@tools/smollm2.sh
test: deps                           ## build and run all tests (one suite: make test FILTER='Cli*')
	@$(MAKE) $(BUILD)/irq_tests $(TOOLS)
	@OMP_WAIT_POLICY=passive $(BUILD)/irq_tests --gtest_brief=$(if $(VERBOSE),0,1) $(if $(FILTER),--gtest_filter='$(FILTER)')
parity: deps                         ## compare with torch, transformers, peft and llama.cpp, where they are installed
	@$(MAKE) $(BUILD)/parity_dump $(TOOLS)
	@failed=0; for script in parity hf_convert export choice llama_cpp; do echo "== tests/parity/$$script.py"; \
	  python3 tests/parity/$$script.py --build $(BUILD) || [ $$? = 77 ] || failed=1; done; exit $$failed
fuzz: deps                           ## run each parser's fuzzer for FUZZ_SECONDS=600 (needs clang and libomp-dev)
	@command -v clang++ >/dev/null || { echo "make fuzz needs clang and libomp-dev: apt-get install clang libomp-dev" >&2; exit 1; }
	@$(MAKE) FUZZ=1 fuzzers
	@tests/fuzz/fuzz.sh $(patsubst tests/fuzz/%.cpp,build-fuzz/%,$(wildcard tests/fuzz/fuzz_*.cpp))
bench: irq_bench                     ## time every op (and the CPU references where there is no GPU)
	./irq_bench all
check:                               ## layering, formatting, file sizes, conditionals
	@tools/check.sh
format:                              ## apply .clang-format to every source file
	@tools/check.sh --format
clean:                               ## remove what was built
	rm -rf build build-cpu build-fuzz $(TOOLS)
install: $(TOOLS)                    ## copy the tools to PREFIX/bin and libirq.so to PREFIX/lib
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib
	install $(addprefix $(BUILD)/,$(TOOLS)) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(BUILD)/libirq.so $(DESTDIR)$(PREFIX)/lib
help:                                ## this list
	@sed -n 's/^\([a-z0-9]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

# A real binary lies beside its library; ./irq_x is a link to the one built last (CUDA or CPU).
$(TOOLS): %: $(BUILD)/% FORCE
	@[ "$$(readlink $@)" = $< ] || ln -sf $< $@
$(BUILD)/irq_bench: $(BENCH)
$(BUILD)/irq_bench: private LDFLAGS += $(if $(filter 1,$(CUDA)),-L$(CUDA_HOME)/lib64 -Wl$(comma)-rpath$(comma)$(CUDA_HOME)/lib64 -lcudart)
$(BUILD)/irq_tests: $(call object,$(wildcard tests/*.cpp)) $(COMMON) $(BUILD)/libirq.so
	$(CXX) -o $@ $(filter %.o,$^) -L$(BUILD) -lirq -lgtest -lpthread $(LDFLAGS)
$(BUILD)/parity_dump: $(call object,tests/parity/parity_dump.cpp) $(COMMON) $(BUILD)/libirq.so
	$(CXX) -o $@ $(filter %.o,$^) -L$(BUILD) -lirq $(LDFLAGS)
fuzzers: $(patsubst tests/fuzz/%.cpp,$(BUILD)/%,$(wildcard tests/fuzz/fuzz_*.cpp))
$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.cpp.o $(BUILD)/libirq.a
	$(CXX) -o $@ $^ $(LDFLAGS) $(LIBS)
$(BUILD)/libirq.a: $(call object,$(LIB_SRC))
	rm -f $@ && ar rcs $@ $^
$(BUILD)/irq_%: $(BUILD)/tools/irq_%.cpp.o $(COMMON) $(BUILD)/libirq.so
	$(CXX) -o $@ $(filter %.o,$^) -L$(BUILD) -lirq $(LDFLAGS)
$(BUILD)/libirq.so: $(call object,$(LIB_SRC))
	$(CXX) -shared -o $@ $^ $(LDFLAGS) -Wl,--no-undefined $(LIBS)
$(BUILD)/%.cpp.o: %.cpp | $(BUILD)/ready
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c $< -o $@
$(BUILD)/%.cu.o: %.cu | $(BUILD)/ready
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -c $< -o $@
$(BUILD)/ready:
	@tools/deps.sh --check && mkdir -p $(BUILD) && touch $@

FORCE:
.PHONY: all deps demo smollm2 test parity fuzz fuzzers bench check format clean install help FORCE
.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
