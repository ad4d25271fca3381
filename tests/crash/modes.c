// Ways for a C program to die, chosen by the first argument.
#define _GNU_SOURCE
#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KEPT __attribute__((noinline))

struct point { int x, y; double weight; const char *label; };
enum colour { RED, GREEN = 5, BLUE };
union word { uint32_t u; float f; };

volatile int zero, *nowhere;
static char text[64] = "data, not code";

static inline __attribute__((always_inline)) int touch(struct point *p, enum colour c) {
    int sum = p->x + p->y + (int)c;
    *nowhere = sum;
    return sum;
}

KEPT int deepest(struct point *p, enum colour c) {
    union word w = { .u = 0x3f800000 };
    int values[4] = { 1, 2, 3, p->y };
    int result = touch(p, c);
    return result + values[zero & 3] + (int)w.f;
}

KEPT int middle(const char *label, int depth) {
    struct point p = { depth, 2 * depth, 1.5, label };
    int r = depth > 0 ? middle(label, depth - 1) : deepest(&p, GREEN);
    return r + p.x;
}

KEPT int overflow(int n) {
    volatile char room[100];
    room[n % 100] = (char)n;
    return overflow(n + 1) + room[(n + 1) % 100];
}

KEPT void overwrite(char *target, size_t len) { memset(target, 'A', len); }

KEPT int smash(int len) {
    char small[16];
    overwrite(small, (size_t)len);
    return small[3];
}

static void on_signal(int number) { middle("handler", number % 3); }

static void on_altstack(int number, siginfo_t *info, void *context) {
    (void)info; (void)context;
    if (number) abort();
}

static int compare(const void *a, const void *b) {
    if (*(const int *)a == 3) middle("compare", 0);
    return *(const int *)a - *(const int *)b;
}

static pthread_barrier_t all_running;

static void *worker(void *argument) {
    intptr_t number = (intptr_t)argument;
    pthread_barrier_wait(&all_running);
    if (number == 3) middle("worker", 2);
    for (;;) pause();
    return NULL;
}

static void threads(int count) {
    pthread_barrier_init(&all_running, NULL, (unsigned)count + 1);
    for (intptr_t i = 1; i <= count; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, worker, (void *)i);
    }
    pthread_barrier_wait(&all_running);
    for (;;) pause();
}

static void altstack(void) {
    static char other[65536];
    stack_t stack = { .ss_sp = other, .ss_size = sizeof other };
    struct sigaction action = { .sa_sigaction = on_altstack, .sa_flags = SA_ONSTACK | SA_SIGINFO };
    sigaltstack(&stack, NULL);
    sigaction(SIGSEGV, &action, NULL);
    overflow(1);
}

KEPT void truncated(void) {
    char name[] = "/tmp/truncatedXXXXXX";
    int file = mkstemp(name);
    unlink(name);
    volatile char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
    zero = map[8];
}

KEPT int divide(int by) { return 7 / by; }

KEPT void heap(int twice) {
    char *p = malloc(40);
    if (twice) { free(p); free(p); return; }
    memset(p, 'x', 80);
    char *q = malloc(2000);
    free(p); free(q);
    malloc(3000);
}

typedef void (*function)(void);

KEPT void call(function f) { f(); nowhere = 0; }

KEPT int from_library(void) {
    void *library = dlopen("./libplugin.so", RTLD_NOW);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); exit(3); }
    int (*entry)(int) = (int (*)(int))dlsym(library, "plugin_entry");
    return entry(4);
}

#ifdef WITH_ASSEMBLY
int through_assembly(int (*f)(const char *, int), const char *label, int depth);
#endif

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "null";
    if (!strcmp(mode, "null")) return middle("null", 3);
    if (!strcmp(mode, "deep")) return middle("deep", 60);
    if (!strcmp(mode, "overflow")) return overflow(0);
    if (!strcmp(mode, "smash")) return smash(64);
    if (!strcmp(mode, "abort")) abort();
    if (!strcmp(mode, "assert")) assert(zero == 1);
    if (!strcmp(mode, "raise")) raise(SIGTRAP);
    if (!strcmp(mode, "handler")) { signal(SIGUSR1, on_signal); raise(SIGUSR1); }
    if (!strcmp(mode, "altstack")) altstack();
    if (!strcmp(mode, "vdso")) clock_gettime(CLOCK_MONOTONIC, (struct timespec *)8);
    if (!strcmp(mode, "nullcall")) call((function)0);
    if (!strcmp(mode, "datacall")) call((function)(uintptr_t)text);
    if (!strcmp(mode, "wildcall")) call((function)0x4141414141414141);
    if (!strcmp(mode, "fpe")) return divide(zero);
    if (!strcmp(mode, "ill")) __builtin_trap();
    if (!strcmp(mode, "bus")) truncated();
    if (!strcmp(mode, "doublefree")) heap(1);
    if (!strcmp(mode, "corrupt")) heap(0);
    if (!strcmp(mode, "qsort")) { int v[] = { 9, 3, 7, 1 }; qsort(v, 4, sizeof *v, compare); }
    if (!strcmp(mode, "threads")) threads(8);
    if (!strcmp(mode, "manythreads")) threads(argc > 2 ? atoi(argv[2]) : 60);
    if (!strcmp(mode, "plugin")) return from_library();
    if (!strcmp(mode, "free")) free((void *)0x1234567);
#ifdef WITH_ASSEMBLY
    if (!strcmp(mode, "assembly")) return through_assembly(middle, "assembly", 2);
#endif
    if (!strcmp(mode, "deleted")) { unlink(argv[0]); return middle("deleted", 2); }
    if (!strcmp(mode, "hang")) for (;;) pause();
    return 0;
}
