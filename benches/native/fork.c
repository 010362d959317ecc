/* What a fork costs a small process: `fork N` writes N lines of two numbers to its standard output,
 * nanoseconds from before the fork to the child's first line, and to the end of the wait for it. */

/* clock_gettime, MAP_ANONYMOUS */
#define _DEFAULT_SOURCE

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? strtol(argv[1], NULL, 10) : 100;
    volatile uint64_t *first_line = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (first_line == MAP_FAILED)
        return 1;
    *first_line = 0;
    for (long i = 0; i < n; i++) {
        uint64_t begin = now_ns();
        pid_t child = fork();
        if (child == 0) {
            *first_line = now_ns();
            _exit(0);
        }
        if (child < 0 || waitpid(child, NULL, 0) != child)
            return 1;
        uint64_t end = now_ns();
        printf("%llu %llu\n", (unsigned long long)(*first_line - begin), (unsigned long long)(end - begin));
        fflush(stdout);
        /* Forks of a real node are apart; the child of the last one is gone and its memory back. */
        usleep(1000);
    }
    return 0;
}
