/* What services of tests do, in roots that hold nothing else: link it statically. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void deaf(void) { signal(SIGTERM, SIG_IGN); signal(SIGHUP, SIG_IGN); }

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    int number = count > 2 ? atoi(words[2]) : 0;
    if (strcmp(what, "exit") == 0) return number;
    if (strcmp(what, "crash") == 0) { *(volatile int *)16 = 1; }
    if (strcmp(what, "deaf") == 0) { deaf(); for (;;) pause(); }
    if (strcmp(what, "orphans") == 0) {
        /* Each is left by its parent at once, and ends a moment later. */
        for (int i = 0; i < number; i++) {
            pid_t child = fork();
            if (child == 0) {
                if (fork() == 0) { usleep(1000 * (i % 50)); _exit(0); }
                _exit(0);
            }
            waitpid(child, NULL, 0);
        }
        printf("orphaned\n"); fflush(stdout);
    }
    if (strcmp(what, "daemon") == 0) {
        /* Its own session, twice forked, deaf, and nothing in its environment. */
        int ends[2];
        if (pipe(ends) != 0) return 1;
        if (fork() == 0) {
            setsid();
            if (fork() == 0) {
                pid_t own = getpid();
                if (write(ends[1], &own, sizeof own) < 0) _exit(1);
                for (int fd = 0; fd < 64; fd++) close(fd);
                deaf();
                char *argv[] = {"hidden", "deaf", NULL}, *envp[] = {NULL};
                execve(words[0], argv, envp);
                _exit(1);
            }
            _exit(0);
        }
        wait(NULL);
        pid_t hidden;
        if (read(ends[0], &hidden, sizeof hidden) != sizeof hidden) return 1;
        printf("hidden %d\n", hidden); fflush(stdout);
    }
    if (strcmp(what, "vfork") == 0) {
        /* The parent cannot be woken before its child execs or ends. */
        if (vfork() == 0) { deaf(); for (;;) pause(); }
    }
    if (strcmp(what, "eat") == 0) {
        for (int i = 0; i < number; i++) memset(malloc(1 << 20), 1, 1 << 20);
    }
    for (;;) pause();
}
