// A shared library that crashes two calls deep.
static int *volatile none;
__attribute__((noinline)) static int plugin_inner(int n) { *none = n; return n; }
__attribute__((noinline)) int plugin_entry(int n) { return plugin_inner(n + 1) + 1; }
