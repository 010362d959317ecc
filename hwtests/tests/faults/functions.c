/* Functions that misbehave, each in its own way. */
#include <dflow.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int put(dflow_ctx *c, const char *text) { return dflow_put(c, dflow_out(c, "data"), text, strlen(text)); }

int well(dflow_ctx *c) { return put(c, "x"); }
int crash(dflow_ctx *c) { (void)c; fprintf(stderr, "about to crash\n"); abort(); }
int twice(dflow_ctx *c) { put(c, "a"); return put(c, "b"); }
int never(dflow_ctx *c) { (void)c; return 0; }
int code(dflow_ctx *c) { (void)c; return 75; }
int unlucky(dflow_ctx *c) { return dflow_fail(c, "BadLuck", "seven years"); }

int past(dflow_ctx *c) {
    void *p;
    int out = dflow_out(c, "data"), rc = dflow_reserve(c, out, 100, &p);
    return rc ? rc : dflow_seal(c, out, 200);
}

/* Writes to its output after the seal: the mapping is gone by then. */
int stray(dflow_ctx *c) {
    void *p;
    int out = dflow_out(c, "data"), rc = dflow_reserve(c, out, 100000, &p);
    if (rc) return rc;
    memset(p, 1, 100000);
    rc = dflow_seal(c, out, 100000);
    ((volatile char *)p)[5] = 9;
    return rc;
}

/* Writes to its input. */
int vandal(dflow_ctx *c) {
    dflow_view in;
    int rc = dflow_get(c, dflow_in(c, "in"), &in);
    if (rc) return rc;
    ((volatile char *)in.data)[0] = 1;
    return put(c, "x");
}

/* Leaves a process behind that has left its group. */
int leaver(dflow_ctx *c) {
    if (fork() == 0) {
        setsid();
        for (;;) sleep(1000);
    }
    return put(c, "x");
}

int stubborn(dflow_ctx *c) {
    (void)c;
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    for (;;) sleep(1000);
}

int flood(dflow_ctx *c) {
    for (int i = 0; i < 500000; i++) printf("line %d of a flood of text that does not seem to end\n", i);
    return put(c, "x");
}

int eat(dflow_ctx *c) {
    (void)c;
    for (;;) {
        char *p = malloc(1 << 20);
        if (p) memset(p, 1, 1 << 20);
        usleep(200);
    }
}

/* Crashes in its first attempt only, after it has put part of a list. */
int halfway(dflow_ctx *c) {
    int out = dflow_out(c, "items");
    for (int i = 0; i < 3; i++) {
        char text[32];
        int rc = dflow_put(c, out, text, (uint64_t)sprintf(text, "%d/%u", i, dflow_about(c)->attempt));
        if (rc) return rc;
    }
    if (dflow_about(c)->attempt == 1) {
        usleep(100000);
        abort();
    }
    return 0;
}

/* Joins the items of its input with spaces, as they come. */
int join(dflow_ctx *c) {
    char text[4096];
    size_t n = 0;
    dflow_view item;
    int rc;
    while ((rc = dflow_next(c, dflow_in(c, "items"), &item)) == DFLOW_OK)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%.*s", n ? " " : "", (int)item.bytes, (const char *)item.data);
    return rc == DFLOW_END ? dflow_put(c, dflow_out(c, "data"), text, n) : rc;
}
