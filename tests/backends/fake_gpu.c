/* Plays NVIDIA's driver and CUDA's libraries on a machine without a GPU: FAKE_GPU_COUNT GPUs, or one, whose memory is
   that of the host, and whose kernels compute nothing. Each has FAKE_GPU_BYTES, of which each process takes 300 MB for
   its context; with FAKE_GPU_HIDES_PROCESSES, NVML does not tell what a process takes. Processes share the GPUs by the
   file FAKE_GPU_STATE. A process uses the first one of CUDA_VISIBLE_DEVICES, an index or a UUID that ends in one. The
   test adds the functions that do nothing. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long long u64;

enum { OUT_OF_MEMORY = 2, INSUFFICIENT_SIZE = 7, ALIGNMENT = 256, MOST = 64 };

struct owner { int pid, gpu; u64 used; };

static const u64 context = 300000000;
static struct owner *owners;
static u64 host;

static u64 total(void) {
    const char *bytes = getenv("FAKE_GPU_BYTES");
    return bytes ? strtoull(bytes, 0, 10) : 8000000000ull;
}

static void share(void) {
    if (owners) return;
    const char *state = getenv("FAKE_GPU_STATE");
    int file = state ? open(state, O_RDWR | O_CREAT, 0600) : -1;
    size_t size = MOST * sizeof(struct owner);
    if (file >= 0 && ftruncate(file, size)) abort();
    owners = mmap(0, size, PROT_READ | PROT_WRITE, file < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, file, 0);
}

static int is_alive(struct owner *one) { return one->pid && !kill(one->pid, 0); }

static int index_of(const char *name) { /* of the first word */
    return name && *name ? name[strcspn(name, ",") - 1] - '0' : 0;
}

static int mine(void) { return index_of(getenv("CUDA_VISIBLE_DEVICES")); }

static u64 used(int gpu) {
    u64 sum = 0;
    share();
    for (int i = 0; i < MOST; i++) sum += is_alive(owners + i) && owners[i].gpu == gpu ? owners[i].used : 0;
    return sum;
}

static u64 *own(void) { /* creates the context */
    share();
    for (int i = 0; i < MOST; i++)
        if (owners[i].pid == getpid()) return &owners[i].used;
    for (int i = 0; i < MOST; i++) {
        int before = owners[i].pid;
        if (!is_alive(owners + i) && __sync_bool_compare_and_swap(&owners[i].pid, before, getpid())) {
            owners[i].gpu = mine();
            owners[i].used = context;
            return &owners[i].used;
        }
    }
    abort();
}

static int allocate(void **at, u64 size, u64 *counter) {
    char *block;
    if (posix_memalign((void **)&block, ALIGNMENT, size + ALIGNMENT)) return OUT_OF_MEMORY;
    *(u64 *)block = size;
    *at = block + ALIGNMENT;
    __atomic_add_fetch(counter, size, __ATOMIC_SEQ_CST);
    return 0;
}

static int release(void *at, u64 *counter) {
    if (!at) return 0;
    char *block = (char *)at - ALIGNMENT;
    __atomic_sub_fetch(counter, *(u64 *)block, __ATOMIC_SEQ_CST);
    free(block);
    return 0;
}

u64 fake_gpu_host_bytes(void) { return host; }

int cudaMalloc(void **at, size_t size) {
    u64 *counter = own();
    return used(mine()) + size > total() ? OUT_OF_MEMORY : allocate(at, size, counter);
}

int cudaFree(void *at) { return release(at, own()); }

int cudaHostAlloc(void **at, size_t size, unsigned flags) { return allocate(at, size, &host); }

int cudaFreeHost(void *at) { return release(at, &host); }

int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return memmove(to, from, size), 0; }

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return cudaMemcpy(to, from, size, kind);
}

int cudaMemGetInfo(size_t *left, size_t *all) { return *all = total(), *left = total() - used(mine()), 0; }

int cudaGetDeviceCount(int *count) { return *count = 1, 0; }

int cudaGetDevice(int *device) { return *device = 0, 0; }

const char *cudaGetErrorString(int error) { return error == OUT_OF_MEMORY ? "out of memory" : "no error"; }

const char *cudaGetErrorName(int error) { return "cudaError"; }

int cudnnCreate(void **handle) { return *handle = &host, 0; }

int cudnnSetStream(void *handle, void *stream) { return 0; }

int cudnnDestroy(void *handle) { return 0; }

size_t cudnnGetVersion(void) { return 91000; }

const char *cudnnGetErrorString(int error) { return "no error"; }

struct memory { u64 total, left, used; };

struct process { unsigned pid; u64 used; unsigned gpu, compute; };

int nvmlInitWithFlags(unsigned flags) { return 0; }

int nvmlShutdown(void) { return 0; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    const char *told = getenv("FAKE_GPU_COUNT");
    return *count = told ? atoi(told) : 1, 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { return *device = (void *)(long)index, 0; }

int nvmlDeviceGetHandleByUUID(const char *name, void **device) {
    return nvmlDeviceGetHandleByIndex_v2(index_of(name), device);
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *told) {
    return *told = (struct memory){total(), total() - used((long)device), used((long)device)}, 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *told) {
    *count = 0;
    share();
    for (int i = 0; i < MOST && !getenv("FAKE_GPU_HIDES_PROCESSES"); i++) {
        if (!is_alive(owners + i) || owners[i].gpu != (long)device) continue;
        if (told) told[*count] = (struct process){owners[i].pid, owners[i].used};
        *count += 1;
    }
    return *count && !told ? INSUFFICIENT_SIZE : 0;
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) { return strcpy(name, "Fake GPU"), 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) { return strcpy(version, "580.1"), 0; }

const char *nvmlErrorString(int error) { return "error"; }
