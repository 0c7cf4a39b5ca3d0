// Attention of some of a step's tokens over their sequences' slots, for the kernels that do: each token sees slots 0 to its
// position, or of these the chosen ones. Keys and values are read once for all query heads of a group.
//
// A context is looked at in pieces of PIECE slots, and the pieces' results are joined in their order. Few tokens share their pieces
// out among the threads, many tokens themselves; the numbers are the same, alone, in a batch or in a prompt.
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

// `rows` prepared queries of `width` channels over slots s to s + count of one head; row r sees slots up to seen[r].
template <class Form>
inline void attend(int64_t width, int64_t padded, const typename Form::T* const* q, const int64_t* seen, int rows, const char* keys,
                   const char* values, int64_t s, int64_t count, char* scratch, Attended out) {
    using T = typename Form::T;
    int64_t whole = filled(count);
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
constexpr int64_t ATTEND = 8 * QUERIES * PIECE;  // bytes of scratch that `attend` takes

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

// The weighted values [rows][Dp] as rows of `width` floats: y(row) is where one goes.
template <class Y>
inline void finish(Attended known, int rows, int64_t padded, int64_t width, Y y) {
    for (int r = 0; r < rows; r++) {
        float over = 1.0f / known.total[r], *to = y(r);
        lanes(width, [&](int64_t i, int n) { store_lanes(to + i, load_lanes(known.values + r * padded + i, n) * over, n); });
    }
}

struct Job {
    int64_t heads, kv, width, values;  // query heads, key heads, channels of a key and of a value
    float scale;                       // scores are powers of 2
    const char *keys, *vals;
    int64_t sequence, head_keys, head_values;  // bytes of a sequence, of a head's keys and of its values
    const int64_t* list;                       // tokens of the step, in order; nullptr: all
    int64_t count;
    int64_t top = 0;  // tokens at this position and later see only the slots that `chosen` lists for them; 0: none do
    const int32_t* chosen = nullptr;
    int64_t chosen_stride = 0;

    int64_t token(int64_t i) const { return list ? list[i] : i; }
    bool sparse(int64_t position) const { return top && position >= top; }

    static int64_t shared(int64_t count, int64_t threads, int64_t slots, int64_t values) {
        int64_t pieces = (slots + PIECE - 1) / PIECE;
        return 16 * count + 128 + 32 * threads + 4 * 4 * threads * pieces * Attended::floats(QUERIES, filled(values));
    }
    static int64_t scratch(int64_t width, int64_t values, bool chosen) {
        int64_t padded = filled(values);
        return 4 * (QUERIES * width + 2 * Attended::floats(QUERIES, padded)) + ATTEND + 128 + (chosen ? 4 * PIECE * (width + padded) : 0);
    }
};

// query(i, h): `width` floats of item i of the list; result(i, h): where `values` floats of it go. Ends without a barrier.
template <class Form, class Q, class Y>
inline void attend_tokens(const Context& c, int phase, const Job& job, char* shared, char* scratch, Q query, Y result) {
    using T = typename Form::T;
    int64_t group = job.heads / job.kv, width = job.width, padded = filled(job.values);
    int64_t parts = (group + QUERIES - 1) / QUERIES, share = (group + parts - 1) / parts;  // a group may be too large for one task
    int64_t together = share >= QUERIES ? 1 : QUERIES / share;                             // tokens of one task
    auto position = [&](int64_t i) { return c.step->positions[job.token(i)]; };
    auto sequence = [&](int64_t i) { return c.step->sequences[job.token(i)]; };
    auto sees = [&](int64_t i) { return job.sparse(position(i)) ? job.top : position(i) + 1; };
    // Blocks of neighbouring tokens of one sequence, (first, how many); then how many blocks, and the most pieces.
    auto* blocks = (int64_t*)shared;
    auto* facts = blocks + 2 * job.count;
    if (c.thread == 0) {
        int64_t count = 0, longest = 0;
        for (int64_t i = 0; i < job.count; i++) {
            bool same = count && blocks[2 * count - 1] < together && sequence(i) == sequence(i - 1) && !job.sparse(position(i));
            if (same) blocks[2 * count - 1]++;
            else blocks[2 * count] = i, blocks[2 * count + 1] = 1, count++;
            longest = std::max(longest, sees(i));
        }
        facts[0] = count;
        facts[1] = (longest + PIECE - 1) / PIECE;
        // Tasks that are done with a piece, one counter a block and head: only used where pieces are shared out.
        for (int64_t i = 0; i < 4 * c.threads(); i++) facts[8 + i] = 0;
    }
    c.barrier();
    int64_t count = facts[0], pieces = facts[1], work = count * job.kv * parts;
    bool spread = work < 4 * c.threads() && pieces > 1;
    auto* finished = (std::atomic<int64_t>*)(facts + 8);
    auto* records = (float*)(facts + 8 + 4 * c.threads());
    int64_t record = Attended::floats(QUERIES, padded);
    c.each(phase, work * (spread ? pieces : 1), [&](int64_t task) {
        // Later tokens see more: they go first, so that no thread is left alone with the longest.
        int64_t piece = spread ? task % pieces : 0, whole = spread ? task / pieces : task;
        int64_t head = whole % job.kv, part = whole / job.kv % parts, block = count - 1 - whole / job.kv / parts;
        int64_t first = blocks[2 * block], last = first + blocks[2 * block + 1] - 1, end = sees(last);
        int64_t from = head * group + part * share, to = std::min(from + share, (head + 1) * group);
        auto* asked = (T*)scratch;
        char* room = scratch + 4 * QUERIES * width;
        auto* own = (float*)(room + ATTEND);
        const T* q[QUERIES];
        int64_t seen[QUERIES];
        int rows = 0;
        for (int64_t i = first; i <= last; i++)
            for (int64_t h = from; h < to; h++, rows++) {
                Form::prepare(query(i, h), asked + rows * width, width, job.scale);
                q[rows] = asked + rows * width;
                seen[rows] = sees(i) - 1;
            }
        int64_t at = sequence(first) * job.sequence;
        const char *keys = job.keys + at + head * job.head_keys, *values = job.vals + at + head * job.head_values;
        Attended known(own, rows), next(own + record, rows);
        auto look = [&](int64_t s, Attended out) {
            int64_t size = std::min(PIECE, end - s);
            if (!job.sparse(position(first))) return attend<Form>(width, padded, q, seen, rows, keys, values, s, size, room, out);
            auto* list = job.chosen + job.token(first) * job.chosen_stride + s;
            char *own_keys = (char*)(own + 2 * record), *own_values = own_keys + 4 * PIECE * width;
            for (int64_t i = 0; i < size; i++) copy_key(keys, list[i], own_keys, i, width / Form::pack);
            for (int64_t i = 0; i < filled(size); i += 2)
                Form::copy_values(values, list[std::min(i, size - 1)], i + 1 < size ? list[i + 1] : -1, own_values, i / 2, padded);
            int64_t all[QUERIES];
            for (int r = 0; r < rows; r++) all[r] = size - 1;
            attend<Form>(width, padded, q, all, rows, own_keys, own_values, 0, size, room, out);
        };
        if (!spread) {
            look(0, known);
            for (int64_t s = PIECE; s < end; s += PIECE) {
                look(s, next);
                join(known, next, rows, padded);
            }
        } else {
            auto place = [&](int64_t n) { return Attended(records + (whole * pieces + n) * record, rows); };
            int64_t its = (end + PIECE - 1) / PIECE;
            if (piece >= its) return;
            look(piece * PIECE, place(piece));
            if (finished[whole].fetch_add(1, std::memory_order_acq_rel) != its - 1) return;
            known = place(0);
            for (int64_t n = 1; n < its; n++) join(known, place(n), rows, padded);
        }
        finish(known, rows, padded, job.values, [&](int r) { return result(first + r / (to - from), from + r % (to - from)); });
    });
}

}  // namespace glmc
