/* dflow_worker.h - for bindings of other languages: a zygote and its workers.
 *
 * A binding is a program that loads a function's code once and is then forked for each worker:
 *
 *     int main(int argc, char **argv) {
 *         dflow_zygote *zygote;
 *         dflow_worker *worker;
 *         if (dflow_zygote_open(argc - 1, argv + 1, &zygote) != DFLOW_OK) return 1;
 *         if (load_code() fails) { dflow_zygote_failed(zygote, why, traceback); return 1; }
 *         int rc = dflow_zygote_serve(zygote, my_fork, NULL, &worker);
 *         if (rc != DFLOW_WORKER) return rc != DFLOW_OK;      // the zygote itself is done
 *         dflow_call call;
 *         while (dflow_worker_next(worker, &call) == DFLOW_OK) {
 *             ... run the function with call.ctx and the calls of dflow.h ...
 *             dflow_worker_end(worker, NULL, NULL);            // or an error's name and message
 *         }
 *         _exit(0);
 *     }
 *
 * The process must have one thread while it serves. These calls are not for functions.
 */
#ifndef DFLOW_WORKER_H
#define DFLOW_WORKER_H

#include "dflow.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dflow_zygote dflow_zygote;
typedef struct dflow_worker dflow_worker;

/* How to read the bytes of a port. */
enum { DFLOW_BYTES = 0, DFLOW_TEXT = 1, DFLOW_JSON = 2 };
/* Shape of an input. */
enum { DFLOW_ONE = 0, DFLOW_LIST = 1 };
/* State of an input when the call began; dflow_get and the others tell the state now. */
enum { DFLOW_PENDING = 0, DFLOW_READY = 1, DFLOW_ABSENT = 2 };
/* Kind of an output port. */
enum { DFLOW_PLAIN = 0, DFLOW_STREAM = 1, DFLOW_MANY = 2 };

typedef struct dflow_input {
    const char *name;
    const void *data;      /* if state is DFLOW_READY and shape DFLOW_ONE: the object, complete */
    uint64_t bytes;
    uint32_t name_bytes;
    uint32_t type;         /* DFLOW_BYTES, DFLOW_TEXT or DFLOW_JSON */
    uint32_t shape;        /* DFLOW_ONE or DFLOW_LIST */
    uint32_t state;        /* DFLOW_PENDING, DFLOW_READY or DFLOW_ABSENT; a list is never READY */
} dflow_input;

typedef struct dflow_output {
    const char *name;
    uint64_t bytes_max;    /* declared limit of one object, 0 for none */
    uint32_t name_bytes;
    uint32_t type;
    uint32_t kind;         /* DFLOW_PLAIN, DFLOW_STREAM or DFLOW_MANY */
    uint32_t items_max;    /* of a `many` port */
} dflow_output;

/* One invocation to execute. Indices of `inputs` and `outputs` are the port indices of dflow.h.
 * Everything it points to is valid until dflow_worker_end. */
typedef struct dflow_call {
    dflow_ctx *ctx;
    const dflow_info *info;
    const dflow_input *inputs;
    const dflow_output *outputs;
    uint32_t inputs_len;
    uint32_t outputs_len;
    uint64_t signature;    /* equal for calls with equal names, types, shapes and kinds of all ports */
} dflow_call;

/* Forks as fork(2) does: the child's pid in the parent, 0 in the child, -1 (and errno) for failure. */
typedef int (*dflow_fork_fn)(void *user);

/* Takes up the connection to the node. `argv` is what the node gave after the path of libdflow.so:
 *     --socket FD --runtime NAME [--memory BYTES] [--scratch DIR] [...] --
 * A Python zygote finds its own part there: --handler HANDLER and --path DIR (any number of times).
 * Until dflow_zygote_serve the process dies with its parent. */
int dflow_zygote_open(int argc, const char *const *argv, dflow_zygote **zygote);

/* Tells the node that the code cannot be loaded. The process should then end. `traceback` may be
 * null. */
int dflow_zygote_failed(dflow_zygote *zygote, const char *message, const char *traceback);

/* Serves until the node is gone: forks workers through `fork_fn`, kills and reaps them. Returns
 *   DFLOW_OK      in the zygote, when the node is gone and everything is cleaned up: exit;
 *   DFLOW_WORKER  in each new worker, with *worker set. It has its own process group, stdin is
 *                 /dev/null, stdout and stderr are the node's pipe. */
int dflow_zygote_serve(dflow_zygote *zygote, dflow_fork_fn fork_fn, void *user, dflow_worker **worker);

/* Waits for the next invocation: DFLOW_OK with *call filled, or DFLOW_END when the worker should
 * exit. */
int dflow_worker_next(dflow_worker *worker, dflow_call *call);

/* Ends the current invocation, in success if `name` is null, else with class error:`name`. Checks
 * that all outputs were put, closes lists, tells the node. Returns DFLOW_OK whenever the node was
 * told, whatever the outcome. */
int dflow_worker_end(dflow_worker *worker, const char *name, const char *message);

/* Ends the current invocation as a program that exited with status `code` would: class exit:`code`, or
 * success (with the checks of dflow_worker_end) for 0. */
int dflow_worker_end_exit(dflow_worker *worker, int code);

/* Before the end of an invocation: the process is not fit for another one (the function has kept
 * something of this one). The node lets the worker go after it. A process that has children left is
 * found out without this. */
int dflow_worker_taint(dflow_worker *worker);

/* The zygote of all runtimes inside libdflow (native, exec, builtin), as a main function. */
int dflow_zygote_main(int argc, const char *const *argv);

#ifdef __cplusplus
}
#endif

#endif /* DFLOW_WORKER_H */
