// The image encoder's operators over odd shapes, in memory of exactly their size, for the sanitizers: first on one thread,
// then on three.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "../../kernels/processor.h"
#include "../../kernels/vision/operators.h"

using namespace bmx::vision;

namespace {

class Threads : public Workers {
public:
    explicit Threads(int n) : n_(n) {}
    void run(size_t n, Task task, void * data) override {
        std::atomic<size_t> next{0};
        const auto work = [&] {
            for (size_t i; (i = next++) < n;) task(data, i);
        };
        std::vector<std::thread> others;
        for (int i = 1; i < n_; i++) others.emplace_back(work);
        work();
        for (std::thread & other : others) other.join();
    }

private:
    int n_;
};

// Bytes up to the end of a page, with a protected page behind it: the sanitizers do not see the loads of tiles.
struct Guarded {
    explicit Guarded(size_t n) : size(n), whole_((n + kPage - 1) / kPage * kPage + kPage) {
        base_ = static_cast<char *>(mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(base_ + whole_ - kPage, kPage, PROT_NONE);
        data = reinterpret_cast<int8_t *>(base_ + whole_ - kPage - n);
    }
    ~Guarded() { munmap(base_, whole_); }
    Guarded(const Guarded &) = delete;
    Guarded & operator=(const Guarded &) = delete;

    size_t size;
    int8_t * data;

private:
    static constexpr size_t kPage = 16384;  // a multiple of the usual page sizes
    size_t whole_;
    char * base_;
};

struct Random {
    uint32_t state = 1;
    float unit() { return float((state = state * 1664525u + 1013904223u) >> 8) / float(1 << 24) - 0.5f; }
    std::vector<float> units(int64_t n) {
        std::vector<float> result(static_cast<size_t>(n));
        for (float & value : result) value = unit();
        return result;
    }
};

bool finite(const std::vector<float> & values) {
    for (const float value : values)
        if (!std::isfinite(value)) return false;
    return true;
}

bool layers(const Table & table, Workers & workers) {
    Random random;
    for (const int64_t n_in : {64, 192, 1088}) {
        for (const int64_t n_out : {64, 320, 576}) {
            Guarded weights(static_cast<size_t>(n_in * n_out));
            for (size_t i = 0; i < weights.size; i++) weights.data[i] = int8_t(random.unit() * 254);
            const std::vector<float> scales = random.units(n_out), bias = random.units(n_out);
            std::vector<int32_t> sums(static_cast<size_t>(n_out));
            table.column_sums(weights.data, n_in, n_out, sums.data());
            for (const int64_t n_tokens : {1, 5, 33, 161, 350}) {
                const std::vector<float> x = random.units(n_tokens * n_in), residual = random.units(n_tokens * n_out);
                std::vector<float> y(residual.size(), NAN);
                const Linear layer = {n_in, n_out, weights.data, scales.data(), bias.data(), sums.data(), n_tokens % 2 == 0};
                linear(table, layer, x.data(), n_tokens, n_tokens % 5 ? residual.data() : nullptr, y.data(), workers);
                if (!finite(y)) return false;
            }
        }
    }
    return true;
}

bool heads(const Table & table, Workers & workers) {
    Random random;
    for (const int64_t head_size : {32, 64, 96, 128}) {
        for (const int64_t n_tokens : {1, 3, 31, 33, 65, 130}) {
            const int64_t n_heads = 3;
            const std::vector<float> q = random.units(n_tokens * n_heads * head_size), k = q, v = q;
            std::vector<float> y(q.size(), NAN);
            attention(table, {q.data(), k.data(), v.data(), y.data(), n_tokens, n_heads, head_size}, workers);
            if (!finite(y)) return false;
        }
    }
    return true;
}

}  // namespace

int main() {
    const bmx::Features has = bmx::processor_features();
    const Table * const tables[] = {has.avx512vnni ? avx512vnni_table() : nullptr, has.avx512bf16 ? avx512bf16_table() : nullptr, has.amx && has.avx512bf16 ? amx_table() : nullptr};
    int n_run = 0;
    for (const Table * table : tables) {
        if (!table) continue;
        if (const char * fault = self_test(*table)) return printf("%s: %s\n", table->name, fault), 1;
        for (const int n_threads : {1, 3}) {
            Threads workers(n_threads);
            if (!layers(*table, workers)) return printf("%s: layers\n", table->name), 1;
            if (table->multiply_halves && !heads(*table, workers)) return printf("%s: attention\n", table->name), 1;
        }
        n_run++;
    }
    printf("image encoder: %d instruction sets\n", n_run);
}
