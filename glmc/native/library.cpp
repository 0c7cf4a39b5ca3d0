// The library that Python loads: a program of instructions, opened once and run a step at a time.
//
// Built three times from this one file, for plain CPUs, AVX2 and AVX-512 with bfloat16 and byte products; glmc/native/__init__.py
// picks at load. The functions below are all that it exports.
#include "kernels/add_rms_norm/native.hpp"
#include "kernels/attention/native.hpp"
#include "kernels/attention_packed/native.hpp"
#include "native/embedding.hpp"
#include "kernels/latent_attention/native.hpp"
#include "kernels/layer_norm/native.hpp"
#include "kernels/lightning_indexer/native.hpp"
#include "native/pack.hpp"
#include "native/patches.hpp"
#include "kernels/linear/native.hpp"
#include "kernels/moe_experts/native.hpp"
#include "kernels/moe_route/native.hpp"
#include "kernels/place_media/native.hpp"
#include "kernels/position_table/native.hpp"
#include "kernels/rms_norm/native.hpp"
#include "kernels/rope/native.hpp"
#include "kernels/rope_table/native.hpp"
#include "kernels/split_qkv_norm_rope/native.hpp"
#include "kernels/silu_mul/native.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <sys/mman.h>

namespace glmc {
namespace {

struct Kernel {
    const char* name;
    void (*run)(const Context&, const Instruction&);
    bool small;                                               // of few rows the first thread does all, and nobody waits
    int64_t (*shared)(const Instruction&, int64_t, int64_t);  // bytes that so many threads share in a step of so many tokens
    int64_t (*scratch)(const Instruction&, int64_t);          // bytes of a thread's own
};

int64_t none(const Instruction&, int64_t, int64_t) { return 0; }
int64_t none(const Instruction&, int64_t) { return 0; }

const Kernel kernels[] = {
    {"linear", linear, false, product_shared, product_scratch},
    {"swiglu", swiglu, false, product_shared, product_scratch},
    {"rms_norm", rms_norm, true, none, none},
    {"add_rms_norm", add_rms_norm, true, none, none},
    {"layer_norm", layer_norm, true, none, none},
    {"embedding", embedding, true, none, none},
    {"wanted_rows", wanted_rows, true, none, none},
    {"rope_table", rope_table, true, none, none},
    {"rope", rope, true, none, none},
    {"cache_rows", cache_rows, true, none, none},
    {"split_qkv_norm_rope", split_qkv_norm_rope, true, none, none},
    {"attention", attention, false, attention_shared, attention_scratch},
    {"attention_packed", attention_packed, false, packed_shared, packed_scratch},
    {"position_table", position_table, true, none, none},
    {"merge_rows", merge_rows, true, none, none},
    {"gelu", gelu, true, none, none},
    {"place_media", place_media, true, none, none},
    {"latent_attention", latent_attention, false, latent_shared, latent_scratch},
    {"lightning_indexer", lightning_indexer, false, indexer_shared, indexer_scratch},
    {"moe_route", moe_route, true, none, route_scratch},
    {"moe_experts", moe_experts, false, experts_shared, experts_scratch},
};
constexpr int64_t KERNELS = sizeof kernels / sizeof kernels[0];

char* huge(int64_t bytes) {
    constexpr int64_t page = 1 << 21;
    auto* p = (char*)std::aligned_alloc(page, (bytes + page - 1) / page * page);
    if (p) madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

struct Program {
    std::unique_ptr<Pool> pool;
    std::vector<Instruction> instructions;
    std::vector<Counter> counters;
    std::vector<char*> scratch;
    char* shared = nullptr;
    const Step* step = nullptr;
    double* seconds = nullptr;  // where the time of each instruction is added up, if somebody wants it
    size_t first = 0, last = 0;  // the instructions of this run, `last` not among them

    ~Program() {
        pool.reset();
        for (auto* p : scratch) std::free(p);
        std::free(shared);
    }
};

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void work(void* given, int thread) {
    auto& program = *(Program*)given;
    Context c{program.pool.get(), program.step, thread, nullptr, program.scratch[thread], program.shared};
    bool pending = false;
    double* seconds = thread ? nullptr : program.seconds;
    double before = seconds ? now() : 0;
    for (size_t i = program.first; i < program.last; i++) {
        const Instruction& it = program.instructions[i];
        const Kernel& kernel = kernels[it.op];
        bool small = kernel.small && c.rows(it) <= FEW;
        c.counters = &program.counters[i * PHASES * c.threads()];
        if (pending && !small) c.barrier();
        kernel.run(c, it);
        if (!small) c.barrier();
        pending = small;
        if (seconds) {
            double after = now();
            seconds[i] += after - before;
            before = after;
        }
    }
}

}  // namespace
}  // namespace glmc

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

// The number of the kernel called `name` in a program, -1 for none.
EXPORTED int64_t glmc_kernel(const char* name) {
    for (int64_t i = 0; i < glmc::KERNELS; i++)
        if (!std::strcmp(glmc::kernels[i].name, name)) return i;
    return -1;
}

// Make `count` instructions ready for steps of at most `tokens` tokens on so many threads. nullptr where memory is short.
EXPORTED void* glmc_open(const glmc::Instruction* instructions, int64_t count, int64_t tokens, int64_t threads) {
    auto program = std::make_unique<glmc::Program>();
    program->instructions.assign(instructions, instructions + count);
    program->counters = std::vector<glmc::Counter>(count * glmc::PHASES * threads);
    int64_t shared = 4096, scratch = 4096;
    for (const auto& it : program->instructions) {
        int64_t rows = it.rows > 1 ? tokens / it.rows : tokens;
        shared = std::max(shared, glmc::kernels[it.op].shared(it, rows, threads));
        scratch = std::max(scratch, glmc::kernels[it.op].scratch(it, rows));
    }
    program->shared = glmc::huge(shared);
    if (!program->shared) return nullptr;
    for (int64_t i = 0; i < threads; i++) {
        program->scratch.push_back(glmc::huge(scratch));
        if (!program->scratch.back()) return nullptr;
    }
    program->pool = std::make_unique<glmc::Pool>(int(threads));
    return program.release();
}

// A step's instructions from `first` up to `last`; ranks exchange what they have between such runs.
EXPORTED void glmc_run_part(void* opened, const glmc::Step* step, int64_t first, int64_t last) {
    auto& program = *(glmc::Program*)opened;
    program.step = step;
    program.first = first;
    program.last = last;
    for (auto& counter : program.counters) counter.value.store(0, std::memory_order_relaxed);
    program.pool->run(glmc::work, &program);
}

EXPORTED void glmc_run(void* opened, const glmc::Step* step) {
    glmc_run_part(opened, step, 0, ((glmc::Program*)opened)->instructions.size());
}

// From the next step on add each instruction's seconds, as the first thread sees them, to `seconds`; nullptr ends it.
EXPORTED void glmc_profile(void* opened, double* seconds) { ((glmc::Program*)opened)->seconds = seconds; }

EXPORTED void glmc_close(void* opened) { delete (glmc::Program*)opened; }

// Write a matrix into panels of its form, on so many threads. 0, or -1 where no more threads can be made.
EXPORTED int64_t glmc_pack(const glmc::Packing* it, int64_t threads) { return glmc::pack(*it, threads); }

// Memory in huge pages where the system has them; freed by glmc_free.
EXPORTED void* glmc_allocate(int64_t bytes) { return glmc::huge(bytes); }
EXPORTED void glmc_free(void* p) { std::free(p); }

}  // extern "C"
