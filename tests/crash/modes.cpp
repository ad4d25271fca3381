// Ways for a C++ program to die, chosen by the first argument.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define KEPT __attribute__((noinline))

volatile int zero;
int *volatile nowhere;

namespace outer { namespace {

template <typename T> struct Holder {
    T value;
    std::string name;
    KEPT T store(const T &other) { *nowhere = static_cast<int>(other); value = other; return value; }
};

struct Shape {
    virtual ~Shape() = default;
    virtual double area(double scale) const = 0;
};

struct Square : Shape {
    double side = 2;
    KEPT double area(double scale) const override { return side * side * scale * *nowhere; }
};

KEPT double measure(const Shape &shape) { return shape.area(2.5) + zero; }

struct Base { Base() { early(); } KEPT void early() { late(); } virtual void late() = 0; virtual ~Base() = default; };
struct Derived : Base { void late() override {} };

} // namespace

KEPT int thrower(int depth) { if (depth == 0) throw std::runtime_error("nothing works"); return thrower(depth - 1) + 1; }
KEPT void no_throw() noexcept { thrower(2); }

} // namespace outer

struct Exploding { ~Exploding() noexcept(false) { throw 1; } };

KEPT void in_flight() { Exploding one; throw std::logic_error("first"); }

int main(int argc, char **argv) {
    std::string mode = argc > 1 ? argv[1] : "template";
    std::string long_text(100, 'q');
    std::vector<int> numbers{5, 3, 8, 1, 9};
    if (mode == "template") { outer::Holder<double> h{1.5, "short"}; return (int)h.store(2.0); }
    if (mode == "virtual") { auto s = std::make_unique<outer::Square>(); return (int)outer::measure(*s); }
    if (mode == "pure") outer::Derived();
    if (mode == "throw") outer::thrower(3);
    if (mode == "noexcept") outer::no_throw();
    if (mode == "twice") try { in_flight(); } catch (...) {}
    if (mode == "lambda") { auto f = [&](int n) { *nowhere = n + zero; return n; }; return f(3); }
    if (mode == "function") { std::function<int(int)> f = [](int n) { return n / zero + *nowhere; }; return f(3); }
    if (mode == "sort") std::sort(numbers.begin(), numbers.end(), [](int a, int b) { if (a == 8) *nowhere = b; return a < b; });
    if (mode == "thread") { std::thread t([&] { outer::Square s; outer::measure(s); }); t.join(); }
    // Once it runs: gdb makes a frame of the 0 below the first instruction of a thread.
    if (mode == "joinable") { std::atomic<bool> runs{false}; std::thread t([&] { for (runs = true;;) std::this_thread::sleep_for(std::chrono::seconds(9)); }); while (!runs); }
    if (mode == "at") return numbers.at(77);
    if (mode == "map") { std::map<std::string, int> m{{"one", 1}}; return m.at("two"); }
    if (mode == "terminate") std::terminate();
    return 0;
}
