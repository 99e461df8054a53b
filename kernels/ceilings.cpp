#include "ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#ifdef __linux__
#include <unistd.h>
#endif

#include "threads.h"

namespace bmx {
namespace {

constexpr size_t kArrayBytes = size_t(256) << 20;  // more than the caches of most machines hold
constexpr size_t kMostBytes = size_t(1) << 30;
constexpr size_t kLine = 64;
constexpr size_t kAheadBytes = 4096;  // the processor's own prefetcher stops at the end of every page
constexpr int64_t kRounds = 200'000;  // a few milliseconds of products

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Work per second: in the best pass, and over all passes.
struct Rates {
    double best = 0, lasting = 0;
};

// Passes that a team does together until the time is up; `Pass` does one member's part of a pass and returns its work.
template <class Pass>
struct Passes {
    const Pass & pass;
    const double end;
    std::atomic<int64_t> work{0};
    Rates rates{};
    double total = 0, total_s = 0;
    bool over = false;

    static void run(void * data, Team & team, int index) {
        Passes & all = *static_cast<Passes *>(data);
        while (true) {
            team.barrier();
            if (all.over) return;
            const double start = now();
            all.work += all.pass(index, team.size());
            team.barrier();
            if (index == 0) {
                const double stop = now();
                all.rates.best = std::max(all.rates.best, double(all.work) / (stop - start));
                all.total += double(all.work);
                all.total_s += stop - start;
                all.rates.lasting = all.total / all.total_s;
                all.work = 0;
                all.over = stop > all.end;
            }
        }
    }
};

template <class Pass>
Rates rates_of(int n_threads, double seconds, const Pass & pass) {
    Passes<Pass> all{pass, now() + seconds};
    run_team(n_threads, Passes<Pass>::run, &all);
    return all.rates;
}

// An array more than twice as large as any cache: there are servers with 480 MB of third-level cache.
size_t array_bytes() {
    size_t n = kArrayBytes;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    while (cache > 0 && n < 2 * size_t(cache) && n < kMostBytes) n *= 2;
#endif
    return n;
}

struct Part {
    uint64_t * first, * last;
};

// whole lines, about the same number for each thread
Part part_of(uint64_t * array, size_t n_bytes, int index, int n) {
    const size_t n_lines = n_bytes / kLine, words = kLine / sizeof(uint64_t);
    return {array + n_lines * index / n * words, array + n_lines * (index + 1) / n * words};
}

}  // namespace

double read_bandwidth(int n_threads, double seconds) {
    const size_t n_bytes = array_bytes();
    // aligned by hand: not every C library has aligned_alloc
    const std::unique_ptr<void, void (*)(void *)> memory(malloc(n_bytes + kLine), free);
    if (!memory) return 0;
    uint64_t * array = reinterpret_cast<uint64_t *>((reinterpret_cast<uintptr_t>(memory.get()) + kLine - 1) / kLine * kLine);
    // each page is written by the thread that will read it, so that no page maps to the system's shared page of zeros
    rates_of(n_threads, 0, [&](int index, int n) {
        const Part part = part_of(array, n_bytes, index, n);
        for (uint64_t * p = part.first; p < part.last; p++) *p = reinterpret_cast<uintptr_t>(p);
        return 1;
    });
    std::atomic<uint64_t> total{0};  // used, so that the compiler keeps the reads
    const Rates rates = rates_of(n_threads, seconds, [&](int index, int n) {
        const Part part = part_of(array, n_bytes, index, n);
        uint64_t sums[8] = {};
        // compilers turn this loop into vectors, which are wide enough to saturate memory
        for (const uint64_t * p = part.first; p < part.last; p += 8) {
            BMX_PREFETCH(reinterpret_cast<const char *>(p) + kAheadBytes);
            for (int i = 0; i < 8; i++) sums[i] += p[i];
        }
        for (const uint64_t sum : sums) total += sum;
        return int64_t((part.last - part.first) * sizeof(uint64_t));
    });
    static volatile uint64_t kept;
    kept = total;
    (void)kept;
    // the sustained rate, as in reading a model, not the best pass while a virtual machine's neighbours are idle
    return rates.lasting;
}

double int8_ops(const Table & table, int n_threads, double seconds) {
    std::atomic<int32_t> total{0};
    const Rates rates = rates_of(n_threads, seconds, [&](int, int) {
        int32_t sum = 0;
        const int64_t done = table.multiply_bytes(kRounds, &sum);
        total += sum;
        return done;
    });
    static volatile int32_t kept;
    kept = total;
    (void)kept;
    return rates.best;
}

}  // namespace bmx
