/* Falls, three functions deep, where it is told to: itself ("self"), or in a child of its own
 * ("child"), while it goes on. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct cell { int value; };

static void deepest(struct cell *cell, int depth) { cell->value = depth; }
static void deeper(struct cell *cell, int depth) { deepest(cell, depth + 1); puts("never"); }
static void deep(struct cell *cell) { deeper(cell, 1); puts("never"); }

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
  deep((struct cell *)16);
}
