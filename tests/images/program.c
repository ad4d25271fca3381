/* A static program for images that hold nothing: one mode per question.
 *
 *   say WORD…         prints the words and ends
 *   exit N            ends with N
 *   sleep             prints "up" and waits to be ended
 *   term N            as sleep; at SIGTERM prints "told to end" and ends with N
 *   crash             prints a line, then reads address 16 three calls deep
 *   orphans N         leaves N grandchildren that end at once, prints "left N", then sleeps
 *   while FILE        prints "up", ends with 1 as soon as FILE is not there
 *   whoami            prints uid, gid and HOME, ends
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t told;

static void on_term(int number) {
    (void)number;
    told = 1;
}

__attribute__((noinline)) static int deepest(volatile int *place) { return *place; }

__attribute__((noinline)) static int middle(volatile int *place) { return deepest(place) + 1; }

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(mode, "say")) {
        for (int i = 2; i < argc; i++) printf("%s%s", argv[i], i + 1 < argc ? " " : "\n");
        return 0;
    }
    if (!strcmp(mode, "exit")) return atoi(argv[2]);
    if (!strcmp(mode, "whoami")) {
        const char *home = getenv("HOME");
        printf("uid %d gid %d home %s\n", (int)getuid(), (int)getgid(), home ? home : "-");
        return 0;
    }
    if (!strcmp(mode, "crash")) {
        printf("about to crash\n");
        return middle((volatile int *)16);
    }
    if (!strcmp(mode, "orphans")) {
        for (int i = 0; i < atoi(argv[2]); i++) {
            pid_t child = fork();
            if (child == 0) {
                if (fork() == 0) _exit(0);
                _exit(0);
            }
            waitpid(child, NULL, 0);
        }
        printf("left %s\n", argv[2]);
    }
    if (!strcmp(mode, "term")) {
        struct sigaction action = {.sa_handler = on_term};
        sigaction(SIGTERM, &action, NULL);
    }
    if (!strcmp(mode, "while")) {
        printf("up\n");
        while (access(argv[2], F_OK) == 0) usleep(20000);
        return 1;
    }
    printf("up\n");
    while (!told) pause();
    printf("told to end\n");
    return atoi(argv[2]);
}
