// Attention of new tokens over their sequences' filled slots: token t sees slots 0 to its position. Keys and values are read once
// for all query heads of a group.
//
// A context is looked at in pieces of PIECE slots, and the pieces' results are joined in their order. Few tokens share their pieces
// out among the threads, many tokens themselves; the numbers are the same, alone, in a batch or in a prompt.
//
// n: heads, kv heads, D, q's stride, y's stride, cache form, cache: bytes of a sequence, of a head's keys, of a head's values, slots.
// f: scale.  p: q [T, heads D], keys, values, y [T, heads D].
#pragma once

#include "kernels/attention/cache.hpp"
#include "native/program.hpp"

namespace glmc {

constexpr int QUERIES = 48;     // query rows (tokens times heads of a group) of one task at most
constexpr int64_t PIECE = 128;  // slots that are looked at together

// What is known of some query rows after some slots: largest score (as a power of 2), sum of weights, weighted values [rows][Dp].
struct Attended {
    float *top, *total, *values;
    Attended(float* at, int64_t rows) : top(at), total(at + rows), values(at + 2 * rows) {}
    static int64_t floats(int64_t rows, int64_t padded) { return rows * (padded + 2); }
};

// Rows through the products of a panel, a tile of them after another, into rows of PIECE or Dp floats.
template <class T>
inline void tiles(const T* const* a, int rows, int64_t count, const T* b, int64_t along, int64_t across, float* out, int64_t stride) {
    auto some = [&](auto m, int at) {
        product_to<decltype(m)::value>(a + at, int(count), b, along, across, out + at * stride, stride);
    };
    int at = 0;
    for (; at + 12 <= rows; at += 12) some(std::integral_constant<int, 12>{}, at);
    for (; at + 4 <= rows; at += 4) some(std::integral_constant<int, 4>{}, at);
    for (; at < rows; at++) some(std::integral_constant<int, 1>{}, at);
}

// `rows` prepared queries over slots s to s + count of one head; row r sees slots up to seen[r].
template <class Form>
inline void attend(const Instruction& it, const typename Form::T* const* q, const int64_t* seen, int rows, const char* keys,
                   const char* values, int64_t s, int64_t count, char* scratch, Attended out) {
    using T = typename Form::T;
    int64_t width = it.n[2], padded = (width + P - 1) / P * P, whole = (count + P - 1) / P * P;
    auto* scores = (float*)scratch;                // [QUERIES][PIECE]
    auto* weights = (T*)(scores + QUERIES * PIECE);  // [QUERIES][PIECE]
    const T* w[QUERIES];
    for (int64_t b = 0; b < whole; b += P)
        tiles(q, rows, width / Form::pack, (const T*)keys + (s + b) * width, Form::pack * P, Form::pack * W, scores + b, PIECE);
    for (int r = 0; r < rows; r++) {
        float* row = scores + r * PIECE;
        w[r] = weights + r * PIECE;
        int64_t sees = std::min(seen[r] - s + 1, count);
        for (int64_t i = std::max<int64_t>(sees, 0); i < whole; i++) row[i] = -INFINITY;
        vf tops = set(-INFINITY), sums{};
        for (int64_t i = 0; i < whole; i += W) tops = vmax(load<vf>(row + i), tops);
        out.top[r] = largest(tops);
        float top = sees > 0 ? out.top[r] : 0;
        for (int64_t i = 0; i < whole; i += W) {
            vf e = vexp2<Form::terms>(load<vf>(row + i) - top);
            sums += e;
            Form::put(weights + r * PIECE + i, e);
        }
        out.total[r] = sum(sums);
    }
    for (int64_t d = 0; d < padded; d += P)
        tiles(w, rows, whole / Form::pack, (const T*)values + s * padded + d * Form::pack, Form::pack * padded, Form::pack * W,
              out.values + d, padded);
}

// What is known after both: `so_far` comes first.
inline void join(Attended so_far, Attended next, int rows, int64_t padded) {
    for (int r = 0; r < rows; r++) {
        if (next.total[r] == 0) continue;  // it sees none of those slots
        float top = std::max(so_far.top[r], next.top[r]);
        float kept = std::exp2(so_far.top[r] - top), added = std::exp2(next.top[r] - top);
        so_far.top[r] = top;
        so_far.total[r] = so_far.total[r] * kept + next.total[r] * added;
        for (int64_t i = 0; i < padded; i += W) {
            float *to = so_far.values + r * padded + i, *from = next.values + r * padded + i;
            store(to, load<vf>(to) * kept + load<vf>(from) * added);
        }
    }
}

inline int64_t attention_shared(const Instruction& it, int64_t tokens, int64_t threads) {
    int64_t padded = (it.n[2] + P - 1) / P * P, pieces = (it.n[9] + PIECE - 1) / PIECE;
    return 16 * tokens + 128 + 32 * threads + 4 * 4 * threads * pieces * Attended::floats(QUERIES, padded);
}
inline int64_t attention_scratch(const Instruction& it, int64_t) {
    int64_t padded = (it.n[2] + P - 1) / P * P;
    return 4 * (QUERIES * (2 * PIECE + it.n[2]) + 2 * Attended::floats(QUERIES, padded));
}

inline void attention(const Context& c, const Instruction& it) {
    int64_t heads = it.n[0], kv = it.n[1], width = it.n[2], group = heads / kv, tokens = c.step->tokens;
    int64_t padded = (width + P - 1) / P * P;
    int64_t parts = (group + QUERIES - 1) / QUERIES, share = (group + parts - 1) / parts;  // a group may be too large for one task
    int64_t together = share >= QUERIES ? 1 : QUERIES / share;                             // tokens of one task
    // Blocks of neighbouring tokens of one sequence, (first, how many); then how many blocks, and the most pieces.
    auto* blocks = (int64_t*)c.shared;
    auto* facts = blocks + 2 * tokens;
    if (c.thread == 0) {
        int64_t count = 0, longest = 0;
        for (int64_t t = 0; t < tokens; t++) {
            if (count && blocks[2 * count - 1] < together && c.step->sequences[t] == c.step->sequences[t - 1]) blocks[2 * count - 1]++;
            else blocks[2 * count] = t, blocks[2 * count + 1] = 1, count++;
            longest = std::max(longest, c.step->positions[t] + 1);
        }
        facts[0] = count;
        facts[1] = (longest + PIECE - 1) / PIECE;
        // Tasks that are done with a piece, one counter a block and head: only used where pieces are shared out.
        for (int64_t i = 0; i < 4 * c.threads(); i++) facts[8 + i] = 0;
    }
    c.barrier();
    int64_t count = facts[0], pieces = facts[1], work = count * kv * parts;
    bool spread = work < 4 * c.threads() && pieces > 1;
    auto* finished = (std::atomic<int64_t>*)(facts + 8);
    auto* records = (float*)(facts + 8 + 4 * c.threads());
    int64_t record = Attended::floats(QUERIES, padded);
    with_cache(it.n[5], [&](auto form) {
        using Form = decltype(form);
        using T = typename Form::T;
        c.each(0, work * (spread ? pieces : 1), [&](int64_t task) {
            // Later tokens see more: they go first, so that no thread is left alone with the longest.
            int64_t piece = spread ? task % pieces : 0, whole = spread ? task / pieces : task;
            int64_t head = whole % kv, part = whole / kv % parts, block = count - 1 - whole / kv / parts;
            int64_t first = blocks[2 * block], last = first + blocks[2 * block + 1] - 1, end = c.step->positions[last] + 1;
            int64_t from = head * group + part * share, to = std::min(from + share, (head + 1) * group);
            auto* asked = (T*)c.scratch;
            char* scratch = c.scratch + 4 * QUERIES * width;
            auto* own = (float*)(scratch + 8 * QUERIES * PIECE);
            const T* q[QUERIES];
            float* y[QUERIES];
            int64_t seen[QUERIES];
            int rows = 0;
            float scale = float(it.f[0] * 1.4426950408889634);  // scores are powers of 2
            for (int64_t t = first; t <= last; t++)
                for (int64_t h = from; h < to; h++, rows++) {
                    Form::prepare((const float*)it.p[0] + t * it.n[3] + h * width, asked + rows * width, width, scale);
                    q[rows] = asked + rows * width;
                    y[rows] = (float*)it.p[3] + t * it.n[4] + h * width;
                    seen[rows] = c.step->positions[t];
                }
            int64_t sequence = c.step->sequences[first] * it.n[6];
            const char *keys = (const char*)it.p[1] + sequence + head * it.n[7], *values = (const char*)it.p[2] + sequence + head * it.n[8];
            Attended known(own, rows), next(own + record, rows);
            auto look = [&](int64_t s, Attended out) {
                attend<Form>(it, q, seen, rows, keys, values, s, std::min(PIECE, end - s), scratch, out);
            };
            if (!spread) {
                look(0, known);
                for (int64_t s = PIECE; s < end; s += PIECE) {
                    look(s, next);
                    join(known, next, rows, padded);
                }
            } else {
                auto at = [&](int64_t n) { return Attended(records + (whole * pieces + n) * record, rows); };
                int64_t its = (end + PIECE - 1) / PIECE;
                if (piece >= its) return;
                look(piece * PIECE, at(piece));
                if (finished[whole].fetch_add(1, std::memory_order_acq_rel) != its - 1) return;
                known = at(0);
                for (int64_t n = 1; n < its; n++) join(known, at(n), rows, padded);
            }
            for (int r = 0; r < rows; r++) {
                float over = 1.0f / known.total[r];
                lanes(width, [&](int64_t i, int n) { store_lanes(y[r] + i, load_lanes(known.values + r * padded + i, n) * over, n); });
            }
        });
    });
}

}  // namespace glmc
