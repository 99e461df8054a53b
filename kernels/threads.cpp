#include "threads.h"

#ifdef _OPENMP
#include <omp.h>

namespace bmx {
namespace {

class OpenMpTeam final : public Team {
public:
    int size() const override { return omp_get_num_threads(); }
    void barrier() override {
#pragma omp barrier
    }
};

}  // namespace

void run_team(int n_threads, TeamFunction function, void * data) {
#pragma omp parallel num_threads(n_threads)
    {
        OpenMpTeam team;
        function(data, team, omp_get_thread_num());
    }
}

}  // namespace bmx

#else
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace bmx {
namespace {

class Pool final : public Team {
public:
    explicit Pool(int n) : n_(n) {
        for (int i = 1; i < n; i++) threads_.emplace_back([this, i] { work(i); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (auto & thread : threads_) thread.join();
    }
    int size() const override { return n_; }
    void barrier() override {
        std::unique_lock<std::mutex> lock(barrier_mutex_);
        const long round = barrier_round_;
        if (++arrived_ == n_) {
            arrived_ = 0;
            barrier_round_++;
            barrier_.notify_all();
        } else {
            barrier_.wait(lock, [&] { return barrier_round_ != round; });
        }
    }
    void run(TeamFunction function, void * data) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            function_ = function;
            data_ = data;
            running_ = n_ - 1;
            round_++;
        }
        wake_.notify_all();
        function(data, *this, 0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return running_ == 0; });
    }

private:
    void work(int index) {
        for (long seen = 0;;) {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || round_ != seen; });
            if (stop_) return;
            seen = round_;
            const TeamFunction function = function_;
            void * const data = data_;
            lock.unlock();
            function(data, *this, index);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    const int n_;
    std::vector<std::thread> threads_;
    std::mutex mutex_, barrier_mutex_;
    std::condition_variable wake_, done_, barrier_;
    TeamFunction function_ = nullptr;
    void * data_ = nullptr;
    long round_ = 0, barrier_round_ = 0;
    int running_ = 0, arrived_ = 0;
    bool stop_ = false;
};

}  // namespace

void run_team(int n_threads, TeamFunction function, void * data) {
    // one pool, of the most recently requested size; two contexts that compute at once take turns
    static std::mutex mutex;
    static Pool * pool = nullptr;
    std::lock_guard<std::mutex> lock(mutex);
    if (!pool || pool->size() != n_threads) {
        delete pool;
        pool = new Pool(n_threads);
    }
    pool->run(function, data);
}

}  // namespace bmx
#endif
