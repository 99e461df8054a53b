/* NVIDIA's driver and management libraries as a machine with one card has them, in what this program asks of them.
 * Compiled by tests/fake_nvidia.py with INIT, CUDA, COUNT and VERSION. */
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

struct memory { unsigned long long total, free, used; };
int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return strncpy(text, VERSION, size), 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **device) {
    return *device = (void *)1, strcmp(place, "0000:00:00.0") == 0 ? 0 : 6; /* NVML_ERROR_NOT_FOUND */
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) { return memory->free = 6ull << 30, device == NULL; }
