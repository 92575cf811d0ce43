/* dmabuf_shim: LD_PRELOAD stand-in for the kernel's dma-buf providers, for tests on machines that have none.
 *
 * libcamera's virtual pipeline wants /dev/udmabuf and picamera2 opens /dev/dma_heap/linux,cma. A dma-buf that only
 * the CPU touches is plain shared memory, so memfds are handed out instead. Nothing of libcamera or picamera2 is
 * changed. Where the devices exist (a stock Debian kernel) it is not loaded. Never on a real board.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int is_provider(const char *path)
{
    return path && (!strcmp(path, "/dev/udmabuf") || !strcmp(path, "/dev/dma_heap/linux,cma"));
}

#define OPEN_BODY(name)                                                        \
    va_list list;                                                              \
    va_start(list, flags);                                                     \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0;  \
    va_end(list);                                                              \
    static int (*real)(const char *, int, ...);                                \
    if (!real)                                                                 \
        real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);        \
    int fd = real(path, flags, mode);                                          \
    if (fd < 0 && errno == ENOENT && is_provider(path))                        \
        fd = real("/dev/null", flags, mode);                                   \
    return fd;

int open(const char *path, int flags, ...) { OPEN_BODY("open") }
int open64(const char *path, int flags, ...) { OPEN_BODY("open64") }

int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    static int (*real)(int, unsigned long, ...);
    if (!real)
        real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    int result = real(fd, request, argument);
    if (result == 0 || errno != ENOTTY)
        return result;
    switch ((unsigned int)request) {
    case UDMABUF_CREATE: /* keeps the caller's memfd alive */
        return fcntl((int)((struct udmabuf_create *)argument)->memfd, F_DUPFD_CLOEXEC, 3);
    case DMA_HEAP_IOCTL_ALLOC: {
        struct dma_heap_allocation_data *wanted = argument;
        int memory = memfd_create("dma-heap-shim", MFD_CLOEXEC);
        if (memory < 0 || ftruncate(memory, (off_t)wanted->len))
            return -1;
        wanted->fd = (unsigned)memory;
        return 0;
    }
    case DMA_BUF_IOCTL_SYNC: /* nothing to flush in plain memory */
    case (unsigned int)DMA_BUF_SET_NAME_A:
    case (unsigned int)DMA_BUF_SET_NAME_B:
        return 0;
    }
    errno = ENOTTY;
    return -1;
}
