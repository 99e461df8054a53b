// A team of threads that runs one function together. With OpenMP, whose threads ggml's CPU backend uses too, there is one
// set of threads for both; without it, a pool of our own whose threads sleep between calls.
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
