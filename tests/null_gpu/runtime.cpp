// A card that computes nothing. Preloaded, this library stands before the CUDA runtime, cuBLAS and NCCL, and is the
// driver (libcuda.so.1) for Triton. It keeps account of memory and writes down every launch, copy, wait and allocation;
// nothing is computed, and what is read back is zero.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <nccl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

static std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

// The log: one event a line. What is written down is taken by the test after each phase.
static std::string log_lines, taken_lines;

static void say(const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    Lock lock(mutex);
    log_lines.append(text).append("\n");
}

API void null_gpu_say(const char* line) { say("%s", line); }

API const char* null_gpu_take() {
    Lock lock(mutex);
    taken_lines.swap(log_lines);
    log_lines.clear();
    return taken_lines.c_str();
}

// Memory. A device's addresses can neither be read nor written by the processor: code that takes one for the other dies.
using Blocks = std::map<uintptr_t, size_t>;
static Blocks device_blocks, host_blocks;
static size_t used_bytes = 0, limit_bytes = size_t(140) << 30;
static std::map<const void*, std::string> just_written;  // small copies to the device that no kernel has seen yet

API void null_gpu_limit(size_t bytes) { limit_bytes = bytes; }

static void* reserve(Blocks& blocks, size_t bytes, int access) {
    size_t size = bytes ? (bytes + 4095) & ~size_t(4095) : 4096;
    void* place = mmap(nullptr, size, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) return nullptr;
    Lock lock(mutex);
    blocks[uintptr_t(place)] = size;
    return place;
}

static size_t give_back(Blocks& blocks, void* place) {
    Lock lock(mutex);
    auto found = blocks.find(uintptr_t(place));
    if (found == blocks.end()) return 0;
    size_t size = found->second;
    munmap(place, size);
    blocks.erase(found);
    return size;
}

static bool holds(const Blocks& blocks, const void* place) {
    Lock lock(mutex);
    auto after = blocks.upper_bound(uintptr_t(place));
    if (after == blocks.begin()) return false;
    --after;
    return uintptr_t(place) < after->first + after->second;
}

API cudaError_t cudaMalloc(void** place, size_t bytes) {
    Lock lock(mutex);
    *place = used_bytes + bytes > limit_bytes ? nullptr : reserve(device_blocks, bytes, PROT_NONE);
    say("%s %zu", *place ? "alloc" : "refused", bytes);
    if (!*place) return cudaErrorMemoryAllocation;
    used_bytes += device_blocks[uintptr_t(*place)];
    return cudaSuccess;
}

API cudaError_t cudaFree(void* place) {
    Lock lock(mutex);
    used_bytes -= give_back(device_blocks, place);
    return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void** place, size_t bytes, unsigned) {
    *place = reserve(host_blocks, bytes, PROT_READ | PROT_WRITE);
    return *place ? cudaSuccess : cudaErrorMemoryAllocation;
}

API cudaError_t cudaFreeHost(void* place) { return give_back(host_blocks, place), cudaSuccess; }

API cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    *total_bytes = limit_bytes;
    *free_bytes = limit_bytes > used_bytes ? limit_bytes - used_bytes : 0;
    return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* place) {
    *out = {};
    out->type = holds(device_blocks, place) ? cudaMemoryTypeDevice
                : holds(host_blocks, place) ? cudaMemoryTypeHost
                                            : cudaMemoryTypeUnregistered;
    if (out->type == cudaMemoryTypeDevice) out->devicePointer = const_cast<void*>(place);
    if (out->type == cudaMemoryTypeHost) out->hostPointer = const_cast<void*>(place);
    return cudaSuccess;
}

API CUresult cuPointerGetAttribute(void* out, CUpointer_attribute, CUdeviceptr place) {
    return *static_cast<CUdeviceptr*>(out) = place, CUDA_SUCCESS;
}

static cudaError_t copy(void* to, const void* from, size_t bytes) {
    bool into = holds(device_blocks, to), out_of = holds(device_blocks, from);
    Lock lock(mutex);
    if (into && out_of) {
        say("copy d2d %zu", bytes);
        if (just_written.count(from)) just_written[to] = just_written[from];
    } else if (into) {
        say("copy h2d %zu%s", bytes, holds(host_blocks, from) ? "" : " pageable");
        if (bytes <= 65536) just_written[to].assign(static_cast<const char*>(from), bytes);
    } else if (out_of) {
        say("copy d2h %zu", bytes);
        auto known = just_written.find(from);
        memset(to, 0, bytes);
        if (known != just_written.end()) memcpy(to, known->second.data(), std::min(bytes, known->second.size()));
    } else {
        memcpy(to, from, bytes);
    }
    return cudaSuccess;
}

API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return copy(to, from, bytes);
}

API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    say("wait copy");
    return copy(to, from, bytes);
}

// Launches: of torch's own kernels, by the names that its libraries register; of Triton's, by those of their modules.
static void launched(const char* kind, const char* name, unsigned x, unsigned y, unsigned z) {
    Lock lock(mutex);
    just_written.clear();
    say("%s %s %u,%u,%u", kind, name, x, y, z);
}

static std::unordered_map<const void*, const char*>& kernel_names() {
    static std::unordered_map<const void*, const char*> names;  // filled by constructors of other libraries
    return names;
}

static cudaError_t kernel(const void* function, dim3 grid) {
    auto found = kernel_names().find(function);
    launched("kernel", found == kernel_names().end() ? "?" : found->second, grid.x, grid.y, grid.z);
    return cudaSuccess;
}

API void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(malloc(8)); }
API void __cudaRegisterFunction(
    void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    kernel_names()[function] = name;
}

struct Call {
    dim3 grid, block;
    size_t shared;
    void* stream;
};
static thread_local std::vector<Call> calls;

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    return calls.push_back({grid, block, shared, stream}), 0;
}

API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    if (calls.empty()) return cudaErrorUnknown;
    *grid = calls.back().grid, *block = calls.back().block, *shared = calls.back().shared;
    *static_cast<void**>(stream) = calls.back().stream;
    return calls.pop_back(), cudaSuccess;
}

API cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* function) {
    return *out = cudaKernel_t(function), cudaSuccess;
}

API cudaError_t __cudaLaunchKernel(cudaKernel_t function, dim3 grid, dim3, void**, size_t, cudaStream_t) {
    return kernel(function, grid);
}

API cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3, void**, size_t, cudaStream_t) {
    return kernel(function, grid);
}

API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* call, const void* function, void**) {
    return kernel(function, call->gridDim);
}

API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3, void**, size_t, cudaStream_t) {
    return kernel(function, grid);
}

API cudaError_t cudaMemsetAsync(void*, int, size_t bytes, cudaStream_t) {
    return launched("memset", "bytes", unsigned(bytes), 1, 1), cudaSuccess;
}

API cudaError_t cudaMemset(void*, int, size_t bytes) { return cudaMemsetAsync(nullptr, 0, bytes, nullptr); }

API CUresult cuModuleGetFunction(CUfunction* out, CUmodule, const char* name) {
    return *out = CUfunction(strdup(name)), CUDA_SUCCESS;
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig* call, CUfunction function, void**, void**) {
    launched("triton", reinterpret_cast<const char*>(function), call->gridDimX, call->gridDimY, call->gridDimZ);
    return CUDA_SUCCESS;
}

API CUresult cuLaunchKernel(
    CUfunction function, unsigned x, unsigned y, unsigned z, unsigned, unsigned, unsigned, unsigned, CUstream, void**,
    void**) {
    return launched("triton", reinterpret_cast<const char*>(function), x, y, z), CUDA_SUCCESS;
}

// Waits.
API cudaError_t cudaDeviceSynchronize() { return say("wait device"), cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t) { return say("wait stream"), cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) { return say("wait event"), cudaSuccess; }
API CUresult cuStreamSynchronize(CUstream) { return say("wait stream"), CUDA_SUCCESS; }
API CUresult cuCtxSynchronize() { return say("wait device"), CUDA_SUCCESS; }

// What the card says of itself: an H200. The runtime and the driver count their attributes alike.
static thread_local int current = 0;

static int count_of_cards() {
    const char* said = getenv("NULL_GPU_COUNT");
    return said ? atoi(said) : 1;
}

static int attribute(int which) {
    switch (which) {
        case cudaDevAttrComputeCapabilityMajor: return 9;
        case cudaDevAttrMultiProcessorCount: return 132;
        case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 << 10;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
        case cudaDevAttrWarpSize: return 32;
        case cudaDevAttrMaxThreadsPerBlock: return 1024;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
        case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: return 1024;
        case cudaDevAttrMaxBlockDimZ: return 64;
        case cudaDevAttrMaxGridDimX: return 2147483647;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: return 65535;
        case cudaDevAttrL2CacheSize: return 50 << 20;
        case cudaDevAttrClockRate: return 1980000;
        case cudaDevAttrMemoryClockRate: return 3201000;
        case cudaDevAttrGlobalMemoryBusWidth: return 6144;
        case cudaDevAttrUnifiedAddressing: return 1;
        default: return 0;
    }
}

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
    *out = {};
    strcpy(out->name, "NVIDIA H200");
    out->totalGlobalMem = limit_bytes;
    out->uuid.bytes[0] = char(device + 1);
    out->major = 9;
    out->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
    out->sharedMemPerBlock = attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    out->sharedMemPerBlockOptin = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    out->sharedMemPerMultiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    out->warpSize = 32;
    out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
    out->maxThreadsDim[2] = 64;
    out->maxThreadsPerMultiProcessor = 2048;
    out->maxBlocksPerMultiProcessor = 32;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->maxGridSize[0] = 2147483647;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    out->memoryBusWidth = 6144;
    out->textureAlignment = 512;
    out->unifiedAddressing = 1;
    return cudaSuccess;
}

API cudaError_t cudaGetDeviceCount(int* out) { return *out = count_of_cards(), cudaSuccess; }
API cudaError_t cudaGetDevice(int* out) { return *out = current, cudaSuccess; }
API cudaError_t cudaSetDevice(int device) {
    return device < count_of_cards() ? (current = device, cudaSuccess) : cudaErrorInvalidDevice;
}
API cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr which, int) {
    return *out = attribute(which), cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* out) { return *out = 13000, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* out) { return *out = 13000, cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char* out, int size, int device) {
    return snprintf(out, size, "0000:%02x:00.0", device + 1), cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* out, int, int) { return *out = 0, cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}
API const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the null card";
}
API const char* cudaGetErrorName(cudaError_t) { return "an error of the null card"; }
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void*) {
    *out = {};
    out->maxThreadsPerBlock = 1024;
    out->numRegs = 64;
    out->binaryVersion = out->ptxVersion = 90;
    return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* out, const void*, int, size_t) {
    return *out = 2, cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, const void*, int, size_t, unsigned) {
    return *out = 2, cudaSuccess;
}
API cudaError_t cudaGetSymbolAddress(void** out, const void*) {
    static char symbols[4096];
    return *out = symbols, cudaSuccess;
}

// Streams and events have an address and nothing else.
#define MAKES(type, name, ...) \
    API cudaError_t name(type* out, ##__VA_ARGS__) { return *out = type(malloc(8)), cudaSuccess; }
MAKES(cudaEvent_t, cudaEventCreate)
MAKES(cudaEvent_t, cudaEventCreateWithFlags, unsigned)
MAKES(cudaStream_t, cudaStreamCreate)
MAKES(cudaStream_t, cudaStreamCreateWithFlags, unsigned)
MAKES(cudaStream_t, cudaStreamCreateWithPriority, unsigned, int)
API cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t, cudaEvent_t) { return *out = 0.01f, cudaSuccess; }
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* out) { return *out = 0, cudaSuccess; }

// CUDA graphs: what is launched while a stream is captured is logged then, and a replay is one launch.
static cudaStream_t captured = nullptr;  // one at a time
static cudaStreamCaptureStatus capture(cudaStream_t stream) {
    return captured == stream && stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    return captured = stream, cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* out) {
    return captured = nullptr, *out = cudaGraph_t(malloc(8)), cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* out) {
    return *out = capture(stream), cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus* out, unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
    const cudaGraphEdgeData**, size_t*) {
    if (id) *id = 1;
    return *out = capture(stream), cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { return *count = 1, cudaSuccess; }
MAKES(cudaGraphExec_t, cudaGraphInstantiateWithFlags, cudaGraph_t, unsigned long long)
API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return say("kernel graph 1,1,1"), cudaSuccess; }

// The driver.
static int missing() { return CUDA_ERROR_NOT_SUPPORTED; }

API cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** out, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    void* found = dlsym(RTLD_DEFAULT, name);
    *out = found ? found : reinterpret_cast<void*>(missing);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

API CUresult cuDeviceGet(CUdevice* out, int device) { return *out = device, CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* out) { return *out = count_of_cards(), CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* out) { return *out = 13000, CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute which, CUdevice) {
    return *out = attribute(which), CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult, const char** out) { return *out = "an error of the null card", CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult error, const char** out) { return cuGetErrorString(error, out); }
API CUresult cuCtxGetCurrent(CUcontext* out) { return *out = CUcontext(1), CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice) { return *out = CUcontext(1), CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    if (flags) *flags = 0;
    return *active = 1, CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* out) { return *out = current, CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t* out, CUlimit) { return *out = 1 << 20, CUDA_SUCCESS; }
API CUresult cuModuleLoadData(CUmodule* out, const void*) {
    say("module");  // compiled code that was not there before
    return *out = CUmodule(malloc(8)), CUDA_SUCCESS;
}
API CUresult cuModuleLoad(CUmodule* out, const char*) { return cuModuleLoadData(out, nullptr); }
API CUresult cuModuleLoadDataEx(CUmodule* out, const void*, unsigned, CUjit_option*, void**) {
    return cuModuleLoadData(out, nullptr);
}
API CUresult cuFuncGetAttribute(int* out, CUfunction_attribute which, CUfunction) {
    *out = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
    return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int* out, CUfunction, const CUlaunchConfig*) {
    return *out = 1, CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, CUfunction, int, size_t) {
    return *out = 2, CUDA_SUCCESS;
}

// Matrix products: m, n, k and how many of them.
static cublasStatus_t product(long m, long n, long k, long batch = 1) {
    Lock lock(mutex);
    just_written.clear();
    say("gemm m%ld n%ld k%ld b%ld", m, n, k, batch);
    return CUBLAS_STATUS_SUCCESS;
}

API cublasStatus_t cublasCreate_v2(cublasHandle_t* out) {
    return *out = cublasHandle_t(malloc(8)), CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* out) {
    return *out = CUBLAS_DEFAULT_MATH, CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* out) {
    return *out = CUBLAS_POINTER_MODE_HOST, CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasGemmEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*, const void*, cudaDataType,
    int, const void*, cudaDataType, int, const void*, void*, cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return product(m, n, k);
}
API cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*, const void*, cudaDataType,
    int, long long, const void*, cudaDataType, int, long long, const void*, void*, cudaDataType, int, long long,
    int batch, cublasComputeType_t, cublasGemmAlgo_t) {
    return product(m, n, k, batch);
}
API cublasStatus_t cublasSgemm_v2(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*, const float*, int,
    const float*, int, const float*, float*, int) {
    return product(m, n, k);
}
API cublasStatus_t cublasSgemmStridedBatched(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*, const float*, int,
    long long, const float*, int, long long, const float*, float*, int, long long, int batch) {
    return product(m, n, k, batch);
}

struct Layout {  // of a matrix that cuBLASLt is given
    unsigned long long rows, columns;
    int batch;
};

API cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t* out, cudaDataType, uint64_t rows, uint64_t columns, int64_t) {
    *out = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{rows, columns, 1});
    return CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return delete reinterpret_cast<Layout*>(layout), CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatrixLayoutSetAttribute(
    cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t which, const void* value, size_t) {
    if (which == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
        reinterpret_cast<Layout*>(layout)->batch = *static_cast<const int*>(value);
    return CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* out, cublasComputeType_t, cudaDataType_t) {
    return *out = cublasLtMatmulDesc_t(calloc(1, sizeof(int))), CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t made) { return free(made), CUBLAS_STATUS_SUCCESS; }
API cublasStatus_t cublasLtMatmulDescSetAttribute(
    cublasLtMatmulDesc_t made, cublasLtMatmulDescAttributes_t which, const void* value, size_t) {
    if (which == CUBLASLT_MATMUL_DESC_TRANSA) *reinterpret_cast<int*>(made) = *static_cast<const int*>(value);
    return CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* out) {
    return *out = cublasLtMatmulPreference_t(malloc(8)), CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t made) {
    return free(made), CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t* out, int* found) {
    *out = {};
    out->state = CUBLAS_STATUS_SUCCESS;
    return *found = 1, CUBLAS_STATUS_SUCCESS;
}
API cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t, cublasLtMatmulDesc_t made, const void*, const void*, cublasLtMatrixLayout_t a, const void*,
    cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t d,
    const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
    auto left = reinterpret_cast<Layout*>(a), out = reinterpret_cast<Layout*>(d);
    bool turned = *reinterpret_cast<int*>(made);
    return product(out->rows, out->columns, turned ? left->rows : left->columns, out->batch);
}

// NCCL: the processes meet in torch's own store; what they would exchange is written down. Each gets its own values
// back, as if the others had the same: DistributedDataParallel compares the models of all before it starts.
static ncclResult_t exchange(const char* what, size_t count) { return say("nccl %s %zu", what, count), ncclSuccess; }

API ncclResult_t ncclGetUniqueId(ncclUniqueId* out) { return *out = {}, ncclSuccess; }
API ncclResult_t ncclCommInitRank(ncclComm_t* out, int size, ncclUniqueId, int) {
    return *out = reinterpret_cast<ncclComm_t>(new int(size)), ncclSuccess;
}
API ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
    return ncclCommInitRank(out, size, id, rank);
}
API ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* out) { return *out = ncclSuccess, ncclSuccess; }
API ncclResult_t ncclAllReduce(
    const void*, void*, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) {
    return exchange("all_reduce", count);
}
API ncclResult_t ncclBroadcast(const void*, void*, size_t count, ncclDataType_t, int, ncclComm_t, cudaStream_t) {
    return exchange("broadcast", count);
}
API ncclResult_t ncclAllGather(
    const void* from, void* to, size_t count, ncclDataType_t, ncclComm_t communicator, cudaStream_t) {
    Lock lock(mutex);
    if (just_written.count(from)) {
        std::string own = just_written[from];
        for (int rank = 0; rank < *reinterpret_cast<int*>(communicator); rank++)
            just_written[static_cast<char*>(to) + rank * own.size()] = own;
    }
    return exchange("all_gather", count);
}
