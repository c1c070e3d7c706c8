/* What a core can do at best with random rows: read 4 values and a count, write one of each. */

#include <stdint.h>

enum { AHEAD = 64, GROUP = 16 };

struct row {
    float q[4];
    uint32_t visits[4];
};

static inline uint64_t row_of(uint64_t number, uint64_t rows)
{
    uint64_t z = number * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return ((z ^ (z >> 31)) >> 32) * rows >> 32;
}

/* `updates` of them (a multiple of AHEAD), the `first`th first; AHEAD rows are under way. */
void random_rows(struct row *table, uint64_t rows, uint64_t updates, uint64_t first)
{
    uint64_t ring[2][AHEAD];
    for (int i = 0; i < AHEAD; i++) {
        ring[0][i] = row_of(first + i, rows);
        __builtin_prefetch(&table[ring[0][i]], 1);
    }
    for (uint64_t batch = 0; batch < updates / AHEAD; batch++) {
        uint64_t *now = ring[batch & 1], *then = ring[1 - (batch & 1)];
        for (int i = 0; i < AHEAD; i++)
            then[i] = row_of(first + (batch + 1) * AHEAD + i, rows);
        for (int group = 0; group < AHEAD; group += GROUP) {
            for (int i = group; i < group + GROUP; i++) {
                struct row *row = &table[now[i]];
                float a = row->q[0] > row->q[1] ? row->q[0] : row->q[1];
                float b = row->q[2] > row->q[3] ? row->q[2] : row->q[3];
                row->q[0] = 0.5f * (a > b ? a : b) + 1.0f;
                row->visits[0] += 1;
            }
            for (int i = group; i < group + GROUP; i++)
                __builtin_prefetch(&table[then[i]], 1);
        }
    }
}
