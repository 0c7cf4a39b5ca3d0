// Attention inside each of a step's images: a patch sees all patches of its own image, before and behind it.
//
// Keys and values lie in slots as in a cache (kernels/attention/cache.hpp), each image's from a multiple of 32 on; those between
// the end of an image and the next multiple are cleared here.
//
// n: heads, D, q's stride, y's stride, form, bytes of a head's keys, of a head's values.  f: scale.
// p: q [T, heads D], keys, values, y [T, heads D].
#pragma once

#include "kernels/attention/native.hpp"

namespace glmc {

inline int64_t packed_shared(const Instruction&, int64_t tokens, int64_t) { return 8 * (tokens + 2); }
inline int64_t packed_scratch(const Instruction& it, int64_t) { return Job::scratch(it.n[1], it.n[1], false); }

inline void attention_packed(const Context& c, const Instruction& it) {
    int64_t heads = it.n[0], width = it.n[1], padded = filled(width);
    const Step& step = *c.step;
    auto* blocks = (int64_t*)c.shared;  // [images + 1], how many blocks of queries the images before have
    with_cache(it.n[4], [&](auto form) {
        using Form = decltype(form);
        using T = typename Form::T;
        auto keys_of = [&](int64_t head) { return (char*)it.p[1] + head * it.n[5]; };
        auto values_of = [&](int64_t head) { return (char*)it.p[2] + head * it.n[6]; };
        c.share(step.images * heads, [&](int64_t i) {
            int64_t image = i / heads, rows = step.ends[image + 1] - step.ends[image], first = step.positions[step.ends[image]];
            auto* zeros = (float*)c.scratch;
            std::memset(zeros, 0, 4 * width);
            for (int64_t slot = rows; slot < filled(rows); slot++) Form::put_value(values_of(i % heads), first + slot, zeros, width);
        });
        if (c.thread == 0) {
            blocks[0] = 0;
            for (int64_t i = 0; i < step.images; i++)
                blocks[i + 1] = blocks[i] + (step.ends[i + 1] - step.ends[i] + QUERIES - 1) / QUERIES;
        }
        c.barrier();
        c.each(0, blocks[step.images] * heads, [&](int64_t task) {
            // A head after another through an image, so that its keys and values stay near.
            int64_t image = std::upper_bound(blocks, blocks + step.images + 1, task / heads) - blocks - 1;
            int64_t own = blocks[image + 1] - blocks[image], local = task - blocks[image] * heads, head = local / own;
            int64_t begin = step.ends[image], count = step.ends[image + 1] - begin, slot = step.positions[begin];
            int64_t from = begin + local % own * QUERIES;
            int rows = int(std::min<int64_t>(QUERIES, begin + count - from));
            auto* asked = (T*)c.scratch;
            char* room = c.scratch + 4 * QUERIES * width;
            auto* memory = (float*)(room + ATTEND);
            const T* q[QUERIES];
            int64_t seen[QUERIES];
            for (int r = 0; r < rows; r++) {
                Form::prepare((const float*)it.p[0] + (from + r) * it.n[2] + head * width, asked + r * width, width,
                              float(it.f[0] * LOG2E));
                q[r] = asked + r * width;
                seen[r] = slot + count - 1;
            }
            Attended known(memory, rows), next(memory + Attended::floats(QUERIES, padded), rows);
            for (int64_t s = 0; s < count; s += PIECE) {
                attend<Form>(width, padded, q, seen, rows, keys_of(head), values_of(head), slot + s, std::min(PIECE, count - s), room,
                             s ? next : known);
                if (s) join(known, next, rows, padded);
            }
            finish(known, rows, padded, width,
                   [&](int r) { return (float*)it.p[3] + (from + r) * it.n[3] + head * width; });
        });
    });
}

}  // namespace glmc
