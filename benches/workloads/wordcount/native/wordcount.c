/* Word Count's functions, native. A word is a maximal run of ASCII letters, lower-cased.
 *
 * A table is text: lines "word count", sorted by word, the same as the Python functions write. The
 * table that `count` hands to `merge` is written straight into the store, and read from there. */

/* open_memstream */
#define _POSIX_C_SOURCE 200809L

#include <dflow.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- Letters ---------------------------------------------------------------------------------- */

/* The lower-case letter that a byte stands for, 0 for what separates words. */
static unsigned char fold[256];

__attribute__((constructor)) static void fill_fold(void)
{
    for (int letter = 'a'; letter <= 'z'; letter++) {
        fold[letter] = (unsigned char)letter;
        fold[letter - 'a' + 'A'] = (unsigned char)letter;
    }
}

/* -- Counts: a hash table over an arena of words ------------------------------------------------ */

struct entry {
    uint64_t count;
    uint32_t hash;
    uint32_t word_bytes;
    size_t word; /* offset in `letters`; meaningless while `count` is 0 */
};

struct counts {
    struct entry *entries;
    size_t capacity; /* a power of two */
    size_t used;
    unsigned char *letters;
    size_t letters_bytes, letters_capacity;
};

static bool counts_open(struct counts *counts)
{
    *counts = (struct counts){.capacity = 1u << 16, .letters_capacity = 1u << 20};
    counts->entries = calloc(counts->capacity, sizeof *counts->entries);
    counts->letters = malloc(counts->letters_capacity);
    return counts->entries && counts->letters;
}

static void counts_close(struct counts *counts)
{
    free(counts->entries);
    free(counts->letters);
}

static bool counts_grow(struct counts *counts)
{
    size_t capacity = counts->capacity * 2;
    struct entry *entries = calloc(capacity, sizeof *entries);
    if (!entries)
        return false;
    for (size_t i = 0; i < counts->capacity; i++) {
        const struct entry *old = &counts->entries[i];
        if (!old->count)
            continue;
        size_t at = old->hash & (capacity - 1);
        while (entries[at].count)
            at = (at + 1) & (capacity - 1);
        entries[at] = *old;
    }
    free(counts->entries);
    counts->entries = entries;
    counts->capacity = capacity;
    return true;
}

/* Keeps a copy of a word; its offset, or SIZE_MAX when memory is short. */
static size_t counts_keep(struct counts *counts, const unsigned char *word, size_t bytes)
{
    while (counts->letters_capacity - counts->letters_bytes < bytes) {
        unsigned char *letters = realloc(counts->letters, counts->letters_capacity * 2);
        if (!letters)
            return SIZE_MAX;
        counts->letters = letters;
        counts->letters_capacity *= 2;
    }
    size_t offset = counts->letters_bytes;
    memcpy(counts->letters + offset, word, bytes);
    counts->letters_bytes += bytes;
    return offset;
}

/* Adds `n` (not 0) to the count of a lower-case word whose hash is `hash`; false when memory is short. */
static bool counts_add(struct counts *counts, const unsigned char *word, size_t bytes, uint32_t hash, uint64_t n)
{
    size_t at = hash & (counts->capacity - 1);
    for (struct entry *entry; (entry = &counts->entries[at])->count; at = (at + 1) & (counts->capacity - 1)) {
        if (entry->hash == hash && entry->word_bytes == bytes &&
            memcmp(counts->letters + entry->word, word, bytes) == 0) {
            entry->count += n;
            return true;
        }
    }
    size_t kept = counts_keep(counts, word, bytes);
    if (kept == SIZE_MAX || bytes > UINT32_MAX)
        return false;
    counts->entries[at] = (struct entry){.count = n, .hash = hash, .word_bytes = (uint32_t)bytes, .word = kept};
    counts->used++;
    return counts->used * 2 <= counts->capacity || counts_grow(counts);
}

/* FNV-1a, one letter at a time, so that folding, hashing and finding the end are one pass. */
static const uint32_t HASH_SEED = 2166136261u, HASH_PRIME = 16777619u;

/* Counts the words of `text`. */
static bool counts_read_text(struct counts *counts, const unsigned char *text, size_t bytes)
{
    size_t room = 256, length = 0;
    unsigned char *word = malloc(room);
    uint32_t hash = HASH_SEED;
    bool ok = word != NULL;
    for (size_t at = 0; ok && at <= bytes; at++) {
        unsigned char letter = at < bytes ? fold[text[at]] : 0;
        if (letter) {
            if (length == room) {
                unsigned char *longer = realloc(word, room * 2);
                ok = longer != NULL;
                if (!ok)
                    break;
                word = longer;
                room *= 2;
            }
            word[length++] = letter;
            hash = (hash ^ letter) * HASH_PRIME;
        } else if (length) {
            ok = counts_add(counts, word, length, hash, 1);
            length = 0;
            hash = HASH_SEED;
        }
    }
    free(word);
    return ok;
}

/* Adds up the lines of a table. */
static bool counts_read_table(struct counts *counts, const unsigned char *table, size_t bytes)
{
    for (size_t at = 0; at < bytes; at++) {
        size_t begin = at;
        uint32_t hash = HASH_SEED;
        for (; at < bytes && table[at] != ' '; at++)
            hash = (hash ^ table[at]) * HASH_PRIME;
        size_t end = at++;
        uint64_t n = 0;
        for (; at < bytes && table[at] != '\n'; at++)
            n = n * 10 + (uint64_t)(table[at] - '0');
        if (n && !counts_add(counts, table + begin, end - begin, hash, n))
            return false;
    }
    return true;
}

/* -- Order -------------------------------------------------------------------------------------- */

struct ranked {
    const unsigned char *word;
    uint32_t word_bytes;
    uint64_t count;
};

static int by_word(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    uint32_t shared = a->word_bytes < b->word_bytes ? a->word_bytes : b->word_bytes;
    int order = memcmp(a->word, b->word, shared);
    return order ? order : (a->word_bytes > b->word_bytes) - (a->word_bytes < b->word_bytes);
}

static int by_count(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    return a->count != b->count ? (a->count < b->count ? 1 : -1) : by_word(left, right);
}

/* All words, sorted by word: `counts->used` of them, to be freed. NULL when memory is short. */
static struct ranked *ranked_of(const struct counts *counts)
{
    struct ranked *all = malloc((counts->used + 1) * sizeof *all);
    size_t n = 0;
    for (size_t i = 0; all && i < counts->capacity; i++) {
        const struct entry *entry = &counts->entries[i];
        if (entry->count)
            all[n++] = (struct ranked){counts->letters + entry->word, entry->word_bytes, entry->count};
    }
    if (all)
        qsort(all, n, sizeof *all, by_word);
    return all;
}

static size_t digits(uint64_t n)
{
    size_t count = 1;
    while (n /= 10)
        count++;
    return count;
}

/* -- Ports -------------------------------------------------------------------------------------- */

static int no_memory(dflow_ctx *ctx)
{
    return dflow_fail(ctx, "NoMemory", "the table of words does not fit; raise resources.memory or use more shards");
}

/* A whole number from input `name`; false, with the invocation failed, when it is none. */
static bool number(dflow_ctx *ctx, const char *name, uint64_t max, uint64_t *value)
{
    const char *text = dflow_param(ctx, name);
    char *end = NULL;
    errno = 0;
    unsigned long long parsed = text ? strtoull(text, &end, 10) : 0;
    if (!text || end == text || *end || errno || parsed > max) {
        char message[160];
        snprintf(message, sizeof message, "input %s is \"%.40s\"; give a whole number from 0 to %" PRIu64, name,
                 text ? text : "nothing", max);
        dflow_fail(ctx, "BadNumber", message);
        return false;
    }
    *value = parsed;
    return true;
}

/* Puts the table of `all`, built where its readers will find it. */
static int put_table(dflow_ctx *ctx, int out, const struct ranked *all, size_t n)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += all[i].word_bytes + 1 + digits(all[i].count) + 1;
    void *room;
    int rc = dflow_reserve(ctx, out, bytes, &room);
    if (rc != DFLOW_OK)
        return rc;
    unsigned char *at = room;
    for (size_t i = 0; i < n; i++) {
        memcpy(at, all[i].word, all[i].word_bytes);
        at += all[i].word_bytes;
        *at++ = ' ';
        size_t width = digits(all[i].count);
        uint64_t rest = all[i].count;
        for (size_t digit = width; digit-- > 0; rest /= 10)
            at[digit] = (unsigned char)('0' + rest % 10);
        at += width;
        *at++ = '\n';
    }
    return dflow_seal(ctx, out, bytes);
}

/* Puts the summary as JSON: total, distinct, and the `top` most frequent words. Reorders `all`. */
static int put_summary(dflow_ctx *ctx, int out, struct ranked *all, size_t n, uint64_t top)
{
    uint64_t words = 0;
    for (size_t i = 0; i < n; i++)
        words += all[i].count;
    qsort(all, n, sizeof *all, by_count);
    if (top > n)
        top = n;
    char *json = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&json, &bytes);
    if (!file)
        return no_memory(ctx);
    fprintf(file, "{\"words\": %" PRIu64 ", \"distinct\": %zu, \"top\": [", words, n);
    for (uint64_t i = 0; i < top; i++) {
        fprintf(file, "%s[\"", i ? ", " : "");
        fwrite(all[i].word, 1, all[i].word_bytes, file);
        fprintf(file, "\", %" PRIu64 "]", all[i].count);
    }
    fputs("]}", file);
    int rc = fclose(file) == 0 ? dflow_put(ctx, out, json, bytes) : no_memory(ctx);
    free(json);
    return rc;
}

/* -- The functions ------------------------------------------------------------------------------ */

#define EXPORT __attribute__((visibility("default")))

/* text, shards -> piece: `shards` pieces of about the same size, none of which ends inside a word. */
EXPORT int wordcount_split(dflow_ctx *ctx)
{
    uint64_t shards;
    dflow_view text;
    int rc = dflow_get(ctx, dflow_in(ctx, "text"), &text);
    if (rc != DFLOW_OK)
        return rc;
    if (!number(ctx, "shards", 1u << 20, &shards))
        return DFLOW_E_FAILED;
    const unsigned char *bytes = text.data;
    int piece = dflow_out(ctx, "piece");
    uint64_t begin = 0;
    for (uint64_t shard = 1; rc == DFLOW_OK && shard <= shards; shard++) {
        /* Multiplied in parts, so that no size overflows. */
        uint64_t end = text.bytes / shards * shard + text.bytes % shards * shard / shards;
        if (end < begin)
            end = begin;
        while (end > 0 && end < text.bytes && fold[bytes[end - 1]] && fold[bytes[end]])
            end++;
        rc = dflow_put(ctx, piece, bytes + begin, end - begin);
        begin = end;
    }
    return rc;
}

/* text -> table */
EXPORT int wordcount_count(dflow_ctx *ctx)
{
    dflow_view text;
    int rc = dflow_get(ctx, dflow_in(ctx, "text"), &text);
    if (rc != DFLOW_OK)
        return rc;
    struct counts counts;
    struct ranked *all = NULL;
    bool ok = counts_open(&counts) && counts_read_text(&counts, text.data, text.bytes) && (all = ranked_of(&counts));
    rc = ok ? put_table(ctx, dflow_out(ctx, "table"), all, counts.used) : no_memory(ctx);
    free(all);
    counts_close(&counts);
    return rc;
}

/* tables, top -> counts, top. Adds each table up as soon as it appears. */
EXPORT int wordcount_merge(dflow_ctx *ctx)
{
    uint64_t top;
    if (!number(ctx, "top", UINT32_MAX, &top))
        return DFLOW_E_FAILED;
    struct counts counts;
    struct ranked *all = NULL;
    bool ok = counts_open(&counts);
    int rc = DFLOW_OK, in = dflow_in(ctx, "tables");
    dflow_view table;
    while (ok && (rc = dflow_next(ctx, in, &table)) == DFLOW_OK)
        ok = counts_read_table(&counts, table.data, table.bytes);
    if (ok && rc == DFLOW_END) {
        all = ranked_of(&counts);
        ok = all != NULL;
        rc = DFLOW_OK;
    }
    if (!ok)
        rc = no_memory(ctx);
    if (rc == DFLOW_OK)
        rc = put_table(ctx, dflow_out(ctx, "counts"), all, counts.used);
    if (rc == DFLOW_OK)
        rc = put_summary(ctx, dflow_out(ctx, "top"), all, counts.used, top);
    free(all);
    counts_close(&counts);
    return rc;
}
