/* Falls, three functions deep, where it is told to: itself ("self"), or in a child of its own ("child"), while it goes
 * on, or itself with a handler on a stack of its own that aborts ("handled"). */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct cell { int value; };

static void deepest(struct cell *cell, int depth) { cell->value = depth; }
static void deeper(struct cell *cell, int depth) { deepest(cell, depth + 1); puts("never"); }
static void deep(struct cell *cell) { deeper(cell, 1); puts("never"); }

static char alternate[65536];
static void handler(int signal) { fprintf(stderr, "caught %d\n", signal); abort(); }

int main(int argc, char **argv) {
  printf("about to fall\n");
  fflush(stdout);
  if (argc > 1 && strcmp(argv[1], "child") == 0) {
    pid_t child = fork();
    if (child == 0) deep((struct cell *)16);
    waitpid(child, NULL, 0);
    printf("the child fell\n");
    fflush(stdout);
    pause();
  }
  if (argc > 1 && strcmp(argv[1], "handled") == 0) {
    sigaltstack(&(stack_t){.ss_sp = alternate, .ss_size = sizeof alternate}, NULL);
    sigaction(SIGSEGV, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_ONSTACK}, NULL);
  }
  deep((struct cell *)16);
}
