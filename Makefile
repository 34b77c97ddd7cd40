# make            build ./irq_* (finds nvcc, or builds for the CPU only)
# make help       the targets
NVCC  ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA  ?= $(if $(NVCC),1,0)
BUILD ?= build$(if $(filter 0,$(CUDA)),-cpu)
OMP   := -fopenmp
WARN  := -Wall -Wextra -Werror
FLAGS := -std=c++20 -O3 -march=x86-64-v3 -ffp-contract=off -fPIC -g1 $(OMP) $(WARN) -I. -MMD -MP
ARCHS ?= -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90,code=sm_90
NVFLAGS := -std=c++20 -O3 --fmad=true -lineinfo -Xcompiler=-fPIC,-Wall,-Wextra,-Werror -Werror=all-warnings -I. $(ARCHS)

TOOLS := $(patsubst tools/%.cpp,%,$(wildcard tools/irq_*.cpp))
LIB_SRC := $(filter-out kernels/cuda_absent.cpp,$(wildcard kernels/*.cpp src/*/*.cpp))
CU_SRC  := $(wildcard kernels/*.cu)
LIBS  := -lsentencepiece
ifeq ($(CUDA),1)
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
LIB_OBJ := $(LIB_SRC:%=$(BUILD)/%.o) $(CU_SRC:%=$(BUILD)/%.o)
LIBS  += -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcublasLt -lcudart
else
LIB_OBJ := $(LIB_SRC:%=$(BUILD)/%.o) $(BUILD)/kernels/cuda_absent.cpp.o
endif
TOOL_COMMON := $(filter-out tools/irq_%,$(wildcard tools/*.cpp))
TEST_SRC := $(wildcard tests/*.cpp)

all: $(TOOLS)
$(BUILD)/%.cpp.o: %.cpp
	@mkdir -p $(@D)
	g++ $(FLAGS) -c $< -o $@
$(BUILD)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
$(BUILD)/libirq.so: $(LIB_OBJ)
	g++ -shared $(OMP) -o $@ $^ $(LIBS)
irq_%: $(BUILD)/tools/irq_%.cpp.o $(TOOL_COMMON:%=$(BUILD)/%.o) $(BUILD)/libirq.so
	g++ $(OMP) -o $@ $(filter %.o,$^) -L$(BUILD) -lirq -Wl,-rpath,'$$ORIGIN/$(BUILD)'
$(BUILD)/irq_tests: $(TEST_SRC:%=$(BUILD)/%.o) $(BUILD)/libirq.so
	g++ $(OMP) -o $@ $(filter %.o,$^) -L$(BUILD) -lirq -lgtest -lgtest_main -Wl,-rpath,'$$ORIGIN'
test: $(BUILD)/irq_tests $(TOOLS)
	$(BUILD)/irq_tests
clean:
	rm -rf build build-cpu irq_*
.PHONY: all test clean
.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
