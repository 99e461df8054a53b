#include "matmul.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "threads.h"

#ifdef _WIN32
#include <malloc.h>
#endif

namespace bmx {

namespace {

// Lays out arrays in one allocation; the first pass adds up sizes, the second assigns addresses.
class Places {
public:
    explicit Places(char * base) : base_(base) {}
    template <class T>
    T * take(size_t n) {
        char * const at = base_ ? base_ + used_ : nullptr;
        used_ += aligned(n * sizeof(T));
        return reinterpret_cast<T *>(at);
    }
    size_t used() const { return used_; }

private:
    char * base_;
    size_t used_ = 0;
};

constexpr int kRoundings = 3;

// One pass over at most kMostTokens tokens.
struct Pass {
    const Table & table;
    const Work & work;
    int64_t first, n_tokens;
    int rows;  // of a panel
    Activations x[kRoundings];
    bool wanted[kRoundings];
    float * normalized;  // [threads][n_columns]
    float * y;           // [threads][2][n_tokens * rows]
    char * scratch;      // [threads][scratch_bytes]
    int64_t n_panels;
    std::atomic<int64_t> next;
};

void place(Pass & pass, Places & places, int n_threads) {
    const int64_t n_columns = pass.work.n_columns, n_tokens = pass.n_tokens;
    const size_t n = size_t((n_columns + kBlock - 1) / kBlock * n_tokens + pass.table.spare_tokens);
    for (int i = 0; i < kRoundings; i++) {
        if (!pass.wanted[i]) continue;
        Activations & x = pass.x[i];
        x.rounding = Rounding(i);
        x.n_tokens = n_tokens;
        x.n_columns = n_columns;
        if (x.rounding == Rounding::none) {
            x.floats = places.take<float>(n_columns * n_tokens);
            continue;
        }
        x.values = places.take<int8_t>(n * kBlock);
        x.scales = places.take<float>(n * (x.rounding == Rounding::per_32 ? 8 : 1));
        x.sums16 = places.take<int32_t>(n * 16);
        x.sums32 = places.take<int16_t>(n * 8);
        if (pass.table.spare_tokens && x.rounding == Rounding::per_256) x.split_sums = places.take<uint16_t>(n * 16);
    }
    pass.normalized = places.take<float>(n_threads * aligned(n_columns));
    pass.y = places.take<float>(size_t(n_threads) * 2 * n_tokens * pass.rows);
    pass.scratch = places.take<char>(n_threads * aligned(pass.table.scratch_bytes));
}

void normalize(const Table & table, const Norm & norm, const float * x, int64_t n, int64_t at, float * out) {
    const float scale = 1.0f / std::sqrt(table.sum_of_squares(x, n) / float(n) + norm.epsilon);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * norm.weight[i];
    // last, since it may share memory with x
    if (norm.plain)
        for (int64_t i = 0; i < n; i++) norm.plain[at + i] = x[i] * scale;
}

// The result of normalization may share memory with x: a token is read whole before it is written.
void prepare_token(const Pass & pass, int64_t token, float * normalized) {
    const int64_t n = pass.work.n_columns, at = (pass.first + token) * n;
    const float * x = pass.work.x + at;
    if (const Norm * norm = pass.work.norm) {
        normalize(pass.table, *norm, x, n, at, normalized);
        memcpy(norm->scaled + at, normalized, n * sizeof(float));
        x = normalized;
    }
    for (int i = 0; i < kRoundings; i++) {
        if (!pass.wanted[i]) continue;
        if (Rounding(i) == Rounding::none) memcpy(const_cast<float *>(pass.x[i].floats) + token * n, x, n * sizeof(float));
        else pass.table.round(pass.x[i], token, x);
    }
}

// Clears spare memory, since infinity or NaN times zero is NaN.
void clear_spare(const Pass & pass) {
    const Activations & x = pass.x[int(Rounding::per_256)];
    if (!pass.wanted[int(Rounding::per_256)] || !x.split_sums) return;
    memset(x.split_sums + x.n_blocks() * x.n_tokens * 16, 0, size_t(pass.table.spare_tokens) * 16 * sizeof(uint16_t));
}

Rows rows_of(const Matrix & matrix, int64_t panel, int rows, bool more, int64_t n_columns) {
    const int64_t first = panel * rows;
    Rows result = {matrix.weight, matrix.data + first * matrix.stride, matrix.stride, 0, nullptr, 0, nullptr};
    result.n_rows = int(std::min<int64_t>(rows, matrix.n_rows - first));
    const int64_t left = std::min<int64_t>(rows, matrix.n_rows - first - rows);
    if (more && left > 0) {
        const BlockSize size = block_size(matrix.weight);
        result.next = result.data + rows * matrix.stride;
        result.next_bytes = (left - 1) * matrix.stride + n_columns / size.columns * size.bytes;
    }
    return result;
}

void write(const Pass & pass, const Product & product, int64_t first_row, int n_rows, float * y, const float * second) {
    const int rows = pass.rows;
    for (int64_t m = 0; m < pass.n_tokens; m++) {
        const int64_t at = (pass.first + m) * product.y_stride + first_row;
        float * from = y + m * rows;
        float * to = product.y + at;
        switch (product.kind) {
            case Product::Kind::store: memcpy(to, from, n_rows * sizeof(float)); break;
            case Product::Kind::add:
                for (int r = 0; r < n_rows; r++) to[r] = from[r] + product.residual[at + r];
                break;
            case Product::Kind::swiglu:
                // a panel's row count is a multiple of the vectors' length; the last rows of the matrix may be fewer
                pass.table.swiglu(from, second + m * rows, from, rows);
                memcpy(to, from, n_rows * sizeof(float));
                break;
        }
    }
}

void compute_panel(Pass & pass, const Product & product, int64_t panel, bool more, float * y, char * scratch) {
    const int rows = pass.rows;
    const auto multiply_one = [&](const Matrix & matrix, float * to, const char * after) {
        Rows part = rows_of(matrix, panel, rows, more, pass.work.n_columns);
        part.after = after;
        pass.table.panel(part, pass.x[int(rounding_of(matrix.weight))], to, scratch);
        return part.n_rows;
    };
    const bool both = product.kind == Product::Kind::swiglu;
    const auto data_of = [&](const Matrix & matrix, int64_t at) { return matrix.data + at * rows * matrix.stride; };
    const int n_rows = multiply_one(product.w, y, both ? data_of(product.v, panel) : nullptr);
    float * const second = y + pass.n_tokens * rows;
    if (both) multiply_one(product.v, second, more ? data_of(product.w, panel + 1) : nullptr);
    write(pass, product, panel * rows, n_rows, y, second);
}

int64_t n_panels_of(const Product & product, int rows) { return (product.w.n_rows + rows - 1) / rows; }

void compute_panels(Pass & pass, int64_t begin, int64_t end, float * y, char * scratch) {
    for (const Product & product : pass.work.products) {
        const int64_t n = n_panels_of(product, pass.rows);
        for (int64_t panel = std::max<int64_t>(begin, 0); panel < std::min(end, n); panel++)
            compute_panel(pass, product, panel, panel + 1 < std::min(end, n), y, scratch);
        begin -= n;
        end -= n;
        if (end <= 0) return;
    }
}

// Takes a run of panels, so that memory is read in order; the last runs are short, so that no thread waits long.
bool take_panels(Pass & pass, int n_threads, int64_t & begin, int64_t & end) {
    begin = pass.next.load();
    do {
        if (begin >= pass.n_panels) return false;
        end = begin + std::max<int64_t>(1, (pass.n_panels - begin) / (n_threads * 2));
    } while (!pass.next.compare_exchange_weak(begin, end));
    return true;
}

void run(void * data, Team & team, int index) {
    Pass & pass = *static_cast<Pass *>(data);
    const int n_threads = team.size();
    float * normalized = pass.normalized + index * aligned(pass.work.n_columns);
    for (int64_t token = index; token < pass.n_tokens; token += n_threads) prepare_token(pass, token, normalized);
    if (index == 0) clear_spare(pass);
    team.barrier();
    float * y = pass.y + size_t(index) * 2 * pass.n_tokens * pass.rows;
    char * scratch = pass.scratch + index * aligned(pass.table.scratch_bytes);
    int64_t begin, end;
    while (take_panels(pass, n_threads, begin, end)) compute_panels(pass, begin, end, y, scratch);
}

}  // namespace

Scratch::~Scratch() {
#ifdef _WIN32
    _aligned_free(data_);
#else
    free(data_);
#endif
}

char * Scratch::at_least(size_t n_bytes) {
    if (n_bytes <= size_) return data_;
    const size_t size = aligned(n_bytes + n_bytes / 4);
#ifdef _WIN32
    _aligned_free(data_);
    data_ = static_cast<char *>(_aligned_malloc(size, kAlign));
#else
    free(data_);
    data_ = static_cast<char *>(aligned_alloc(kAlign, size));
#endif
    size_ = data_ ? size : 0;
    return data_;
}

bool multiply(const Table & table, const Work & work, int n_threads, Scratch & scratch) {
    for (int64_t first = 0; first < work.n_tokens; first += kMostTokens) {
        Pass pass = {table, work, first, std::min(kMostTokens, work.n_tokens - first), 0, {}, {}, nullptr, nullptr, nullptr, 0, {0}};
        pass.rows = table.rows(pass.n_tokens);
        for (const Product & product : work.products) {
            pass.n_panels += n_panels_of(product, pass.rows);
            pass.wanted[int(rounding_of(product.w.weight))] = true;
            if (product.kind == Product::Kind::swiglu) pass.wanted[int(rounding_of(product.v.weight))] = true;
        }
        Places sizes(nullptr);
        place(pass, sizes, n_threads);
        char * const base = scratch.at_least(sizes.used());
        if (!base) return false;
        Places places(base);
        place(pass, places, n_threads);
        run_team(n_threads, run, &pass);
    }
    return true;
}

}  // namespace bmx
