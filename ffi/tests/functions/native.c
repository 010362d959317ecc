/* Native functions for the tests: one per use, or misuse, of dflow.h. */
#include <dflow.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Reads `text`, puts it in upper case, prints a line. */
int upper(dflow_ctx *ctx) {
    dflow_view text;
    int rc = dflow_get(ctx, dflow_in(ctx, "text"), &text);
    if (rc != DFLOW_OK) return rc;
    char *copy = malloc(text.bytes + 1);
    for (uint64_t i = 0; i < text.bytes; i++) {
        char c = ((const char *)text.data)[i];
        copy[i] = c >= 'a' && c <= 'z' ? c - 32 : c;
    }
    const dflow_info *info = dflow_about(ctx);
    printf("%s/%s attempt %u: %llu bytes\n", info->workflow, info->step, info->attempt,
           (unsigned long long)text.bytes);
    rc = dflow_put(ctx, dflow_out(ctx, "out"), copy, text.bytes);
    free(copy);
    return rc;
}

/* Fills `bytes` bytes in place, showing them step by step, and seals one page less than reserved. */
int fill(dflow_ctx *ctx) {
    uint64_t bytes = strtoull(dflow_param(ctx, "bytes"), NULL, 10);
    int out = dflow_out(ctx, "out");
    unsigned char *data;
    int rc = dflow_reserve(ctx, out, bytes + 4096, (void **)&data);
    if (rc != DFLOW_OK) return rc;
    if (dflow_reserve(ctx, out, 1, (void **)&data) != DFLOW_E_BUSY) return 70;
    for (uint64_t i = 0; i < bytes; i++) {
        data[i] = (unsigned char)(i * 31);
        if (i % (1 << 20) == 0 && (rc = dflow_commit(ctx, out, i)) != DFLOW_OK) return rc;
    }
    return dflow_seal(ctx, out, bytes);
}

/* Puts the bytes of `text` one put per line as items. */
int lines(dflow_ctx *ctx) {
    dflow_view text;
    if (dflow_get(ctx, dflow_in(ctx, "text"), &text) != DFLOW_OK) return 71;
    const char *line = text.data, *end = line + text.bytes;
    while (line < end) {
        const char *next = memchr(line, '\n', end - line);
        next = next ? next + 1 : end;
        int rc = dflow_put(ctx, 0, line, next - line);
        if (rc != DFLOW_OK) return rc;
        line = next;
    }
    return DFLOW_OK;
}

/* Reads `text` as it grows and puts what it saw, with a bar where a read ended. */
int follow(dflow_ctx *ctx) {
    char seen[65536];
    uint64_t offset = 0, n = 0;
    dflow_view part;
    int rc;
    while ((rc = dflow_read(ctx, dflow_in(ctx, "text"), 0, offset, 0, &part)) == DFLOW_OK) {
        memcpy(seen + n, part.data, part.bytes);
        offset += part.bytes;
        n += part.bytes;
        seen[n++] = '|';
    }
    return rc == DFLOW_END ? dflow_put(ctx, dflow_out(ctx, "out"), seen, n) : rc;
}

/* Joins the items of `list` and puts them with their number. */
int join(dflow_ctx *ctx) {
    char seen[65536];
    uint64_t n = 0;
    dflow_view item;
    int list = dflow_in(ctx, "list"), rc;
    while ((rc = dflow_next(ctx, list, &item)) == DFLOW_OK) {
        memcpy(seen + n, item.data, item.bytes);
        n += item.bytes;
    }
    if (rc != DFLOW_END) return rc;
    uint32_t count;
    if ((rc = dflow_count(ctx, list, &count)) != DFLOW_OK) return rc;
    n += sprintf(seen + n, "(%u)", count);
    return dflow_put(ctx, dflow_out(ctx, "out"), seen, n);
}

int put_twice(dflow_ctx *ctx) {
    int out = dflow_out(ctx, "out");
    if (dflow_put(ctx, out, "a", 1) != DFLOW_OK) return 72;
    if (dflow_put(ctx, out, "b", 1) != DFLOW_E_SEALED) return 73;
    return DFLOW_OK;
}

int put_never(dflow_ctx *ctx) {
    (void)ctx;
    return DFLOW_OK;
}

int put_too_much(dflow_ctx *ctx) {
    void *data;
    if (dflow_reserve(ctx, 0, 100, &data) != DFLOW_OK) return 74;
    return dflow_seal(ctx, 0, 101);
}

int reserve_only(dflow_ctx *ctx) {
    void *data;
    return dflow_reserve(ctx, 0, strtoull(dflow_param(ctx, "bytes"), NULL, 10), &data);
}

int write_after_seal(dflow_ctx *ctx) {
    char *data;
    if (dflow_reserve(ctx, 0, 100, (void **)&data) != DFLOW_OK) return 75;
    data[0] = 'x';
    if (dflow_seal(ctx, 0, 1) != DFLOW_OK) return 76;
    data[0] = 'y';
    return DFLOW_OK;
}

int write_to_input(dflow_ctx *ctx) {
    dflow_view text;
    if (dflow_get(ctx, 0, &text) != DFLOW_OK) return 77;
    *(char *)text.data = 'y';
    return DFLOW_OK;
}

int own_error(dflow_ctx *ctx) {
    return dflow_fail(ctx, "Sour", "the milk is sour");
}

int own_status(dflow_ctx *ctx) {
    (void)ctx;
    return 17;
}

/* Every misuse that can be seen is a code. */
int misuse(dflow_ctx *ctx) {
    dflow_view view;
    void *data;
    int n = 0;
    n += dflow_in(ctx, "nosuch") == DFLOW_E_NAME && strstr(dflow_last_error(), "text, list") != NULL;
    n += dflow_get(ctx, dflow_in(ctx, "nosuch"), &view) == DFLOW_E_NAME;
    n += dflow_get(ctx, 99, &view) == DFLOW_E_NAME;
    n += dflow_get(ctx, 0, NULL) == DFLOW_E_ARGUMENT;
    n += dflow_get(NULL, 0, &view) == DFLOW_E_ARGUMENT;
    n += dflow_get(ctx, 1, &view) == DFLOW_E_TYPE;
    n += dflow_next(ctx, 0, &view) == DFLOW_E_TYPE;
    n += dflow_get(ctx, 2, &view) == DFLOW_NULL;
    n += dflow_seal(ctx, 0, 1) == DFLOW_E_ARGUMENT;
    n += dflow_commit(ctx, 0, 1) == DFLOW_E_ARGUMENT;
    n += dflow_put(ctx, 0, NULL, 5) == DFLOW_E_ARGUMENT;
    n += dflow_put(ctx, 0, "x", UINT64_MAX) == DFLOW_E_ARGUMENT;
    n += dflow_reserve(ctx, 0, 1ULL << 40, &data) == DFLOW_E_NO_MEMORY;
    n += dflow_close(ctx, 0) == DFLOW_E_TYPE;
    n += strcmp(dflow_strerror(DFLOW_E_BUSY), "DFLOW_E_BUSY") == 0;
    return n == 15 ? dflow_put(ctx, 0, "15", 2) : 100 + n;
}

/* Leaves a grandchild behind that has a session of its own, and puts its pid. */
int daemonize(dflow_ctx *ctx) {
    int fds[2];
    if (pipe(fds) != 0) return 78;
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (fork() == 0) {
            pid_t self = getpid();
            if (write(fds[1], &self, sizeof self) != sizeof self) _exit(1);
            sleep(60);
        }
        _exit(0);
    }
    pid_t daemon;
    if (read(fds[0], &daemon, sizeof daemon) != sizeof daemon) return 79;
    waitpid(child, NULL, 0);
    char text[32];
    return dflow_put(ctx, 0, text, sprintf(text, "%d", daemon));
}
