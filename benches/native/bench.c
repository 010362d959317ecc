/* Functions that measure. Numbers are handed on as 8-byte words of this machine; times are
 * CLOCK_MONOTONIC in nanoseconds, which all processes share. */

/* clock_gettime, aligned_alloc, madvise */
#define _DEFAULT_SOURCE

#include <dflow.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define TRY(call)                  \
    do {                           \
        int rc_ = (call);          \
        if (rc_ != DFLOW_OK)       \
            return rc_;            \
    } while (0)

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void compute_until(uint64_t end_ns)
{
    while (now_ns() < end_ns)
        ;
}

/* The input `name` as a number, 0 if there is none. */
static uint64_t number(dflow_ctx *ctx, const char *name)
{
    const char *text = dflow_param(ctx, name);
    return text ? strtoull(text, NULL, 10) : 0;
}

static int put_words(dflow_ctx *ctx, const char *port, const uint64_t *words, size_t count)
{
    return dflow_put(ctx, dflow_out(ctx, port), words, count * sizeof *words);
}

/* -- Steps that do nothing ---------------------------------------------------------------------- */

/* out: [time of the first line] */
EXPORT int bench_begin(dflow_ctx *ctx)
{
    uint64_t now = now_ns();
    return put_words(ctx, "out", &now, 1);
}

/* in: [begin, ..]; out: [begin, time at which the input was there] */
EXPORT int bench_step(dflow_ctx *ctx)
{
    dflow_view in;
    TRY(dflow_get(ctx, dflow_in(ctx, "in"), &in));
    uint64_t words[2] = {0, now_ns()};
    if (in.bytes >= sizeof words[0])
        memcpy(words, in.data, sizeof words[0]);
    return put_words(ctx, "out", words, 2);
}

/* in: a list; out: [number of its items] */
EXPORT int bench_join(dflow_ctx *ctx)
{
    uint64_t count = 0;
    int in = dflow_in(ctx, "in"), rc;
    dflow_view item;
    while ((rc = dflow_next(ctx, in, &item)) == DFLOW_OK)
        count++;
    return rc == DFLOW_END ? put_words(ctx, "out", &count, 1) : rc;
}

/* -- Hand-over ---------------------------------------------------------------------------------- */

/* Computes until the reader is surely asleep, fills `bytes` bytes in place, seals them.
 * out: data; times: [just before the seal, just after it] */
EXPORT int bench_produce(dflow_ctx *ctx)
{
    uint64_t bytes = number(ctx, "bytes");
    int out = dflow_out(ctx, "data");
    void *data;
    compute_until(now_ns() + 2000000);
    TRY(dflow_reserve(ctx, out, bytes, &data));
    memset(data, (int)(bytes & 0x7f) + 1, bytes);
    uint64_t times[2];
    times[0] = now_ns();
    int rc = dflow_seal(ctx, out, bytes);
    times[1] = now_ns();
    TRY(rc);
    return put_words(ctx, "times", times, 2);
}

/* times: [before the get, after it, length] */
EXPORT int bench_consume(dflow_ctx *ctx)
{
    int in = dflow_in(ctx, "data");
    dflow_view data;
    uint64_t times[3];
    times[0] = now_ns();
    TRY(dflow_get(ctx, in, &data));
    times[1] = now_ns();
    times[2] = data.bytes;
    const unsigned char *bytes = data.data, mark = (unsigned char)((data.bytes & 0x7f) + 1);
    if (data.bytes && (bytes[0] != mark || bytes[data.bytes - 1] != mark))
        return dflow_fail(ctx, "WrongBytes", "the object is not what its producer wrote");
    return put_words(ctx, "times", times, 3);
}

/* -- Writing ------------------------------------------------------------------------------------ */

static unsigned char *source, *target;
static uint64_t held_bytes;

/* Private memory that is used again and again, of huge pages where there are. */
static unsigned char *reused(uint64_t bytes)
{
    const uint64_t huge = 2u << 20;
    unsigned char *memory = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
    if (!memory)
        return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 0x5a, bytes);
    return memory;
}

static int write_memory(uint64_t *spent)
{
    uint64_t begin = now_ns();
    memcpy(target, source, held_bytes);
    /* Without this the copy, which nobody reads, may be left out. */
    __asm__ volatile("" ::"r"(target) : "memory");
    *spent = now_ns() - begin;
    return DFLOW_OK;
}

static int write_reserved(dflow_ctx *ctx, uint64_t *spent, uint64_t *filling)
{
    void *data;
    int out = dflow_out(ctx, "reserved");
    uint64_t begin = now_ns();
    TRY(dflow_reserve(ctx, out, held_bytes, &data));
    uint64_t fill = now_ns();
    memcpy(data, source, held_bytes);
    *filling = now_ns() - fill;
    TRY(dflow_seal(ctx, out, held_bytes));
    *spent = now_ns() - begin;
    return DFLOW_OK;
}

static int write_put(dflow_ctx *ctx, uint64_t *spent)
{
    uint64_t begin = now_ns();
    TRY(dflow_put(ctx, dflow_out(ctx, "put"), source, held_bytes));
    *spent = now_ns() - begin;
    return DFLOW_OK;
}

/* Writes `bytes` bytes three ways, beginning with another one each time.
 * times: [memcpy into reused private memory, reserve + fill + seal, the fill alone, put] */
EXPORT int bench_write(dflow_ctx *ctx)
{
    uint64_t times[4] = {0};
    uint64_t bytes = number(ctx, "bytes"), turn = number(ctx, "turn");
    if (bytes != held_bytes) {
        free(source);
        free(target);
        source = reused(bytes);
        target = reused(bytes);
        held_bytes = bytes;
        if (!source || !target)
            return dflow_fail(ctx, "MemoryError", "no memory for the reference copy");
    }
    for (uint64_t i = 0; i < 3; i++) {
        switch ((turn + i) % 3) {
        case 0: TRY(write_memory(&times[0])); break;
        case 1: TRY(write_reserved(ctx, &times[1], &times[2])); break;
        case 2: TRY(write_put(ctx, &times[3])); break;
        }
    }
    return put_words(ctx, "times", times, 4);
}
