// A team of threads that runs one function together. With OpenMP, the threads are those of ggml's CPU backend; without it,
// they are a pool of our own that sleeps between calls.
#pragma once

namespace bmx {

class Team {
public:
    virtual int size() const = 0;
    virtual void barrier() = 0;

protected:
    ~Team() = default;
};

using TeamFunction = void (*)(void * data, Team & team, int index);

// Runs function(data, team, 0 … size - 1) on at most n_threads threads and returns when all have returned.
void run_team(int n_threads, TeamFunction function, void * data);

}  // namespace bmx
