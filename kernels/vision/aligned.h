// Memory for vectors and tiles, kept by a thread for its next operator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace bmx {
namespace vision {

// At a multiple of 64 bytes; growing loses the earlier content.
class Aligned {
public:
    template <class T>
    T * room(size_t n) {
        const size_t size = n * sizeof(T);
        if (size > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(new char[size + 64]);
            size_ = size;
        }
        return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t(63));
    }

private:
    std::unique_ptr<char[]> memory_;
    size_t size_ = 0;
};

inline int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace vision
}  // namespace bmx
