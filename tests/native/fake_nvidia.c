/* NVIDIA's driver and management libraries of a simulated machine, as far as this program calls them.
 * Compiled by tests/support/fake_nvidia.py with INIT, CUDA, COUNT, MEMORY and VERSION. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

int cuInit(unsigned flags) { return INIT + 0 * (int)flags; }
int cuDriverGetVersion(int *version) { return *version = CUDA, 0; }
int cuDeviceGetCount(int *count) { return *count = COUNT, 0; }
int cuDeviceGet(int *device, int index) { return *device = index, 0; }
int cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "Fake GPU %d", device), 0; }
int cuDeviceGetPCIBusId(char *place, int size, int device) { return snprintf(place, size, "0000:%02d:00.0", device), 0; }
int cuDeviceTotalMem_v2(size_t *total, int device) { return *total = (size_t)(device + 1) << 33, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = attribute == 75 ? 8 : 9, 0 * device; }
int cuGetErrorString(int status, const char **text) { return *text = status == 803 ? "driver mismatch" : NULL, 0; }

/* copying: a card that moves 100 GB per second */
static float copied_ms, events_ms[2];
static int n_events;
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuCtxPushCurrent_v2(void *context) { return context != (void *)1; }
int cuCtxPopCurrent_v2(void **context) { return *context = NULL, 0; }
int cuMemAlloc_v2(unsigned long long *block, size_t size) { return *block = size, MEMORY < 2 * size ? 2 : 0; }
int cuMemFree_v2(unsigned long long block) { return block == 0; }
int cuMemcpyDtoDAsync_v2(unsigned long long target, unsigned long long source, size_t size, void *stream) {
    return copied_ms += 2 * size / 100e6f, target == 0 || source == 0 || stream != NULL;
}
int cuEventCreate(void **event, unsigned flags) { return *event = &events_ms[n_events++ & 1], (int)flags; }
int cuEventRecord(float *event, void *stream) { return *event = copied_ms, stream != NULL; }
int cuEventSynchronize(void *event) { return event == NULL; }
int cuEventElapsedTime(float *ms, float *start, float *end) { return *ms = *end - *start, 0; }
int cuEventDestroy_v2(void *event) { return event == NULL; }

struct memory { unsigned long long total, free, used; };
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return strncpy(text, VERSION, size), 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **device) {
    return *device = (void *)1, strcmp(place, "0000:00:00.0") == 0 ? 0 : 6; /* NVML_ERROR_NOT_FOUND */
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) { return memory->free = 6ull << 30, device == NULL; }
