/* NVML: a library that answers as nvml.h (12.9) says the driver's does, on a box that is described in a file.

   FAKE_NVML names the file. A line is a key and a value:

       init CODE                what nvmlInit_v2 returns, if not 0
       driver TEXT
       gpu UUID                 a GPU begins; what follows is its own. Index: the order in the file
       name TEXT
       memory TOTAL USED        bytes
       in_use PATH              USED is what this file holds now
       pci DOMAIN BUS DEVICE    hexadecimal
       mig enabled|disabled     without: it has no MIG mode
       part UUID INDEX GI CI    a MIG device of it begins
       fails FUNCTION CODE      what a function returns for it
       level I J LEVEL          between the GPUs I and J: NVML_TOPOLOGY_...
       nvlink I J

   The declarations are NVIDIA's; the test that compares structures reads their sizes from here. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
enum {
    SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, ALREADY_INITIALIZED, NOT_FOUND, INSUFFICIENT_SIZE,
};

typedef struct device {
    char uuid[128], name[128], in_use[512];
    unsigned long long total, used;
    unsigned domain, bus, slot;
    int mig; /* 0: there is no such mode, 1: disabled, 2: enabled */
    struct device *whole; /* of which this is a MIG device */
    unsigned index, gpu_instance, compute_instance;
    struct { char function[64]; int code; } fails[8];
    int failing;
} *nvmlDevice_t;

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

const int sizeof_nvmlMemory_t = sizeof(nvmlMemory_t), sizeof_nvmlPciInfo_t = sizeof(nvmlPciInfo_t);

enum { MOST = 16, MOST_PARTS = 7 };

static int initialized, init_code;
static char driver[128];
static struct device gpus[MOST], parts[64];
static unsigned number, number_of_parts;
static int levels[MOST][MOST], nvlinks[MOST][MOST];

static void describe(void)
{
    char line[512], key[64], function[64], mode[16], uuid[128];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    struct device *now = NULL;
    unsigned i, j, k;
    int code;
    if (file == NULL)
        abort();
    memset(levels, 0xff, sizeof levels);
    while (fgets(line, sizeof line, file)) {
        int at = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%63s %n", key, &at) < 1)
            continue;
        const char *value = line + at;
        if (!strcmp(key, "init"))
            init_code = atoi(value);
        else if (!strcmp(key, "driver"))
            strcpy(driver, value);
        else if (!strcmp(key, "gpu")) {
            now = &gpus[number];
            now->index = number++;
            strcpy(now->uuid, value);
        } else if (!strcmp(key, "part") && sscanf(value, "%127s %u %u %u", uuid, &i, &j, &k) == 4) {
            parts[number_of_parts].whole = now->whole ? now->whole : now;
            now = &parts[number_of_parts++];
            strcpy(now->uuid, uuid);
            now->index = i, now->gpu_instance = j, now->compute_instance = k;
        } else if (!strcmp(key, "name"))
            strcpy(now->name, value);
        else if (!strcmp(key, "memory") && sscanf(value, "%llu %llu", &now->total, &now->used) == 2)
            ;
        else if (!strcmp(key, "in_use"))
            strcpy(now->in_use, value);
        else if (!strcmp(key, "pci") && sscanf(value, "%x %x %x", &now->domain, &now->bus, &now->slot) == 3)
            ;
        else if (!strcmp(key, "mig") && sscanf(value, "%15s", mode) == 1)
            now->mig = strcmp(mode, "enabled") ? 1 : 2;
        else if (!strcmp(key, "fails") && sscanf(value, "%63s %d", function, &code) == 2) {
            strcpy(now->fails[now->failing].function, function);
            now->fails[now->failing++].code = code;
        } else if (!strcmp(key, "level") && sscanf(value, "%u %u %d", &i, &j, &code) == 3)
            levels[i][j] = levels[j][i] = code;
        else if (!strcmp(key, "nvlink") && sscanf(value, "%u %u", &i, &j) == 2)
            nvlinks[i][j] = nvlinks[j][i] = 1;
        else
            abort();
    }
    fclose(file);
}

/* A handle is one of ours, or it is invalid. */
static int known(nvmlDevice_t device)
{
    for (unsigned i = 0; i < number; i++)
        if (device == &gpus[i])
            return 1;
    for (unsigned i = 0; i < number_of_parts; i++)
        if (device == &parts[i])
            return 1;
    return 0;
}

static int failure(nvmlDevice_t device, const char *function)
{
    for (int i = 0; i < device->failing; i++)
        if (!strcmp(device->fails[i].function, function))
            return device->fails[i].code;
    return SUCCESS;
}

#define INITIALIZED()                                                                                                  \
    if (!initialized)                                                                                                  \
    return UNINITIALIZED

#define ASKED(device, argument)                                                                                        \
    do {                                                                                                               \
        INITIALIZED();                                                                                                 \
        if (!known(device) || (argument) == NULL)                                                                      \
            return INVALID_ARGUMENT;                                                                                   \
        if (failure(device, __func__))                                                                                 \
            return failure(device, __func__);                                                                          \
    } while (0)

static nvmlReturn_t copied(const char *text, char *buffer, unsigned length)
{
    if (length < strlen(text) + 1)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
    static const char *const TEXTS[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions", "Already Initialized",
        "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
    };
    if (code == 15)
        return "GPU is lost";
    return code >= 0 && code < (int)(sizeof TEXTS / sizeof *TEXTS) ? TEXTS[code] : "Unknown Error";
}

nvmlReturn_t nvmlInit_v2(void)
{
    if (!initialized)
        describe();
    if (init_code == SUCCESS)
        initialized++;
    return init_code;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    INITIALIZED();
    return version == NULL ? INVALID_ARGUMENT : copied(driver, version, length);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    INITIALIZED();
    if (count == NULL)
        return INVALID_ARGUMENT;
    *count = number;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    INITIALIZED();
    if (index >= number)
        return INVALID_ARGUMENT;
    ASKED(&gpus[index], device);
    *device = &gpus[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    INITIALIZED();
    if (uuid == NULL || device == NULL)
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < MOST + number_of_parts; i++) {
        nvmlDevice_t one = i < MOST ? &gpus[i] : &parts[i - MOST];
        if (one->uuid[0] && !strcmp(one->uuid, uuid)) {
            ASKED(one, device);
            *device = one;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    ASKED(device, uuid);
    return copied(device->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    ASKED(device, name);
    return copied(device->name, name, length);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    FILE *file;
    ASKED(device, memory);
    if (device->in_use[0]) {
        file = fopen(device->in_use, "r");
        if (file == NULL || fscanf(file, "%llu", &device->used) != 1)
            abort();
        fclose(file);
    }
    *memory = (nvmlMemory_t){device->total, device->total - device->used, device->used};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    ASKED(device, pci);
    memset(pci, 0xee, sizeof *pci);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", device->domain & 0xffff, device->bus & 0xff,
             device->slot & 0x1f);
    pci->domain = device->domain, pci->bus = device->bus, pci->device = device->slot;
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", device->domain, device->bus, device->slot);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    ASKED(device, current);
    if (pending == NULL)
        return INVALID_ARGUMENT;
    if (device->mig == 0)
        return NOT_SUPPORTED;
    *current = *pending = device->mig == 2;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    ASKED(device, count);
    *count = device->mig == 2 ? MOST_PARTS : 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *part)
{
    ASKED(device, part);
    if (device->mig == 0)
        return NOT_SUPPORTED;
    if (index >= MOST_PARTS)
        return INVALID_ARGUMENT;
    for (unsigned i = 0; i < number_of_parts; i++)
        if (parts[i].whole == device && parts[i].index == index) {
            ASKED(&parts[i], part);
            *part = &parts[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    ASKED(device, id);
    if (device->whole == NULL)
        return NOT_SUPPORTED;
    *id = device->gpu_instance;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    ASKED(device, id);
    if (device->whole == NULL)
        return NOT_SUPPORTED;
    *id = device->compute_instance;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device1, nvmlDevice_t device2, int *level)
{
    ASKED(device1, level);
    ASKED(device2, level);
    if (device1->whole != NULL || device2->whole != NULL)
        return INVALID_ARGUMENT;
    if (levels[device1->index][device2->index] < 0)
        return NOT_SUPPORTED;
    *level = levels[device1->index][device2->index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device1, nvmlDevice_t device2, int capability, int *status)
{
    ASKED(device1, status);
    ASKED(device2, status);
    *status = capability == 2 && nvlinks[device1->index][device2->index] ? 0 : 5; /* NVML_P2P_STATUS_NOT_SUPPORTED */
    return SUCCESS;
}
