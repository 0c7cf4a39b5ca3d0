// Latent attention: keys and values of every head are products of one compressed row a slot.
//
// A cache row has two places: channels 0 to R of its key and its value are the compressed row, channels R to R + E of its key the
// turned lanes that all heads share. The matrix kv_b is kept a head at a time, in three sets of panels:
//
//   asked    [R][N]   from a query's plain channels to the compressed row's
//   keys     [N][R]   from a compressed row to a key's plain channels
//   values   [V][R]   from a compressed row to a value
//
// Few new tokens of a sequence read the compressed rows as they are: asked goes into their queries, values into their results.
// Many open the rows first, a head and a piece of slots at a time, and share what that costs. Which is cheaper is a matter of sizes
// alone. Tokens that look at chosen slots never open.
//
// n: heads H, plain N, turned E, rank R, values V, strides of q_plain (row, head) and of q_turned (row, head), y's stride, form of
// the matrix, cache form, cache: bytes of a sequence, slots, top or 0, chosen's stride, new tokens from which rows are opened or 0.
// f: scale.  p: q_plain, q_turned, kv_b, keys, values, chosen or none, y.
#pragma once

#include "kernels/attention/native.hpp"
#include "kernels/linear/native.hpp"

namespace glmc {

// Rows of a cache: n: width, x's stride, first channel in the key, channels of a key, cache form, bytes of a sequence.
// p: x, keys, values or none.
inline void cache_rows(const Context& c, const Instruction& it) {
    each_row(c, it, [&](int64_t r) {
        const float* x = (const float*)it.p[0] + r * it.n[1];
        int64_t slot = c.step->positions[r], at = c.step->sequences[r] * it.n[5];
        with_cache(it.n[4], [&](auto form) {
            decltype(form)::put_key((char*)it.p[1] + at, slot, x, it.n[0], it.n[3], it.n[2]);
            if (it.p[2]) decltype(form)::put_value((char*)it.p[2] + at, slot, x, it.n[0]);
        });
    });
}

struct Latent {
    int64_t heads, plain, turned, rank, values, width;  // width: of a cached key
    const Instruction& it;
    explicit Latent(const Instruction& it)
        : heads(it.n[0]), plain(it.n[1]), turned(it.n[2]), rank(it.n[3]), values(it.n[4]), width(it.n[2] + it.n[3]), it(it) {}

    static int64_t panels(int64_t n) { return (n + P - 1) / P; }
    const float* q_plain(int64_t t, int64_t h) const { return (const float*)it.p[0] + t * it.n[5] + h * it.n[6]; }
    const float* q_turned(int64_t t, int64_t h) const { return (const float*)it.p[1] + t * it.n[7] + h * it.n[8]; }
    float* y(int64_t t, int64_t h) const { return (float*)it.p[6] + t * it.n[9] + h * values; }

    // Where a head's panels begin: 0 asked, 1 keys, 2 values.
    template <class Form>
    const char* matrix(int64_t head, int which) const {
        int64_t asked = panels(rank) * Form::panel_bytes(plain), keys = panels(plain) * Form::panel_bytes(rank);
        int64_t whole = asked + keys + panels(values) * Form::panel_bytes(rank);
        return (const char*)it.p[2] + head * whole + (which == 2 ? asked + keys : which == 1 ? asked : 0);
    }
};

constexpr int64_t WAVE = 32;       // closed tokens that go through the three phases together
constexpr int64_t PANELS = 4;      // panels of one task of a product a head

// Tokens of a step by how they look: runs of one sequence that open the rows, (first, how many), and the others.
struct Looks {
    int64_t *runs, *closed, *counts;  // counts: of runs, of closed tokens
    Looks(char* shared, int64_t tokens) : runs((int64_t*)shared), closed(runs + 2 * tokens), counts(closed + tokens) {}
    static int64_t bytes(int64_t tokens) { return 8 * (3 * tokens + 8); }

    void fill(const Step& step, int64_t top, int64_t open) {
        counts[0] = counts[1] = 0;
        for (int64_t t = 0, next; t < step.tokens; t = next) {
            int64_t dense = t;
            for (next = t; next < step.tokens && step.sequences[next] == step.sequences[t]; next++)
                if (!top || step.positions[next] < top) dense = next + 1;
            if (open && dense - t >= open) runs[2 * counts[0]] = t, runs[2 * counts[0]++ + 1] = dense - t, t = dense;
            for (; t < next; t++) closed[counts[1]++] = t;
        }
    }
};

inline int64_t latent_shared(const Instruction& it, int64_t tokens, int64_t threads) {
    Latent l(it);
    return up64(Looks::bytes(tokens)) + up64(4 * WAVE * l.heads * (l.width + l.rank)) + Job::shared(WAVE, threads, it.n[13], l.rank);
}
inline int64_t open_scratch(const Latent& l, int64_t tokens) {
    return tokens * (4 * (l.plain + l.turned) + 8 + 8 + 4 * Attended::floats(1, filled(l.values))) + ATTEND + 1024 +
           4 * Attended::floats(QUERIES, filled(l.values)) + 4 * PIECE * (l.plain + l.turned + filled(l.values)) +
           PIECE * (8 + row_room(l.rank)) + 4 * PIECE * filled(std::max(l.plain, l.values)) + 4 * l.rank;
}
inline int64_t latent_scratch(const Instruction& it, int64_t tokens) {
    Latent l(it);
    int64_t product = WAVE * (8 + row_room(std::max(l.plain, l.rank))) + 64;
    return std::max({Job::scratch(l.width, l.rank, it.n[14] != 0), open_scratch(l, tokens), product});
}

// `rows` inputs x(i) of k numbers, prepared in scratch.
template <class Form, class X>
inline const char* const* prepared_rows(char* scratch, int64_t rows, int k, X x) {
    int64_t bytes = row_stride(Form::row_bytes(k));
    auto* at = (const char**)scratch;
    char* prepared = scratch + up64(8 * rows);
    for (int64_t i = 0; i < rows; i++) Form::prepare(x(i), k, prepared + i * bytes), at[i] = prepared + i * bytes;
    return at;
}

// out(i, column, low, high) for prepared rows of k numbers with panels `from` to `to` of a matrix.
template <class Form, class F>
inline void few_panels(const char* const* at, int64_t rows, int k, const char* matrix, int64_t from, int64_t to, F out) {
    for (int64_t p = from; p < to; p++)
        panel_times_rows<Form>(at, int(rows), matrix + p * Form::panel_bytes(k), k, nullptr,  // no form here is opened for many rows
                               [&](int i, vf low, vf high) { out(i, p * P, low, high); });
}

// Both vectors of a panel's columns into a row of n floats.
inline void store_columns(float* row, int64_t column, int64_t n, vf low, vf high) {
    int first = int(std::min<int64_t>(n - column, W)), second = int(std::min<int64_t>(n - column - W, W));
    store_lanes(row + column, low, first);
    if (second > 0) store_lanes(row + column + W, high, second);
}

template <class Form, class Slots>
inline void latent_closed(const Context& c, const Latent& l, const Looks& looks, int64_t first, int64_t count) {
    char* shared = c.shared + up64(Looks::bytes(c.step->tokens));
    auto *asked = (float*)shared, *summed = asked + WAVE * l.heads * l.width;
    char* rest = shared + up64(4 * WAVE * l.heads * (l.width + l.rank));
    auto token = [&](int64_t i) { return looks.closed[first + i]; };
    auto products = [&](int64_t outputs, auto f) {
        int64_t panels = Latent::panels(outputs), groups = (panels + PANELS - 1) / PANELS;
        c.share(l.heads * groups, [&](int64_t task) {
            int64_t from = task % groups * PANELS;
            f(task / groups, from, std::min(from + PANELS, panels));
        });
        c.barrier();
    };
    if (c.thread == 0)
        for (int64_t i = 0; i < c.threads(); i++) c.counters[c.threads() + i].value.store(0, std::memory_order_relaxed);
    products(l.rank, [&](int64_t h, int64_t from, int64_t to) {
        if (from == 0)
            for (int64_t i = 0; i < count; i++)
                std::memcpy(asked + (i * l.heads + h) * l.width + l.rank, l.q_turned(token(i), h), 4 * l.turned);
        auto* rows = prepared_rows<Form>(c.scratch, count, int(l.plain), [&](int64_t i) { return l.q_plain(token(i), h); });
        few_panels<Form>(rows, count, int(l.plain), l.template matrix<Form>(h, 0), from, to,
                         [&](int64_t i, int64_t column, vf low, vf high) {
                             store_columns(asked + (i * l.heads + h) * l.width, column, l.rank, low, high);
                         });
    });
    const Instruction& it = l.it;
    Job job{l.heads, 1, l.width, l.rank, float(it.f[0] * LOG2E), (const char*)it.p[3], (const char*)it.p[4], it.n[12], 0, 0,
            looks.closed + first, count, it.n[14], (const int32_t*)it.p[5], it.n[15]};
    attend_tokens<Slots>(c, 1, job, rest, c.scratch, [&](int64_t i, int64_t h) { return asked + (i * l.heads + h) * l.width; },
                         [&](int64_t i, int64_t h) { return summed + (i * l.heads + h) * l.rank; });
    c.barrier();
    products(l.values, [&](int64_t h, int64_t from, int64_t to) {
        auto* rows = prepared_rows<Form>(c.scratch, count, int(l.rank), [&](int64_t i) { return summed + (i * l.heads + h) * l.rank; });
        few_panels<Form>(rows, count, int(l.rank), l.template matrix<Form>(h, 2), from, to,
                         [&](int64_t i, int64_t column, vf low, vf high) {
                             store_columns(l.y(token(i), h), column, l.values, low, high);
                         });
    });
}

// One head of `count` neighbouring tokens of a sequence from `first` on, over opened rows.
template <class Form, class Slots>
inline void latent_opened(const Context& c, const Latent& l, int64_t head, int64_t first, int64_t count) {
    using T = typename Slots::T;
    const Instruction& it = l.it;
    int64_t width = l.plain + l.turned, padded = filled(l.values), end = c.step->positions[first + count - 1] + 1;
    char* at = c.scratch;
    auto take = [&](int64_t bytes) {
        char* here = at;
        at += (bytes + 63) / 64 * 64;
        return here;
    };
    auto* asked = (T*)take(count * width * sizeof(T));
    auto* known = (float*)take(4 * count * (padded + 2));
    auto* next = (float*)take(4 * Attended::floats(QUERIES, padded));
    char *room = take(ATTEND), *keys = take(sizeof(T) * PIECE * width), *values = take(sizeof(T) * PIECE * padded);
    auto* opened = (float*)take(4 * PIECE * filled(std::max(l.plain, l.values)));
    char* prepared = take(PIECE * (8 + row_room(l.rank)));
    auto* row = (float*)take(4 * l.rank);
    std::memset(values, 0, sizeof(T) * PIECE * padded);
    float scale = float(it.f[0] * LOG2E);
    for (int64_t i = 0; i < count; i++) {
        Slots::prepare(l.q_plain(first + i, head), asked + i * width, l.plain, scale);
        Slots::prepare(l.q_turned(first + i, head), asked + i * width + l.plain, l.turned, scale);
    }
    int64_t sequence = c.step->sequences[first] * it.n[12];
    const char *cached_keys = (const char*)it.p[3] + sequence, *cached = (const char*)it.p[4] + sequence;
    auto open = [&](const char* const* rows, int64_t size, int which, int64_t outputs, auto put) {
        few_panels<Form>(rows, size, int(l.rank), l.template matrix<Form>(head, which), 0, Latent::panels(outputs),
                         [&](int64_t i, int64_t column, vf low, vf high) {
                             store(opened + i * filled(outputs) + column, low);
                             store(opened + i * filled(outputs) + column + W, high);
                         });
        for (int64_t i = 0; i < size; i++) put(i, opened + i * filled(outputs));
    };
    for (int64_t s = 0; s < end; s += PIECE) {
        int64_t size = std::min(PIECE, end - s);
        auto* latents = prepared_rows<Form>(prepared, size, int(l.rank), [&](int64_t i) {
            Slots::take_value(cached, s + i, row, l.rank);
            return row;
        });
        open(latents, size, 1, l.plain, [&](int64_t i, const float* x) { Slots::put_key(keys, i, x, l.plain, width); });
        for (int64_t b = 0; b < filled(size); b += P)
            std::memcpy((T*)keys + b * width + l.plain * P, (const T*)cached_keys + (s + b) * l.width + l.rank * P,
                        sizeof(T) * P * l.turned);
        open(latents, size, 2, l.values, [&](int64_t i, const float* x) { Slots::put_value(values, i, x, l.values); });
        for (int64_t from = 0; from < count; from += QUERIES) {
            int rows = int(std::min<int64_t>(count - from, QUERIES));
            if (c.step->positions[first + from + rows - 1] < s) continue;
            const T* q[QUERIES];
            int64_t seen[QUERIES];
            for (int r = 0; r < rows; r++) q[r] = asked + (from + r) * width, seen[r] = c.step->positions[first + from + r];
            Attended so_far(known + from * (padded + 2), rows), added(next, rows);
            attend<Slots>(width, padded, q, seen, rows, keys - sizeof(T) * s * width, values - sizeof(T) * s * padded, s, size, room,
                          s ? added : so_far);
            if (s) join(so_far, added, rows, padded);
        }
    }
    for (int64_t from = 0; from < count; from += QUERIES) {
        int rows = int(std::min<int64_t>(count - from, QUERIES));
        finish(Attended(known + from * (padded + 2), rows), rows, padded, l.values, [&](int r) { return l.y(first + from + r, head); });
    }
}

// The forms in which the matrix may be kept (native/split.py).
template <class F>
inline void with_latent_form(int64_t number, F f) {
    if (number == 0) f(F32{});
    else if (number == 1) f(BF16{});
    else f(Q8{});
}

inline void latent_attention(const Context& c, const Instruction& it) {
    Latent l(it);
    Looks looks(c.shared, c.step->tokens);
    if (c.thread == 0) looks.fill(*c.step, it.n[14], it.n[16]);
    c.barrier();
    with_latent_form(it.n[10], [&](auto form) {
        with_cache(it.n[11], [&](auto slots) {
            using Form = decltype(form);
            using Slots = decltype(slots);
            // Few heads on many threads: a run is cut, and its rows opened more than once.
            int64_t cuts = std::max<int64_t>(1, (2 * c.threads() + l.heads - 1) / l.heads);
            c.each(0, looks.counts[0] * l.heads * cuts, [&](int64_t task) {
                int64_t run = task / (l.heads * cuts), cut = cuts - 1 - task % cuts, tokens = looks.runs[2 * run + 1];
                int64_t from = tokens * cut / cuts, to = tokens * (cut + 1) / cuts;
                if (from < to) latent_opened<Form, Slots>(c, l, task / cuts % l.heads, looks.runs[2 * run] + from, to - from);
            });
            for (int64_t first = 0; first < looks.counts[1]; first += WAVE)
                latent_closed<Form, Slots>(c, l, looks, first, std::min(WAVE, looks.counts[1] - first));
        });
    });
}

}  // namespace glmc
