/* Opens the driver by name, adds a number to four others on the device, prints them. It declares what it uses of
 * cuda.h itself, for there may be no CUDA toolkit. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;

typedef struct {
    CUfunction func;
    unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void **kernelParams;
    void **extra;
    void *kern;
    CUcontext ctx;
} CUDA_KERNEL_NODE_PARAMS_v2;

static void *driver;

static void check(CUresult result, const char *what) {
    if (result != 0) {
        fprintf(stderr, "%s: error %d\n", what, result);
        exit(1);
    }
}

static void *symbol(const char *name) {
    void *found = dlsym(driver, name);
    if (found == NULL) {
        fprintf(stderr, "the driver has no %s\n", name);
        exit(1);
    }
    return found;
}

/* Calls a function of the driver by its name, with the types of its parameters. */
#define CALL(name, types, arguments) \
    do { \
        CUresult (*called) types; \
        *(void **)&called = symbol(#name); \
        check(called arguments, #name); \
    } while (0)

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 16);
    if (file == NULL || text == NULL || fread(text, 1, (1 << 16) - 1, file) == 0) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(1);
    }
    fclose(file);
    return text;
}

int main(int count, char **arguments) {
    driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (count != 2 || driver == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    int version;
    CUdevice device;
    char name[64];
    CUcontext context;
    CUstream stream;
    CUmodule module;
    CUfunction function = NULL;
    CUdeviceptr input, output;
    unsigned int *host, amount = 1000;
    CALL(cuInit, (unsigned int), (0));
    CALL(cuDriverGetVersion, (int *), (&version));
    CALL(cuDeviceGet, (CUdevice *, int), (&device, 0));
    CALL(cuDeviceGetName, (char *, int, CUdevice), (name, sizeof name, device));
    CALL(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice), (&context, device));
    CALL(cuCtxSetCurrent, (CUcontext), (context));
    CALL(cuStreamCreate, (CUstream *, unsigned int), (&stream, 0));

    char log[1024] = "";
    int options[] = {5, 6}; /* CU_JIT_ERROR_LOG_BUFFER and its size */
    void *values[] = {log, (void *)sizeof log};
    CALL(cuModuleLoadDataEx, (CUmodule *, const void *, unsigned int, int *, void **),
         (&module, read_file(arguments[1]), 2, options, values));
    CALL(cuModuleGetFunction, (CUfunction *, CUmodule, const char *), (&function, module, "add"));

    CALL(cuMemHostAlloc, (void **, size_t, unsigned int), ((void **)&host, 16, 0));
    CALL(cuMemAlloc_v2, (CUdeviceptr *, size_t), (&input, 16));
    CALL(cuMemAlloc_v2, (CUdeviceptr *, size_t), (&output, 16));
    for (unsigned int index = 0; index < 4; index++) host[index] = index + 1;
    CALL(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream), (input, host, 16, stream));

    CUgraph graph;
    CUgraphNode node;
    CUgraphExec executable;
    void *parameters[] = {&input, &output, &amount};
    CUDA_KERNEL_NODE_PARAMS_v2 kernel = {function, 1, 1, 1, 4, 1, 1, 0, parameters, NULL, NULL, NULL};
    CALL(cuGraphCreate, (CUgraph *, unsigned int), (&graph, 0));
    CALL(cuGraphAddKernelNode_v2,
         (CUgraphNode *, CUgraph, const CUgraphNode *, size_t, const CUDA_KERNEL_NODE_PARAMS_v2 *),
         (&node, graph, NULL, 0, &kernel));
    CALL(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long), (&executable, graph, 0));
    CALL(cuGraphLaunch, (CUgraphExec, CUstream), (executable, stream));
    CALL(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream), (host, output, 16, stream));
    CALL(cuStreamSynchronize, (CUstream), (stream));
    printf("%s: %d, %u %u %u %u\n", name, version, host[0], host[1], host[2], host[3]);
    return 0;
}
