/* dflow.h - the C interface of a DFlow function.
 *
 * A native function is a shared library that exports
 *
 *     int dflow_main(dflow_ctx *ctx);
 *
 * (or another name, given as `symbol` in the workflow file). It is called once per invocation; any
 * number of invocations follow one another in one process. It reads its inputs, puts each of its
 * outputs once, and returns DFLOW_OK. Inputs may not be complete, or not even begun, when it is
 * called: every function below that reads one blocks until what it asks for is there.
 *
 *     #include <dflow.h>
 *     int dflow_main(dflow_ctx *ctx) {
 *         dflow_view text;
 *         int rc = dflow_get(ctx, dflow_in(ctx, "text"), &text);
 *         if (rc != DFLOW_OK) return rc;
 *         uint64_t lines = 0;
 *         for (uint64_t i = 0; i < text.bytes; i++) lines += ((const char *)text.data)[i] == '\n';
 *         char out[32];
 *         return dflow_put(ctx, dflow_out(ctx, "lines"), out, sprintf(out, "%llu", (unsigned long long)lines));
 *     }
 *
 * Link with -ldflow. Ports are named by an index: dflow_in and dflow_out find it. A negative index
 * (the error of a lookup) may be passed on: the call then returns that error, so only one result
 * needs a check. All calls may be made from any thread of the process while the invocation runs.
 * Results are DFLOW_OK, a positive code that says something, or a negative error; errors also set
 * a message (dflow_last_error) that says what to do. Sizes and offsets are in bytes.
 *
 * An invocation ends in success when the function returns DFLOW_OK and every output has been put
 * (lists are closed by themselves). It fails with class error:NAME when dflow_fail was called; when
 * an output was put twice (PutTwice), never put (OutputMissing) or exceeds its size
 * (OutputTooLarge), whatever the function returns; when the function returns a negative code of
 * this file (error:DFLOW_E_...); and with class exit:N when it returns another non-zero number N.
 */
#ifndef DFLOW_H
#define DFLOW_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface. Additions do not change it. */
#define DFLOW_ABI 1

enum {
    DFLOW_OK = 0,
    DFLOW_END = 1,         /* the list has no such item, or the stream no byte, and never will */
    DFLOW_NULL = 2,        /* the input is optional and its source was skipped */
    DFLOW_WORKER = 3,      /* only dflow_zygote_serve: this process is the new worker */

    DFLOW_E_ARGUMENT = -1, /* a null pointer, or a number out of range */
    DFLOW_E_NAME = -2,     /* the step has no port of this name or index */
    DFLOW_E_TYPE = -3,     /* the port is a list and was used as one object, or the reverse */
    DFLOW_E_SEALED = -4,   /* the output was put before; the invocation will fail (PutTwice) */
    DFLOW_E_TOO_LARGE = -5,/* beyond the reserved or the declared size; it will fail (OutputTooLarge) */
    DFLOW_E_BUSY = -6,     /* the port has a reservation that is not sealed yet */
    DFLOW_E_NO_MEMORY = -7,/* the store can never hold this much */
    DFLOW_E_INPUT = -8,    /* the input will never be complete: return, the invocation is over */
    DFLOW_E_TOO_MANY = -9, /* more items than the port may have; it will fail (TooManyItems) */
    DFLOW_E_FAILED = -10,  /* dflow_fail was called */
    DFLOW_E_NODE = -11     /* the node is gone or speaks another protocol */
};

/* One invocation. Valid until the function returns. */
typedef struct dflow_ctx dflow_ctx;

/* Bytes to read, in memory shared with their producer. Valid until the function returns. Writing
 * there is a segmentation fault. `data` is never null, even if `bytes` is 0. */
typedef struct dflow_view {
    const void *data;
    uint64_t bytes;
} dflow_view;

/* What is being executed. Strings are UTF-8, NUL-terminated. */
typedef struct dflow_info {
    uint64_t run;
    const char *workflow;  /* name of the workflow */
    const char *step;      /* name of the step */
    uint32_t step_index;
    uint32_t item;         /* index in a foreach, else 0 */
    uint32_t attempt;      /* from 1 */
    uint32_t threads;      /* threads the function may keep busy */
    uint64_t timeout_ms;   /* time the attempt has in all, 0 for no limit */
} dflow_info;

const dflow_info *dflow_about(dflow_ctx *ctx);

/* ---- Inputs ------------------------------------------------------------------------------- */

/* Index of the input (output) port of this name, or DFLOW_E_NAME. */
int dflow_in(dflow_ctx *ctx, const char *name);
int dflow_out(dflow_ctx *ctx, const char *name);

/* The whole object. Blocks until it is complete. DFLOW_NULL if it was skipped. */
int dflow_get(dflow_ctx *ctx, int in, dflow_view *view);

/* Item `item` of a list input. Blocks until it is complete; DFLOW_END past the last. */
int dflow_get_item(dflow_ctx *ctx, int in, uint32_t item, dflow_view *view);

/* The next item of a list input, from 0 on: dflow_get_item with a counter kept per port. */
int dflow_next(dflow_ctx *ctx, int in, dflow_view *view);

/* Number of items of a list input. Blocks until its producer has closed it. */
int dflow_count(dflow_ctx *ctx, int in, uint32_t *count);

/* Bytes of an object that may still be growing. Blocks until at least `bytes_min` bytes (1 if 0)
 * can be read from `offset` on, or the object is complete; `view` is then all that can be read from
 * there. DFLOW_END if the object is complete and not longer than `offset`. `item` is the item of a
 * list input, else 0. */
int dflow_read(dflow_ctx *ctx, int in, uint32_t item, uint64_t offset, uint64_t bytes_min, dflow_view *view);

/* A small input as NUL-terminated text: the plain way to read a number or a name. Blocks until it is
 * complete. A JSON string comes without its quotes and escapes. Null if it was skipped, is a list,
 * is longer than 1 MiB or does not exist; dflow_last_error tells which. */
const char *dflow_param(dflow_ctx *ctx, const char *name);

/* ---- Outputs ------------------------------------------------------------------------------ */

/* Puts an object: copies `bytes` bytes and shows them to the readers. On a `many` port it appends an
 * item. Readers of large objects follow the copy. */
int dflow_put(dflow_ctx *ctx, int out, const void *data, uint64_t bytes);

/* The same without the copy: memory for `bytes_max` bytes, to be filled in place. On a `many` port
 * it begins an item. One reservation at a time per port; another port may have its own. */
int dflow_reserve(dflow_ctx *ctx, int out, uint64_t bytes_max, void **data);

/* The first `watermark` bytes of the reservation are final and may be read now. */
int dflow_commit(dflow_ctx *ctx, int out, uint64_t watermark);

/* The object is complete and `bytes` long. The memory is no longer writable: a later write there is
 * a segmentation fault in this process, and never reaches a reader. */
int dflow_seal(dflow_ctx *ctx, int out, uint64_t bytes);

/* Closes a `many` port: no further items. Happens by itself when the function returns; earlier, it
 * lets a reader that counts the items go on. */
int dflow_close(dflow_ctx *ctx, int out);

/* ---- Errors ------------------------------------------------------------------------------- */

/* Fails the invocation with class error:`name`. Always returns DFLOW_E_FAILED, for `return
 * dflow_fail(..)`. The first call counts. */
int dflow_fail(dflow_ctx *ctx, const char *name, const char *message);

/* The name of a code, such as "DFLOW_E_NAME". */
const char *dflow_strerror(int code);

/* What was wrong with this thread's last call that returned an error, and what to do. Valid until
 * the thread's next call. */
const char *dflow_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* DFLOW_H */
