// Values of many kinds, in the frame that aborts.
#include <string>
#include <string_view>
#include <vector>
#include <complex>
#include <cstdint>
#include <cstdlib>
enum class Mode : unsigned { Idle, Run = 200 };
struct Bits { int s : 5; int64_t big : 40; bool t : 1; Mode m : 8; unsigned u : 3; };
struct Base { int x; std::string n; };
static int fall(const std::string &r, int &ri, Base &br, std::string_view v, int n) {
  Bits bits{-1, -2, true, Mode::Run, 7};
  char packet[6] = {0, 'A', 0, 'B', 'C', 0};
  unsigned char raw[6] = {1, 0, 0xfe, 0, 3, 0};
  char greeting[16] = "hello";
  char rows[2][4] = {"ab", "cd"};
  int grid[2][3] = {{1, 2, 3}, {4, 5, 6}};
  int cube[2][2][2] = {{{1, 2}, {3, 4}}, {{5, 6}, {7, 8}}};
  long double ld = 1.25L;
  std::complex<float> cf(1.5f, -2.5f);
#ifdef __FLT16_MANT_DIG__
  _Float16 half = 1.5;
#endif
  const char *bytes = "a\x01\xff";
  std::u16string wide = u"u16";
  const wchar_t *w = L"wide";
  int vla[n]; vla[0] = n;
  abort();
}
int main(int argc, char **argv) {
  std::string s = "ss"; int i = -1; Base b{7, "base"};
  return fall(s, i, b, "view", 5);
}
