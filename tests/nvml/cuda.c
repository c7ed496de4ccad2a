/* CUDA: of libcuda.so.1 what tells the order of GPUs. FAKE_CUDA has their UUIDs, without "GPU-", fastest first. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101 };

static char octets[16][16];
static int number = -1; /* not initialised */

int cuInit(unsigned int flags)
{
    const char *text = getenv("FAKE_CUDA");
    if (flags != 0)
        return INVALID_VALUE;
    if (text == NULL || getenv("CUDA_VISIBLE_DEVICES") != NULL)
        return NO_DEVICE;
    number = 0;
    for (int digits = 0; *text; text++) {
        unsigned half;
        char digit[2] = {*text, 0};
        if (*text == '-' || *text == ' ' || sscanf(digit, "%1x", &half) != 1)
            continue;
        octets[number][digits / 2] = (char)(octets[number][digits / 2] << 4 | half);
        if (++digits == 32)
            digits = 0, number++;
    }
    return SUCCESS;
}

int cuDeviceGetCount(int *count)
{
    if (number < 0)
        return NOT_INITIALIZED;
    *count = number;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal)
{
    if (number < 0)
        return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= number)
        return INVALID_DEVICE;
    *device = ordinal + 7; /* a handle, not the ordinal */
    return SUCCESS;
}

int cuDeviceGetUuid(char uuid[16], int device)
{
    if (number < 0)
        return NOT_INITIALIZED;
    if (device < 7 || device >= number + 7)
        return INVALID_DEVICE;
    memcpy(uuid, octets[device - 7], 16);
    return SUCCESS;
}
