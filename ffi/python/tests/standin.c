/* A libdflow without a node, for the tests of the binding: it hands out invocations that the test describes, checks
 * nothing, and records what it is told. It includes the real headers, so that a prototype that drifts does not
 * compile. Not thread-safe; one worker. */
#include "dflow_worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORTS 4
#define ROOM (1 << 20)

struct dflow_ctx {
    int calls_left;
    int inputs, outputs;
    dflow_info info;
    dflow_input in[PORTS];
    dflow_output out[PORTS];
    char memory[PORTS][ROOM];
    uint32_t list_len;
    char log[1 << 16];
};

static struct dflow_ctx it;
static int refuse; /* answer every call of a function with this code */

static void record(const char *what, long a, const void *data, uint64_t bytes) {
    size_t used = strlen(it.log);
    snprintf(it.log + used, sizeof it.log - used, "%s %ld %.*s\n", what, a, (int)bytes, (const char *)data);
}

/* ---- the test's own handles ---- */

void standin_reset(int calls, uint64_t run) {
    memset(&it, 0, sizeof it);
    refuse = 0;
    it.calls_left = calls;
    it.info = (dflow_info){run, "flow", "step-name", 1, 2, 3, 4, 5000};
}
void standin_input(const char *name, uint32_t type, uint32_t shape, uint32_t state, const void *data, uint64_t bytes) {
    it.in[it.inputs++] = (dflow_input){name, data, bytes, (uint32_t)strlen(name), type, shape, state};
}
void standin_output(const char *name, uint32_t type, uint32_t kind, uint64_t bytes_max) {
    it.out[it.outputs++] = (dflow_output){name, bytes_max, (uint32_t)strlen(name), type, kind, 10};
}
void standin_list(uint32_t len) { it.list_len = len; }
void standin_refuse(int code) { refuse = code; }
const char *standin_log(void) { return it.log; }
dflow_worker *standin_worker(void) { return (dflow_worker *)&it; }

/* ---- zygote and worker ---- */

int dflow_zygote_open(int argc, const char *const *argv, dflow_zygote **zygote) {
    standin_reset(1, 9);
    for (int i = 0; i < argc; i++) record("arg", i, argv[i], strlen(argv[i]));
    *zygote = (dflow_zygote *)&it;
    return argv[argc] == NULL ? DFLOW_OK : DFLOW_E_ARGUMENT;
}
int dflow_zygote_failed(dflow_zygote *zygote, const char *message, const char *traceback) {
    (void)zygote;
    printf("failed: %s\n%s", message, traceback);
    fflush(stdout);
    return DFLOW_OK;
}
int dflow_zygote_serve(dflow_zygote *zygote, dflow_fork_fn fork_fn, void *user, dflow_worker **worker) {
    int pid = fork_fn(user);
    *worker = (dflow_worker *)zygote;
    if (pid == 0) return DFLOW_WORKER;
    printf("forked: %d\n", pid > 0 ? 1 : errno);
    fflush(stdout);
    return DFLOW_OK;
}
int dflow_worker_next(dflow_worker *worker, dflow_call *call) {
    (void)worker;
    if (it.calls_left-- <= 0) return DFLOW_END;
    *call = (dflow_call){&it, &it.info, it.in, it.out, (uint32_t)it.inputs, (uint32_t)it.outputs, 77};
    return DFLOW_OK;
}
int dflow_worker_end(dflow_worker *worker, const char *name, const char *message) {
    (void)worker;
    record(name ? name : "ok", 0, message, message ? strlen(message) : 0);
    return DFLOW_OK;
}
int dflow_worker_end_exit(dflow_worker *worker, int code) {
    (void)worker;
    record("exit", code, "", 0);
    return DFLOW_OK;
}
int dflow_worker_taint(dflow_worker *worker) {
    (void)worker;
    record("taint", 0, "", 0);
    return DFLOW_OK;
}

/* ---- a function's calls ---- */

const char *dflow_last_error(void) { return "the stand-in refuses"; }
int dflow_get(dflow_ctx *ctx, int in, dflow_view *view) {
    if (refuse) return refuse;
    *view = (dflow_view){ctx->in[in].data, ctx->in[in].bytes};
    return DFLOW_OK;
}
int dflow_get_item(dflow_ctx *ctx, int in, uint32_t item, dflow_view *view) {
    if (refuse) return refuse;
    if (item >= ctx->list_len) return DFLOW_END;
    *view = (dflow_view){(const char *)ctx->in[in].data + item, 1};
    return DFLOW_OK;
}
int dflow_count(dflow_ctx *ctx, int in, uint32_t *count) {
    (void)in;
    *count = ctx->list_len;
    return refuse;
}
int dflow_read(dflow_ctx *ctx, int in, uint32_t item, uint64_t offset, uint64_t bytes_min, dflow_view *view) {
    record("read", (long)offset, "", 0);
    (void)item, (void)bytes_min;
    if (refuse) return refuse;
    if (offset >= ctx->in[in].bytes) return DFLOW_END;
    *view = (dflow_view){(const char *)ctx->in[in].data + offset, ctx->in[in].bytes - offset};
    return DFLOW_OK;
}
int dflow_put(dflow_ctx *ctx, int out, const void *data, uint64_t bytes) {
    (void)ctx;
    record("put", out, data, bytes);
    return refuse;
}
int dflow_reserve(dflow_ctx *ctx, int out, uint64_t bytes_max, void **data) {
    if (refuse || bytes_max > ROOM) return refuse ? refuse : DFLOW_E_NO_MEMORY;
    *data = ctx->memory[out];
    return DFLOW_OK;
}
int dflow_commit(dflow_ctx *ctx, int out, uint64_t watermark) {
    record("commit", out, ctx->memory[out], watermark);
    return refuse;
}
int dflow_seal(dflow_ctx *ctx, int out, uint64_t bytes) {
    record("seal", out, ctx->memory[out], bytes);
    return refuse;
}
