// A few threads that run one function together, and the barrier between its phases.
//
// They spin while a step runs and for a moment after it, then sleep. Nothing is pinned: on a busy machine the scheduler knows
// better, and work is handed out in small pieces, so that a thread which lost its core is waited for only as long as one piece.
#pragma once

#include <atomic>
#include <cstdint>
#include <sched.h>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace glmc {

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

class Pool {
  public:
    explicit Pool(int threads) : size(threads) {
        for (int i = 1; i < threads; i++) workers.emplace_back([this, i] { serve(i); });
    }
    ~Pool() {
        task = nullptr;
        epoch.fetch_add(1, std::memory_order_release);
        epoch.notify_all();
        for (auto& w : workers) w.join();
    }

    // Run f(argument, thread) on every thread; the caller is thread 0.
    void run(void (*f)(void*, int), void* argument) {
        task = f;
        given = argument;
        epoch.fetch_add(1, std::memory_order_seq_cst);  // before the look at who sleeps, as sleepers look the other way round
        if (asleep.load(std::memory_order_seq_cst)) epoch.notify_all();
        f(argument, 0);
        barrier();
    }

    // Everyone waits for everyone.
    void barrier() {
        uint32_t now = phase.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            phase.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase.load(std::memory_order_acquire) == now; spins++) {
            if (spins < 4096) pause();
            else sched_yield();
        }
    }

    const int size;

  private:
    void serve(int number) {
        uint32_t seen = 0;
        for (;;) {
            for (int spins = 0; epoch.load(std::memory_order_acquire) == seen; spins++) {
                if (spins < 20000) {
                    pause();
                    continue;
                }
                asleep.fetch_add(1, std::memory_order_seq_cst);
                epoch.wait(seen, std::memory_order_seq_cst);
                asleep.fetch_sub(1, std::memory_order_seq_cst);
            }
            seen++;
            if (!task) return;
            task(given, number);
            barrier();
        }
    }

    std::vector<std::thread> workers;
    void (*task)(void*, int) = nullptr;
    void* given = nullptr;
    alignas(64) std::atomic<uint32_t> epoch{0};
    alignas(64) std::atomic<int> asleep{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};
};

}  // namespace glmc
