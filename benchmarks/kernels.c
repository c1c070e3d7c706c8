/* The algorithm of the product's learning kernel as a careful C programmer writes it.

   Compiled at run time by textbook_c.py, once per environment, so that sizes are constants:
     N_ACTIONS  actions;
     WIDTH      slots in every pair's alias table (absent: the law of the built-in `grid`);
     CONSTANT   the step size is `alpha` (absent: rescaled_linear by the pair's visits).

   Where the product does more, this does less, which favours C: one cheap random word a step
   (splitmix64 of a counter) serves exploration, the action and the outcome, with 24, 8 and 32 bits. */

#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;

struct row {
    double q[N_ACTIONS];
    u32 visits[N_ACTIONS];
};

struct slot {
    u32 threshold, same, other, unused; /* outcome: next_state << 8 | reward << 1 | terminated */
};

struct task {
    const struct slot *model;
    const double *rewards;
    const u64 *starts;
    u64 n_starts, limit, epsilon; /* epsilon: threshold of 2^24 */
    double discount, alpha;
    int64_t rows, columns;
    double slip, step_reward, goal_reward;
};

struct lane {
    u64 state, action, next_state;
    double reward, gain;
    u32 age, terminated;
};

struct totals {
    double returns, squares;
    u64 episodes;
};

static inline u64 splitmix64(u64 counter)
{
    u64 z = counter * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline double largest(const double *q)
{
    double value = q[0];
    for (int a = 1; a < N_ACTIONS; a++)
        value = q[a] > value ? q[a] : value;
    return value;
}

static inline u64 choose(const double *q, double value, u64 word, u64 epsilon)
{
    u64 draw = (word >> 24) & 0xFF;
    if ((word & 0xFFFFFF) < epsilon)
        return draw * N_ACTIONS >> 8;
    u32 tied = 0, passed = 0, index = 0;
    for (int a = 0; a < N_ACTIONS; a++)
        tied += q[a] == value;
    u32 wanted = (u32)draw * tied >> 8;
    for (int a = 0; a < N_ACTIONS - 1; a++) {
        passed += q[a] == value;
        index += passed <= wanted;
    }
    return index;
}

static inline u64 start(const struct task *task, u64 word)
{
    return task->starts[(splitmix64(word) >> 32) * task->n_starts >> 32];
}

#ifdef WIDTH
static inline void step(const struct task *task, struct lane *lane, u64 word)
{
    u64 scaled = (word >> 32) * WIDTH;
    const struct slot *slot =
        task->model + (lane->state * N_ACTIONS + lane->action) * WIDTH + (scaled >> 32);
    u32 code = (u32)scaled < slot->threshold ? slot->same : slot->other;
    lane->next_state = code >> 8;
    lane->reward = task->rewards[code >> 1 & 0x7F];
    lane->terminated = code & 1;
}
#else
static inline void step(const struct task *task, struct lane *lane, u64 word)
{
    int64_t columns = task->columns, cell = (int64_t)lane->state;
    double u = (double)(word >> 32) * 0x1p-32;
    int64_t i = (u >= 1.0 - task->slip) + (u >= 1.0 - task->slip * 0.5);
    int64_t move = ((int64_t)lane->action + i + (i >> 1)) & 3;
    int64_t row = cell / columns, column = cell - row * columns;
    row += (move == 2) - (move == 0);
    column += (move == 1) - (move == 3);
    row = row < 0 ? 0 : row > task->rows - 1 ? task->rows - 1 : row;
    column = column < 0 ? 0 : column > columns - 1 ? columns - 1 : column;
    cell = row * columns + column;
    lane->terminated = cell == task->rows * columns - 1;
    lane->reward = lane->terminated ? task->goal_reward : task->step_reward;
    lane->next_state = (u64)cell;
}
#endif

/* Learn from the transition the lane has made, choose the next action, make the next transition. */
static inline void advance(const struct task *task, struct row *table, struct lane *lane, u64 word,
                           struct totals *totals)
{
    u64 s = lane->next_state;
    double value = largest(table[s].q);
    u64 a = choose(table[s].q, value, word, task->epsilon);
    double *q = &table[lane->state].q[lane->action];
    u32 count = ++table[lane->state].visits[lane->action];
    double target = lane->reward + (lane->terminated ? 0.0 : task->discount * value);
    double td_error = target - *q;
    totals->squares += td_error * td_error;
#ifdef CONSTANT
    *q += task->alpha * td_error;
    (void)count;
#else
    *q += td_error / (1.0 + (1.0 - task->discount) * count);
#endif
    lane->gain += lane->reward;
    lane->age++;
    if (lane->terminated || lane->age >= task->limit) {
        totals->episodes++;
        totals->returns += lane->gain;
        lane->gain = 0.0;
        lane->age = 0;
        s = start(task, word);
        a = choose(table[s].q, largest(table[s].q), word, task->epsilon);
    }
    lane->state = s;
    lane->action = a;
    step(task, lane, word);
}

void begin(const struct task *task, struct lane *lanes, u64 n_lanes, u64 counter)
{
    for (u64 i = 0; i < n_lanes; i++) {
        u64 word = splitmix64(counter + i);
        lanes[i] = (struct lane){.state = start(task, word), .action = word >> 24 & 3};
        step(task, &lanes[i], word);
    }
}

/* One trajectory, its state in registers. */
void learn_one(const struct task *task, struct row *table, struct lane *lanes, u64 n_lanes,
               u64 n_steps, u64 counter, struct totals *totals)
{
    struct task here = *task;
    struct lane lane = lanes[0];
    struct totals sums = *totals;
    for (u64 i = 0; i < n_steps * n_lanes; i++)
        advance(&here, table, &lane, splitmix64(counter + i), &sums);
    lanes[0] = lane;
    *totals = sums;
}

/* Many trajectories in turn, so that their waits overlap. */
void learn_lanes(const struct task *task, struct row *table, struct lane *lanes, u64 n_lanes,
                 u64 n_steps, u64 counter, struct totals *totals)
{
    struct task here = *task;
    struct totals sums = *totals;
    for (u64 i = 0; i < n_steps; i++)
        for (u64 k = 0; k < n_lanes; k++)
            advance(&here, table, &lanes[k], splitmix64(counter + i * n_lanes + k), &sums);
    *totals = sums;
}
