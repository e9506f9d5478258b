// The wall clock as a process is to see it: loaded before all other libraries (LD_PRELOAD), this one adds
// a shift that another process can change at any moment. Monotonic clocks and the times of files stay true,
// as they do where a clock is set. Used by tests/torture/faults.py.
//
// GLASS_CLOCK names a file of shifts in nanoseconds, an int64 for each rank.

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t second = 1000000000;
static const volatile int64_t *shift;  // of this rank; none before the file is open

__attribute__((constructor)) static void open_shifts() {
    const char *path = getenv("GLASS_CLOCK");
    const char *rank = getenv("PMI_RANK") ? getenv("PMI_RANK") : getenv("OMPI_COMM_WORLD_RANK");
    const int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) return;
    const long slot = rank ? atol(rank) : 0;
    void *shifts = mmap(nullptr, status.st_size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (shifts != MAP_FAILED && (slot + 1) * 8 <= status.st_size)
        shift = static_cast<const volatile int64_t *>(shifts) + slot;
}

extern "C" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {
    using Function = int (*)(clockid_t, struct timespec *);
    static const Function true_time = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "clock_gettime"));
    const int failed = true_time(clock, now);
    if (failed || !shift || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
    const int64_t shifted = now->tv_sec * second + now->tv_nsec + *shift;
    now->tv_sec = shifted / second;
    now->tv_nsec = shifted % second;
    return 0;
}

extern "C" int gettimeofday(struct timeval *now, void *) noexcept {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

extern "C" time_t time(time_t *now) noexcept {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
